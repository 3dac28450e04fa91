"""
A sweep: learning rates and seeds
=================================

One trainer makes all the runs of a sweep, and compiles once.
Every run has its own parameters, accumulators, best and patience, and ends with the bits that it
would have alone; all see the same minibatches in the same order.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr
from downhill_rms import plots

rng = np.random.default_rng(0)
X = rng.normal(size=(400, 10))
Y = np.sin(X @ rng.normal(size=10)) + 0.1 * rng.normal(size=400)


def start(rng):
    """The weights that a seed starts with."""
    return {"w": rng.normal(size=(10, 16)) / 3, "v": rng.normal(size=16) / 4}


x, y = pt.matrix("x"), pt.vector("y")
w, v = (pytensor.shared(value, name=name) for name, value in start(rng).items())
trainer = dr.Trainer(pt.sqr(pt.tanh(x @ w) @ v - y).mean(), inputs=[x, y])

# %%
# Six learning rates times three seeds: eighteen runs. What is a list is tried.
found = trainer.sweep(
    [X[:300], Y[:300]],
    [X[300:], Y[300:]],
    learning_rate=np.geomspace(1e-4, 0.3, 6).tolist(),
    seeds=3,
    start=start,
    seed=0,
    max_epochs=15,
    validate_every=1,
)
for row in found.summary():
    print(f"{row['learning_rate']:<8.2g} {row['mean loss']:.3f} +- {row['spread']:.3f}")

# %%
# The best run's parameters are in place, and its settings are data.
print(found.best.settings, found.best.best.loss)

# %%
# Each point is a seed, and the line joins their medians.
plots.hyperparameter_effects(found.table(), "learning_rate")
