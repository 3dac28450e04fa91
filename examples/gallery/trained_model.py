"""
Using the trained model
=======================

Predictions for new data, the parameters in a file, and the same model in another program.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr

rng = np.random.default_rng(0)
labels = rng.integers(0, 3, size=600)
centres = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
points = centres[labels] + rng.normal(size=(600, 2))

# %%
# A model is a function that makes its expressions, so that another program can make them too.


def model():
    """The input, its three probabilities, and the parameters."""
    x = pt.matrix("x")
    w = pytensor.shared(np.zeros((2, 3)), name="w")
    b = pytensor.shared(np.zeros(3), name="b")
    return x, pt.special.softmax(x @ w + b, axis=1), [w, b]


x, probabilities, params = model()
y = pt.lvector("y")
loss = -pt.log(probabilities)[pt.arange(y.shape[0]), y].mean()
trainer = dr.Trainer(loss, inputs=[x, y], params=params)
trainer.minimize([points, labels], learning_rate=0.02, max_epochs=20, seed=0)

# %%
# :meth:`~downhill_rms.Trainer.predict` takes any expression, and only the inputs that it
# needs: no labels here.
print(trainer.predict(probabilities, [points[:3]]).round(3), labels[:3])

# %%
# The file holds the parameters by their names, and nothing that could run. In the other program
# the loss and its data are not needed; a trainer of any expression of the parameters loads them.
path = Path(tempfile.mkdtemp()) / "model.npz"
trainer.save_parameters(path)

x, probabilities, params = model()
loaded = dr.Trainer(pt.log(probabilities).mean(), inputs=[x], params=params)
loaded.load_parameters(path)

# %%
side = np.linspace(-5, 5, 200)
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
regions = loaded.predict(probabilities.argmax(axis=1), [grid]).reshape(200, 200)
fig, ax = plt.subplots(figsize=(5, 5))
ax.contourf(side, side, regions, levels=[-0.5, 0.5, 1.5, 2.5], alpha=0.3)
ax.scatter(*points.T, c=labels, s=6)
ax.set_title("what the loaded model predicts")
plt.show()
