"""
What update_ratio and at_floor tell
===================================

Two figures for each parameter say whether the learning rate and the regularizer fit, before the
loss does. Both are outputs of the compiled update: ask for them with ``monitor_updates=True``.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

import downhill_rms as dr

# %%
# A regression whose features differ in scale: the third is a hundred times smaller than the
# others, and the fourth is always 0, so that its weight has no gradient.
rng = np.random.default_rng(0)
X = rng.normal(size=(400, 4)) * [1, 1, 0.01, 0]
Y = X @ [1.0, 2.0, 3.0, 4.0] + 6 + 0.1 * rng.normal(size=400)

x, y = pt.matrix("x"), pt.vector("y")


def run(**hyperparameters):
    """A trainer after 40 epochs from the same start."""
    w, b = pytensor.shared(np.ones(4), name="w"), pytensor.shared(1.0, name="b")
    trainer = dr.Trainer(pt.sqr(x @ w + b - y).mean(), inputs=[x, y], monitor_updates=True)
    trainer.minimize(
        [X, Y], max_epochs=40, validate_every=10, patience=np.inf, seed=0, **hyperparameters
    )
    return trainer


# %%
# ``update_ratio(w)`` is the size of one update beside that of ``w``. About 1e-3 is usual for the
# weights of a network. Far above, parameters jump about; far below, they stand still.
for rate in (1e-5, 1e-3, 1e-1):
    last = run(learning_rate=rate).history[-1].train
    ratio = last["update_ratio(w)"]
    print(f"learning rate {rate:.0e}: update_ratio {ratio:.0e}, loss {last['loss']:.3g}")

# %%
# ``at_floor(w)`` is the share of coordinates whose variance is below the regularizer. There the
# rule is plain gradient descent: the fourth weight is always at the floor, the third with a large
# regularizer too, and with a far too large one all are.
for regularizer in (1e-8, 1e-5, 1e-1):
    last = run(learning_rate=1e-2, rms_regularizer=regularizer).history[-1].train
    print(f"regularizer {regularizer:.0e}: at_floor {last['at_floor(w)']:.2f}")

# %%
# :func:`~downhill_rms.plots.update_ratios` draws both over a run.
dr.plots.update_ratios(run(learning_rate=1e-2, rms_regularizer=1e-5).history)
