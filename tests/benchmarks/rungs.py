"""The rungs: networks, data and numbers that every contestant is given alike."""

from dataclasses import dataclass

import numpy as np

LEARNING_RATE, DECAY, EPSILON = 1e-3, 0.95, 1e-4  # centered, the epsilon added to the root


@dataclass(frozen=True)
class Rung:
    """A network with its data.

    Attributes
    ----------
    title : str
        What the table calls it.
    sizes : tuple of int
        Features, hidden units and classes; one output stands for a regression.
    samples, batch : int
        Samples in the data set, and in a minibatch.
    updates : int
        Updates that one measurement makes.
    """

    title: str
    sizes: tuple[int, ...]
    samples: int
    batch: int
    updates: int

    def parameters(self):
        """Weights and biases of each layer, float32, the same for everyone."""
        rng = np.random.default_rng(0)
        layers = []
        for rows, columns in zip(self.sizes, self.sizes[1:], strict=False):
            weights = rng.standard_normal((rows, columns)) / np.sqrt(rows)
            layers += [weights.astype("float32"), np.zeros(columns, "float32")]
        return layers

    def data(self):
        """Inputs, and targets: a column of numbers, or classes."""
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.samples, self.sizes[0])).astype("float32")
        if self.sizes[-1] == 1:
            y = (x @ rng.standard_normal((self.sizes[0], 1))).astype("float32")
        else:
            y = rng.integers(0, self.sizes[-1], self.samples).astype("int32")
        return x, y


RUNGS = {
    "A": Rung("5-feature regression, batch 10", (5, 1), 1500, 10, 1500),
    "B": Rung("64-128-10, batch 32", (64, 128, 10), 1792, 32, 560),
    "C": Rung("784-256-10, batch 64", (784, 256, 10), 6400, 64, 200),
    "D": Rung("784-1024-1024-10, batch 128", (784, 1024, 1024, 10), 6400, 128, 50),
}
