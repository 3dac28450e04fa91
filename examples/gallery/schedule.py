"""
A learning rate schedule
========================

RMSProp's steps do not become smaller near a minimum: each gradient is divided by its own size.
With a fixed learning rate the parameters go on moving; with one that falls, they come to rest.
"""

import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr

UPDATES = 1000

rng = np.random.default_rng(0)
X = rng.normal(size=(640, 10))
Y = X @ rng.normal(size=10) + 0.5 * rng.normal(size=640)

x, y = pt.matrix("x"), pt.vector("y")
w = pytensor.shared(np.zeros(10), name="w")
loss = pt.sqr(x @ w - y).mean()

# %%
# A schedule is a function of the update count, or one of those in
# ``downhill_rms.schedules``: ``cosine``, ``exponential``, ``inverse_sqrt``, ``linear_warmup``,
# ``one_cycle`` and ``piecewise``.
rates = {
    "fixed": 0.03,
    "cosine": dr.schedules.cosine(0.03, UPDATES),
    "one cycle": dr.schedules.one_cycle(0.03, UPDATES),
    "own": lambda t: 0.03 / (1 + t / 100),
}

# %%
# The best loss that there is comes from least squares; what is drawn is the distance to it.
best = pt.sqr(X @ np.linalg.lstsq(X, Y, rcond=None)[0] - Y).mean().eval()
fig, (above, below) = plt.subplots(2, figsize=(7, 6), sharex=True, layout="constrained")
for name, rate in rates.items():
    w.set_value(np.zeros(10))
    trainer = dr.Trainer(loss, inputs=[x, y])
    trainer.minimize(
        [X, Y],
        [X, Y],
        validate_every=1,
        patience=np.inf,
        max_updates=UPDATES,
        seed=0,
        learning_rate=rate,
        restore_best=False,
    )
    distance = [record.valid["loss"] - best for record in trainer.history]
    updates = [record.updates for record in trainer.history]
    above.semilogy(updates, distance, label=name)
    below.plot(updates, [record.learning_rate for record in trainer.history])
    print(f"{name:<10} ends {distance[-1]:.1e} above the least")
above.set_ylabel("loss above the least")
above.legend()
below.set_ylabel("learning rate")
below.set_xlabel("updates")
plt.show()
