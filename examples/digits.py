"""Recognise handwritten digits: a 64-128-10 softmax network on scikit-learn's real images.

1,797 images of 8 x 8 pixels come with scikit-learn. 1,197 train the network, 300 tell when to
stop, and 300 that it never saw say how well it does.

    downhill-rms train examples/digits.py
    python examples/digits.py
"""

import logging

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax
from sklearn.datasets import load_digits

import downhill_rms

HIDDEN, CLASSES = 128, 10
SEED = 3


def load(rng):
    """The images in [0, 1] and their labels: a training, a validation and a test set."""
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    labels = digits.target.astype("int32")
    order = rng.permutation(len(images))
    parts = np.split(order, [1197, 1497])
    return [(images[part], labels[part]) for part in parts]


def network(rng):
    """The inputs, and the loss and the error rate as functions of them."""
    x, y = pt.fmatrix("x"), pt.ivector("y")

    def weights(rows, columns, name):
        values = rng.standard_normal((rows, columns)) / np.sqrt(rows)
        return pytensor.shared(values.astype("float32"), name=name)

    w1, w2 = weights(64, HIDDEN, "w1"), weights(HIDDEN, CLASSES, "w2")
    b1 = pytensor.shared(np.zeros(HIDDEN, dtype="float32"), name="b1")
    b2 = pytensor.shared(np.zeros(CLASSES, dtype="float32"), name="b2")
    hidden = pt.maximum(x @ w1 + b1, 0)
    log_probability = log_softmax(hidden @ w2 + b2, axis=-1)
    one_hot = pt.eq(y[:, None], np.arange(CLASSES, dtype="int32"))
    loss = -pt.where(one_hot, log_probability, 0).sum(axis=1).mean()
    error_rate = pt.neq(log_probability.argmax(axis=1), y).mean()
    return [x, y], loss, error_rate


def problem(seed=SEED):
    """What is minimised, on which data and how: all that the command line needs."""
    rng = np.random.default_rng(seed)
    train, valid, _ = load(rng)
    inputs, loss, error_rate = network(rng)
    return downhill_rms.Problem(
        loss=loss,
        inputs=inputs,
        monitors={"error": error_rate},
        train=train,
        valid=valid,
        hyperparameters={"learning_rate": 1e-3, "rms_regularizer": 1e-4},
        options={"batch_size": 32, "validate_every": 1, "patience": 5, "max_epochs": 100},
    )


def main():
    """Train with early stopping, and report the accuracy on the test set."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    digits = problem()
    trainer = downhill_rms.Trainer(
        digits.loss, inputs=digits.inputs, monitors=digits.monitors, monitor_gradients=True
    )
    options = dict(digits.options)
    data = downhill_rms.Dataset(digits.train, "train", options.pop("batch_size"), rng=SEED)
    trainer.minimize(data, digits.valid, **options, **digits.hyperparameters)

    trainer.set_params("best")
    *_, test = load(np.random.default_rng(SEED))
    result = trainer.evaluate(test)
    print(f"best validation loss {trainer.best.loss:.4f} after epoch {trainer.best.epoch}")
    print(f"test loss {result['loss']:.4f}, test accuracy {1 - result['error']:.2%}")


if __name__ == "__main__":
    main()
