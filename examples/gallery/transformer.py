"""
A transformer
=============

One layer of causal attention learns to sort: after some numbers it has to give the same numbers in
order, each from those before it. ``examples/transformer.py`` is a larger one, on text.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax, softmax

import downhill_rms as dr

NUMBERS, COUNT, UNITS, HEADS = 8, 5, 32, 2
PLACES = 2 * COUNT - 1

# %%
# A sample is 3 1 7 1 5 1 1 3 5: five numbers, and then four of the five sorted ones. What comes
# next is to be foretold at each of the last five places.
rng = np.random.default_rng(0)
given = rng.integers(NUMBERS, size=(2500, COUNT))
ordered = np.sort(given, axis=1)
seen = np.concatenate([given, ordered[:, :-1]], axis=1).astype("int32")
ordered = ordered.astype("int32")
train, valid = [seen[:2000], ordered[:2000]], [seen[2000:], ordered[2000:]]

# %%
# The network. Normalisation stands before each part, and what a part computes is added.


def weights(rows, columns, name):
    """A matrix that keeps the scale of what it multiplies."""
    values = rng.normal(size=(rows, columns)) / np.sqrt(rows)
    return pytensor.shared(values.astype("float32"), name=name)


def normalised(h):
    """The units of each place with mean 0 and variance 1."""
    centred = h - h.mean(axis=-1, keepdims=True)
    return centred / pt.sqrt(pt.sqr(centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))


def parts(h):
    """Each head's units of (samples, places, units): (samples, heads, places, units)."""
    return h.reshape((h.shape[0], PLACES, HEADS, UNITS // HEADS)).dimshuffle(0, 2, 1, 3)


x, y = pt.imatrix("x"), pt.imatrix("y")
h = weights(NUMBERS, UNITS, "numbers")[x] + weights(PLACES, UNITS, "places")
query, key, value = (parts(normalised(h) @ weights(UNITS, UNITS, name)) for name in "qkv")
scores = query @ key.dimshuffle(0, 1, 3, 2) / np.float32(np.sqrt(UNITS // HEADS))
before = np.tri(PLACES, dtype=bool)  # no place sees those after it
attention = softmax(pt.where(before, scores, -np.inf), axis=-1)
gathered = (attention @ value).dimshuffle(0, 2, 1, 3).reshape((x.shape[0], PLACES, UNITS))
h = h + gathered @ weights(UNITS, UNITS, "o")
h = h + pt.maximum(normalised(h) @ weights(UNITS, 64, "w1"), 0) @ weights(64, UNITS, "w2")
expected = log_softmax(normalised(h)[:, COUNT - 1 :] @ weights(UNITS, NUMBERS, "out"), axis=-1)
each = expected.reshape((-1, NUMBERS))
loss = -each[pt.arange(y.size), y.flatten()].mean()
right = pt.eq(expected.argmax(axis=-1), y).mean()

# %%
trainer = dr.Trainer(loss, inputs=[x, y], monitors={"right": right})
epochs, batch = 12, 50
trainer.minimize(
    train,
    valid,
    batch_size=batch,
    max_epochs=epochs,
    validate_every=1,
    learning_rate=dr.schedules.cosine(5e-3, epochs * 2000 // batch),
    rms_halflife=69,
    max_global_norm=1,
    seed=0,
)
print(f"right: {trainer.best.monitors['right']:.1%}")

# %%
# What each place looks at, in the two heads, in one sample:
sample = seen[2000:2001]
looks = trainer.predict(attention, [sample])[0]
fig, axes = plt.subplots(1, HEADS, figsize=(8, 4), layout="constrained")
for head, ax in enumerate(axes):
    ax.imshow(looks[head], cmap="Blues")
    ax.set_xticks(range(PLACES), sample[0])
    ax.set_yticks(range(PLACES), sample[0])
    ax.set_title(f"head {head + 1}")
plt.show()
