"""Recognise handwritten digits with convolutions: a small residual network on real images.

The images are those of ``digits.py``. A convolution is a product: each place of an image becomes
the row of numbers in its neighbourhood of 3 x 3, zeros outside, and all rows are multiplied by the
same matrix.

K. He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385 (2015), figure 2.

    downhill-rms train examples/convnet.py
    python examples/convnet.py
"""

import logging

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.tensor.special import log_softmax

import downhill_rms

SIDE, CHANNELS, BLOCKS, CLASSES = 8, 24, 2, 10
BATCH, EPOCHS, SEED = 32, 10, 1


def neighbourhoods(side):
    """For each place of an image the nine places around it, ``side**2`` for those outside."""
    outside = side**2
    places = np.pad(np.arange(outside).reshape(side, side), 1, constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(places, (3, 3))
    return windows.reshape(outside, 9)


def convolution(h, weights, side=SIDE):
    """Convolve images, (samples, places, channels), with 3 x 3 filters.

    ``weights`` has the shape (9 * channels, filters).
    """
    samples, places, channels = h.shape
    padded = pt.concatenate([h, pt.zeros_like(h[:, :1])], axis=1)
    around = padded[:, neighbourhoods(side).ravel()]
    product = around.reshape((samples * places, 9 * channels)) @ weights
    return product.reshape((samples, places, weights.shape[1]))


def pooled(h, side=SIDE):
    """The largest of each 2 x 2 places."""
    half = side // 2
    quarters = h.reshape((h.shape[0], half, 2, half, 2, h.shape[2]))
    return quarters.max(axis=(2, 4)).reshape((h.shape[0], half**2 * h.shape[2]))


def load(rng):
    """The images in [0, 1] and their labels: a training, a validation and a test set.

    Each training image stands there five times: as it is, and moved by one place to each side.
    """
    from sklearn.datasets import load_digits  # not for those who want the convolution alone

    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    labels = digits.target.astype("int32")
    order = rng.permutation(len(images))
    train, *others = [(images[part], labels[part]) for part in np.split(order, [1197, 1497])]
    wide = np.pad(train[0].reshape(-1, SIDE, SIDE), [(0, 0), (1, 1), (1, 1)])
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    moved = [wide[:, i : i + SIDE, j : j + SIDE].reshape(-1, SIDE**2) for i, j in corners]
    return [(np.concatenate(moved), np.tile(train[1], len(moved))), *others]


def network(rng):
    """The inputs, and the loss and the error rate as functions of them."""
    x, y = pt.fmatrix("x"), pt.ivector("y")

    def weights(rows, columns, name):
        values = rng.standard_normal((rows, columns)) * np.sqrt(2 / rows)
        return pytensor.shared(values.astype("float32"), name=name)

    def bias(size, name):
        return pytensor.shared(np.zeros(size, "float32"), name=name)

    h = x.reshape((x.shape[0], SIDE**2, 1)) - np.float32(0.3)
    h = pt.maximum(convolution(h, weights(9, CHANNELS, "w_in")) + bias(CHANNELS, "b_in"), 0)
    for block in range(BLOCKS):
        first = weights(9 * CHANNELS, CHANNELS, f"w{block}_first")
        second = weights(9 * CHANNELS, CHANNELS, f"w{block}_second")
        inner = pt.maximum(convolution(h, first) + bias(CHANNELS, f"b{block}_first"), 0)
        h = pt.maximum(h + convolution(inner, second) + bias(CHANNELS, f"b{block}_second"), 0)
    h = pooled(h)
    scores = h @ (weights(SIDE**2 // 4 * CHANNELS, CLASSES, "w_out") * np.float32(0.1))
    log_probability = log_softmax(scores + bias(CLASSES, "b_out"), axis=-1)
    one_hot = pt.eq(y[:, None], np.arange(CLASSES, dtype="int32"))
    loss = -pt.where(one_hot, log_probability, 0).sum(axis=1).mean()
    error_rate = pt.neq(log_probability.argmax(axis=1), y).mean()
    return [x, y], loss, error_rate


def problem(seed=SEED):
    """What is minimised, on which data and how: all that the command line needs."""
    rng = np.random.default_rng(seed)
    train, valid, _ = load(rng)
    inputs, loss, error_rate = network(rng)
    updates = EPOCHS * -(-len(train[0]) // BATCH)
    return downhill_rms.Problem(
        loss=loss,
        inputs=inputs,
        monitors={"error": error_rate},
        train=train,
        valid=valid,
        hyperparameters={
            "learning_rate": downhill_rms.schedules.cosine(2e-3, updates),
            "rms_regularizer": 1e-4,
        },
        options={"batch_size": BATCH, "validate_every": 1, "max_epochs": EPOCHS},
    )


def main():
    """Train, and report the accuracy of the best parameters on the test set."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    digits = problem()
    trainer = downhill_rms.Trainer(digits.loss, inputs=digits.inputs, monitors=digits.monitors)
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
