"""
Text by an LSTM
===============

A recurrent network learns to foretell the next letter. A minibatch is a piece of several streams of
text, and the network's state goes on from one to the next, as in Graves' paper.
``examples/text.py`` is the same with his peepholes, 128 units and 380 kB of English.
"""

import logging

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax

import downhill_rms as dr

logging.getLogger("downhill_rms").setLevel(logging.ERROR)
UNITS, ROWS, LENGTH = 24, 32, 8

# %%
# A text: 2,400 words of a small language, in which a sentence has an animal, a verb and a place.
rng = np.random.default_rng(0)
words = [["cat", "dog", "cow", "hen"], ["sat", "ran", "slept"], ["here", "there", "outside"]]
text = " ".join(" ".join(kind[rng.integers(len(kind))] for kind in words) + "." for _ in range(800))
alphabet, codes = np.unique(list(text), return_inverse=True)
codes = codes.astype("int32")
print(text[:70], "...", len(text), "letters,", len(alphabet), "different ones")

# %%
# The network: four gates from a letter and the last hidden values.


def shared(name, *shape):
    """Small random numbers, or zeros for a bias."""
    values = rng.normal(0, 0.1, shape) if len(shape) == 2 else np.zeros(shape)
    return pytensor.shared(values.astype("float32"), name=name)


w_x, w_h, b = (
    shared("w_x", len(alphabet), 4 * UNITS),
    shared("w_h", UNITS, 4 * UNITS),
    shared("b", 4 * UNITS),
)
w_y, b_y = shared("w_y", UNITS, len(alphabet)), shared("b_y", len(alphabet))


def step(driven, h, c):
    """The next hidden values and cells."""
    gates = driven + h @ w_h
    i, f, o, new = (gates[..., k * UNITS : (k + 1) * UNITS] for k in range(4))
    c = pt.sigmoid(f) * c + pt.sigmoid(i) * pt.tanh(new)
    return pt.sigmoid(o) * pt.tanh(c), c


x, y = pt.imatrix("x"), pt.imatrix("y")  # letters and those that follow: (steps, rows)
start = np.zeros((ROWS, UNITS), "float32")
h_0, c_0 = pytensor.shared(start, name="h"), pytensor.shared(start, name="c")
driven = w_x[x] + b
h, c = pytensor.scan(step, sequences=driven, outputs_info=[h_0, c_0], return_updates=False)
expected = log_softmax(h @ w_y + b_y, axis=-1).reshape((-1, len(alphabet)))
nats = -expected[pt.arange(y.size), y.flatten()].mean()

# %%
# ``carried`` names what the next minibatch starts from; a new epoch, a validation and a prediction
# start from zeros. :func:`~downhill_rms.sequences` cuts a text into streams that go on.
trainer = dr.Trainer(
    nats, inputs=[x, y], carried={h_0: h[-1], c_0: c[-1]}, monitors={"bits": nats / np.log(2)}
)
split = len(codes) * 9 // 10
trainer.minimize(
    dr.sequences(codes[:split], LENGTH, ROWS),
    dr.sequences(codes[split:], LENGTH, ROWS),
    learning_rate=1e-2,
    max_gradient_elem=1,
    monitor="bits",
    validate_every=1,
    max_epochs=5,
)
print(f"{trainer.best.monitors['bits']:.2f} bits a letter, {np.log2(len(alphabet)):.2f} by chance")

# %%
# Letters drawn one after the other, each from what is expected after the last:
letter, h_1, c_1 = pt.iscalar(), pt.fvector(), pt.fvector()
h_2, c_2 = step(w_x[letter] + b, h_1, c_1)
function = pytensor.function([letter, h_1, c_1], [h_2 @ w_y + b_y, h_2, c_2])
written, state = [0], [np.zeros(UNITS, "float32")] * 2
for _ in range(150):
    scores, *state = function(np.int32(written[-1]), *state)
    written.append(np.argmax(scores + rng.gumbel(size=len(scores))))
print("".join(alphabet[written]))

# %%
dr.plots.learning_curves(trainer.history, monitors=["bits"])
