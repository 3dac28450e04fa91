"""
Handwritten digits
==================

.. index::
   single: softmax
   single: classification

A softmax network with one hidden layer recognises the 1,797 images of 8 x 8 pixels that come with
scikit-learn. Accuracy is monitored, and decides which parameters are the best.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax
from sklearn.datasets import load_digits

import downhill_rms as dr

digits = load_digits()
rng = np.random.default_rng(0)
order = rng.permutation(len(digits.data))
images = (digits.data[order] / 16).astype("float32")
labels = digits.target[order].astype("int32")
train, valid, test = (
    [images[part], labels[part]] for part in (slice(1197), slice(1197, 1497), slice(1497, None))
)

# %%
# The network, written out: two matrices, two biases, and the loss.


def weights(rows, columns, name):
    """A matrix that keeps the scale of what it multiplies."""
    values = rng.normal(size=(rows, columns)) / np.sqrt(rows)
    return pytensor.shared(values.astype("float32"), name=name)


x, y = pt.fmatrix("x"), pt.ivector("y")
w1, w2 = weights(64, 64, "w1"), weights(64, 10, "w2")
b1, b2 = (pytensor.shared(np.zeros(n, "float32"), name=f"b{n}") for n in (64, 10))
hidden = pt.maximum(x @ w1 + b1, 0)
log_probability = log_softmax(hidden @ w2 + b2, axis=1)
loss = -log_probability[pt.arange(y.shape[0]), y].mean()
digit = log_probability.argmax(axis=1)
accuracy = pt.eq(digit, y).mean()

# %%
# ``monitors`` are computed with the loss, for training and for validation. With ``monitor=`` one of
# them decides when to stop early and what to keep.
trainer = dr.Trainer(loss, inputs=[x, y], monitors={"accuracy": accuracy})
trainer.minimize(
    train,
    valid,
    learning_rate=2e-3,
    rms_regularizer=1e-4,
    monitor="accuracy",
    higher_is_better=True,
    validate_every=1,
    patience=5,
    max_epochs=20,
    seed=0,
)
print(trainer.stop_reason, "after", trainer.epoch_count, "epochs")
print(f"test accuracy {trainer.evaluate(test)['accuracy']:.1%}")

# %%
dr.plots.learning_curves(trainer.history, monitors=["accuracy"])

# %%
# What it takes for something else, of the 300 images that it never saw:
found = trainer.predict(digit, [test[0]])
wrong = np.flatnonzero(found != test[1])[:6]
fig, axes = plt.subplots(1, 6, figsize=(8, 1.8), squeeze=False)
for ax in axes[0]:
    ax.axis("off")
for ax, index in zip(axes[0], wrong, strict=False):
    ax.imshow(test[0][index].reshape(8, 8), cmap="gray_r")
    ax.set_title(f"{test[1][index]}, not {found[index]}", fontsize=10)
plt.show()
