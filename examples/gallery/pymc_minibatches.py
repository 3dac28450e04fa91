"""
PyMC by minibatches
===================

The posterior of a logistic regression with 5,000 samples, by a normal approximation that sees 100
of them at a time. It needs PyMC 6.3 or newer.
"""

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm

import downhill_rms as dr
from downhill_rms.pymc import advi_problem

rng = np.random.default_rng(0)
slopes = np.array([1.0, -0.5, 0.0])
X = rng.normal(size=(5000, 3))
Y = (rng.random(5000) < 1 / (1 + np.exp(-(X @ slopes - 0.3)))).astype("int64")

# %%
# The model, with its data in ``pm.Data``.
with pm.Model(coords={"predictor": ["age", "dose", "noise"]}) as model:
    x, y = pm.Data("x", X), pm.Data("y", Y)
    weights = pm.Normal("weights", 0.0, 1.0, dims="predictor")
    bias = pm.Normal("bias", 0.0, 1.0)
    pm.Bernoulli("observed", logit_p=x @ weights + bias, observed=y)

# %%
# It becomes a problem, which is trained as any other.
problem = advi_problem(model, {"x": X, "y": Y}, batch_size=100, updates=2000, seed=0)
trainer = problem.minimize(seed=0)
dr.plots.learning_curves(trainer.history)

# %%
# Draws are what ArviZ and PyMC take.
draws = problem.to_inference_data(draws=1000, seed=0)["posterior"]["weights"]
fig, ax = plt.subplots()
for index, name in enumerate(draws.predictor.values):
    ax.hist(draws.sel(predictor=name).values.ravel(), bins=40, alpha=0.6, label=name)
    ax.axvline(slopes[index], color=f"C{index}", linestyle="--")
ax.set_xlabel("weight (dashed: what made the data)")
ax.legend()
plt.show()
