"""Learning rates and seeds for a small network on the diabetes data, trained by one trainer.

    python examples/sweep.py

The last lines name the best learning rate by the mean over seeds, and how much seeds differ.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt
from sklearn.datasets import load_diabetes

from downhill_rms import Trainer

HIDDEN = 16


def data():
    """Standardised features and target, 342 samples to train on and 100 to judge by."""
    features, target = load_diabetes(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    target = (target - target.mean()) / target.std()
    order = np.random.default_rng(0).permutation(len(target))
    train, valid = order[:342], order[342:]
    return [features[train], target[train]], [features[valid], target[valid]]


def start(rng):
    """Weights that a seed starts with."""
    return {
        "w": rng.standard_normal((10, HIDDEN)) / np.sqrt(10),
        "v": rng.standard_normal(HIDDEN) / np.sqrt(HIDDEN),
    }


def network():
    """A trainer of a network with one hidden layer."""
    x, y = pt.matrix("x"), pt.vector("y")
    w, v = (pytensor.shared(value, name=n) for n, value in start(np.random.default_rng(0)).items())
    b = pytensor.shared(np.zeros(HIDDEN), name="b")
    return Trainer(pt.sqr(pt.tanh(x @ w + b) @ v - y).mean(), inputs=[x, y])


def main():
    """Sweep, and print the table."""
    train, valid = data()
    found = network().sweep(
        train,
        valid,
        learning_rate=[1e-4, 1e-3, 1e-2, 1e-1],
        seeds=4,
        start=start,
        seed=0,
        max_epochs=30,
        validate_every=1,
    )
    for row in found.summary():
        print(
            f"learning rate {row['learning_rate']:<7g} mean loss {row['mean loss']:.4f} "
            f"+- {row['spread']:.4f}"
        )
    best = found.best
    print(f"best run: {best.settings}, seed {best.seed}, epoch {best.best.epoch}")
    print(
        f"all parameters of it are in place; it explains {1 - best.best.loss:.0%} of the variance"
    )


if __name__ == "__main__":
    main()
