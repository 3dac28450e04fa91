"""Small models that sweeps train, and the runs that they are compared with."""

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms import Trainer
from downhill_rms.sweeping.members import seeded

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 5))
Y = X @ np.arange(5.0) + 1
TRAIN, VALID = [X[:80], Y[:80]], [X[80:], Y[80:]]
OPTIONS = {"batch_size": 9, "max_epochs": 6, "validate_every": 1, "patience": 2, "seed": 3}


def regression(mode="FAST_COMPILE", dropout=False, **definition):
    """A trainer of a linear regression, with dropout or without."""
    x, y = pt.matrix("x"), pt.vector("y")
    w, b = pytensor.shared(np.zeros(5), name="w"), pytensor.shared(0.0, name="b")
    features = x
    if dropout:
        _, mask = pt.random.shared_rng(seed=1, name="dropout").bernoulli(0.8, size=x.shape)
        features = x * mask
    return Trainer(pt.sqr(features @ w + b - y).mean(), inputs=[x, y], mode=mode, **definition)


def start(rng):
    """Parameters that a seed starts with."""
    return {"w": rng.normal(size=5)}


def alone(make, run, train=TRAIN, valid=VALID, starts=start, **options):
    """A trainer that has made one run of a sweep by itself, through ``minimize``."""
    trainer = make()
    if run.seed is not None:
        if starts is not None:
            trainer.set_params(starts(np.random.default_rng(run.seed)))
        generators = enumerate(trainer.steps.generators.items())
        trainer.steps.set_generators({n: seeded(v, run.seed, i) for i, (n, v) in generators})
    trainer.minimize(train, valid, **run.settings, **options)
    return trainer


def records(history):
    """A history without the clock; NaN equals itself."""
    return [
        (r.epoch, r.updates, repr(r.train), repr(r.valid), r.validated, r.best, r.learning_rate)
        for r in history
    ]


def assert_same_run(run, trainer):
    """Whether a swept run is that of a trainer, to the last bit."""
    assert records(run.history) == records(trainer.history)
    assert run.stop_reason is trainer.stop_reason
    assert run.divergence == trainer.divergence
    for found, expected in (
        (run.best.params, trainer.best.params),
        (run.best.assigned, trainer.best.assigned),
    ):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def assert_same_state(state, expected):
    """Whether two states are equal but for the clock."""
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        if name != "history":
            np.testing.assert_array_equal(state[name], value, err_msg=name)
