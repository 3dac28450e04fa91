"""
Matrix factorisation
====================

A matrix is approximated by a product of two thin ones, of which one is to be sparse: any loss that
can be written down can be minimised, and a penalty is one more term of it.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr

ROWS, COLUMNS, RANK = 30, 20, 3

rng = np.random.default_rng(0)
sparse = rng.normal(size=(ROWS, RANK)) * (rng.random((ROWS, RANK)) < 0.4)
given = sparse @ rng.normal(size=(RANK, COLUMNS)) + 0.05 * rng.normal(size=(ROWS, COLUMNS))

# %%
# The absolute values of ``u`` and the squares of ``v`` keep each in its place: without the second
# one, ``v`` would grow to make ``u`` small.
z = pt.matrix("z")
u = pytensor.shared(rng.normal(size=(ROWS, RANK)), name="u")
v = pytensor.shared(rng.normal(size=(RANK, COLUMNS)), name="v")
error = pt.sqr(z - u @ v).mean()
loss = error + 0.05 * abs(u).mean() + 0.01 * pt.sqr(v).mean()

# %%
# All rows make one minibatch, since each belongs to a row of ``u``. The learning rate falls to 0,
# so that parameters come to rest.
monitors = {"error": error, "|u|<0.05": (abs(u) < 0.05).mean()}
trainer = dr.Trainer(loss, inputs=[z], monitors=monitors)
train, _ = trainer.minimize(
    [given],
    batch_size=ROWS,
    max_updates=1000,
    validate_every=100,
    learning_rate=dr.schedules.cosine(0.02, 1000),
    rms_regularizer=1e-6,
)
print({name: round(float(value), 4) for name, value in train.items()})

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.5), layout="constrained")
for ax, matrix, title in zip(
    axes,
    (given, u.get_value() @ v.get_value(), u.get_value()),
    ("given", "u @ v", "u"),
    strict=True,
):
    ax.imshow(matrix, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    ax.set_title(title)
plt.show()
