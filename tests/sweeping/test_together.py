"""Runs that go together are those in turns, to rounding; what cannot takes turns, which is said."""

import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downhill_rms import Trainer
from tests.compiling.test_random_graphs import LOSSES, OPERATIONS, SHAPES, Symbolic, build
from tests.sweeping.models import TRAIN, VALID

RATES = [1e-4, 1e-3, 0.01]
ROWS = np.array([0, 3, 1, 1])
# Random numbers and scans go in turns.
VECTORISED = sorted(set(OPERATIONS) - {"dropout", "recurrent", "scan of sums", "single"})

graphs = st.tuples(
    st.lists(st.tuples(st.sampled_from(VECTORISED), st.booleans()), min_size=1, max_size=4),
    st.sampled_from(sorted(LOSSES)),
)
rules = st.sampled_from(
    [
        {},
        {"momentum": 0.9, "nesterov": True},
        {"centered": False, "weight_decay": 0.1},
        {"max_global_norm": 0.5, "bias_correction": True},
        {"average": "ema", "average_halflife": 3.0},
    ]
)


def both_ways(make, train=TRAIN, valid=VALID, **given):
    """The same sweep in turns and together."""
    return [make().sweep(train, valid, how=how, **given) for how in ("in turns", "together")]


def assert_close(one, other, tolerance=1e-12):
    """Whether runs are the same to rounding."""
    for run, twin in zip(one.runs, other.runs, strict=True):
        assert run.stop_reason is twin.stop_reason
        assert [r.epoch for r in run.history] == [r.epoch for r in twin.history]
        for a, b in zip(run.history, twin.history, strict=True):
            assert a.updates == b.updates
            for part in ("train", "valid"):
                x, y = (list(getattr(r, part).values()) for r in (a, b))
                np.testing.assert_allclose(y, x, rtol=tolerance, atol=tolerance)
        assert run.best.epoch == twin.best.epoch
        for name, value in run.best.params.items():
            np.testing.assert_allclose(
                twin.best.params[name], value, rtol=tolerance, atol=tolerance
            )


def random_trainer(steps, loss, mode, seed=0):
    """A trainer of a random program, in double precision."""
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    given = {n: pytensor.shared(v, name=n) for n, v in values.items() if n != "x"}
    x = given["x"] = pt.matrix("x")
    given["rows"] = ROWS
    _, value = build(Symbolic, steps, loss, given)
    # So that every parameter counts, whatever the program uses of them.
    value = value + 1e-2 * sum(pt.sqr(given[n]).sum() for n in ("w", "b", "e"))
    return Trainer(value, [given[n] for n in ("w", "b", "e")], [x], mode=mode)


def check_random_graph(graph, rule, mode):
    steps, loss = graph
    x = np.random.default_rng(1).normal(size=(20, 3))
    options = {"batch_size": 4, "max_updates": 50, "seed": 0, "validate_every": 5, "patience": 99}

    def make():
        return random_trainer(steps, loss, mode)

    def starts(rng):
        return {"w": rng.normal(size=(3, 3)), "b": rng.normal(size=3)}

    given = {"learning_rate": [1e-3, 1e-2], "seeds": 2, "start": starts, **rule, **options}
    assert_close(*both_ways(make, [x], None, **given), tolerance=1e-12)


@settings(
    deadline=None,
    max_examples=12,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(graphs, rules)
def test_random_graphs(graph, rule):
    check_random_graph(graph, rule, "FAST_COMPILE")
