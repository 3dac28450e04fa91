"""
Many devices, the numbers of one
================================

JAX divides a minibatch among the devices that it finds.
Here these are four virtual ones, which share the processor: they show that the numbers are the
same.
On a host with several GPUs the first statement is left out.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # before JAX is imported

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr

rng = np.random.default_rng(0)
X = rng.normal(size=(640, 10))
Y = np.sin(X @ rng.normal(size=10) / 3)
start = rng.normal(size=(10, 16)) / 3

x, y = pt.matrix("x"), pt.vector("y")


def train(devices):
    """A small network, trained on some devices."""
    w = pytensor.shared(start, name="w")
    v = pytensor.shared(np.zeros(16), name="v")
    loss = pt.sqr(pt.tanh(x @ w) @ v - y).mean()
    trainer = dr.Trainer(loss, inputs=[x, y], mode="JAX", devices=devices)
    trainer.minimize(
        [X[:512], Y[:512]],
        [X[512:], Y[512:]],
        batch_size=64,
        seed=0,
        learning_rate=0.01,
        max_epochs=20,
        validate_every=1,
    )
    return trainer


# %%
# The same program, on one device and on all.
one, all_of_them = train(None), train("all")

# %%
# Their losses differ by the order in which sums are taken, and by nothing else.
losses = [np.array([r.valid["loss"] for r in t.history]) for t in (one, all_of_them)]
print(f"largest difference: {np.abs(losses[0] - losses[1]).max():.0e}")
plt.plot(losses[0], label="one device", linewidth=4, alpha=0.4)
plt.plot(losses[1], label="all devices", linestyle="--")
plt.xlabel("epoch")
plt.ylabel("validation loss")
plt.legend()
plt.show()
