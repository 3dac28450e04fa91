"""
First steps
===========

.. index::
   single: regression

A line is fitted to noisy data: a loss, the parameters that it depends on, and one call.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr

# %%
# Data are arrays whose first axis counts samples. Here are 500 points, of which the last 100 tell
# when to stop.
rng = np.random.default_rng(0)
X = rng.uniform(-1, 1, size=500)
Y = 3 * X + 2 + 0.3 * rng.normal(size=500)
train, valid = [X[:400], Y[:400]], [X[400:], Y[400:]]

# %%
# A loss is a mean over the samples of a minibatch. What is to be adjusted is in shared variables;
# ``x`` and ``y`` stand for what the data will bring.
x, y = pt.vector("x"), pt.vector("y")
slope, start = pytensor.shared(0.0, name="slope"), pytensor.shared(0.0, name="start")
line = slope * x + start
loss = pt.sqr(line - y).mean()

# %%
# One call trains: minibatches of 32, a validation every other epoch, and an end when three of them
# in a row bring nothing better. The best parameters are left in place.
trainer = dr.Trainer(loss, inputs=[x, y])
trainer.minimize(train, valid, learning_rate=0.01, validate_every=2, patience=3, seed=0)
print(f"slope {slope.get_value():.2f}, start {start.get_value():.2f}")
print(f"validation loss {trainer.best.loss:.3f} at epoch {trainer.best.epoch}")

# %%
# Every epoch left a record; :func:`~downhill_rms.plots.learning_curves` draws them.
dr.plots.learning_curves(trainer.history)

# %%
# :meth:`~downhill_rms.Trainer.predict` computes any expression of the inputs for new samples.
new = np.linspace(-1, 1, 5)
fig, ax = plt.subplots()
ax.plot(X, Y, ".", markersize=3)
ax.plot(new, trainer.predict(line, [new]), linewidth=3)
ax.set_xlabel("x")
ax.set_ylabel("y")
plt.show()
