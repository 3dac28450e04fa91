"""scikit-learn's ``SGDClassifier``: logistic regression by plain stochastic gradient descent.

Another algorithm, one sample at a time, for comparison of the speed alone.
"""

from __future__ import annotations

import sklearn
from sklearn.linear_model import SGDClassifier

from tests.benchmarks.rungs import LEARNING_RATE


def version():
    """Who this is."""
    return f"scikit-learn {sklearn.__version__}"


def sparse(rung):
    """``partial_fit`` of each minibatch."""
    x, y = rung.data()
    batches = [
        (x[start : start + rung.batch], y[start : start + rung.batch])
        for start in range(0, rung.samples, rung.batch)
    ]
    model = SGDClassifier(loss="log_loss", alpha=0, learning_rate="constant", eta0=LEARNING_RATE)

    def train(updates):
        for index in range(updates):
            model.partial_fit(*batches[index % len(batches)], classes=[0, 1])
        # Another algorithm: nothing to compare.

    return train
