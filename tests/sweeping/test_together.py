"""Runs that go together are those in turns, to rounding; what cannot takes turns, which is said."""

import logging

import numpy as np
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downhill_rms import StopReason, Trainer
from downhill_rms.compiling.modes import REWRITTEN, training_mode
from downhill_rms.sweeping.groups import choose
from tests.compiling.test_random_graphs import LOSSES, OPERATIONS, SHAPES, Symbolic, build
from tests.sweeping.models import OPTIONS, TRAIN, VALID, records, regression, start

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


def test_runs_leave_one_by_one():
    """By patience, divergence and halving; none disturbs the others."""
    given = {"learning_rate": [1e-3, 10.0, 1e160, 0.1], "seeds": 2, "start": start, **OPTIONS}
    one, other = both_ways(regression, **given)
    for run, twin in zip(one.runs, other.runs, strict=True):
        assert run.stop_reason is twin.stop_reason
    assert {run.stop_reason for run in other.runs} >= {StopReason.DIVERGED, StopReason.MAX_EPOCHS}
    del given["learning_rate"]
    one, other = both_ways(regression, learning_rate=[*RATES, 0.02], halve_every=2, **given)
    assert_close(one, other, 1e-9)


def test_the_best_is_in_place_and_its_state_goes_on():
    trainer = regression()
    found = trainer.sweep(TRAIN, VALID, learning_rate=RATES, how="together", **OPTIONS)
    assert trainer.evaluate(VALID)["loss"] == pytest.approx(found.best.best.loss, rel=1e-12)
    trainer.load_state_dict(found.state)
    trainer.minimize(TRAIN, VALID, max_epochs=8, batch_size=9, learning_rate=0.01)
    assert trainer.history[-1].epoch > found.best.history[-1].epoch


def test_a_second_sweep_compiles_nothing(monkeypatch):
    from downhill_rms.compiling import compiled

    trainer = regression()
    given = {"learning_rate": RATES, "how": "together", **OPTIONS}
    first = trainer.sweep(TRAIN, VALID, restore_best=False, **given)

    def build(function):
        raise AssertionError(f"{function.name} is compiled again")

    monkeypatch.setattr(compiled.CompiledFunction, "build", build)
    second = trainer.sweep(TRAIN, VALID, restore_best=False, **given)
    for run, twin in zip(first.runs, second.runs, strict=True):
        assert records(run.history) == records(twin.history)


def dropout():
    return regression(dropout=True)


def sparse():
    x, y = pytensor.sparse.csr_matrix("x", dtype="float64"), pt.vector("y")
    w = pytensor.shared(np.zeros((5, 1)), name="w")
    loss = pt.sqr(pytensor.sparse.structured_dot(x, w)[:, 0] - y).mean()
    return Trainer(loss, [w], [x, y], mode="FAST_COMPILE")


def scanned():
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(5), name="w")
    sums = pytensor.scan(
        lambda row, w: (row * w).sum(), sequences=[x], non_sequences=[w], return_updates=False
    )
    return Trainer(pt.sqr(sums - y).mean(), [w], [x, y], mode="FAST_COMPILE")


@pytest.mark.parametrize(
    ("make", "message"), [(dropout, "generator"), (sparse, "sparse"), (scanned, "Scan")]
)
def test_what_cannot_go_together_takes_turns_and_says_so(make, message, caplog):
    train = TRAIN
    if make is sparse:
        train = [scipy.sparse.csr_matrix(TRAIN[0]), TRAIN[1]]
    given = {"learning_rate": RATES, "max_epochs": 2, "batch_size": 9, "seed": 3}
    with caplog.at_level(logging.WARNING, logger="downhill_rms"):
        found = make().sweep(train, how="together", **given)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "take turns" in lines[0]
    assert message in lines[0]
    expected = make().sweep(train, how="in turns", **given)
    for run, other in zip(found.runs, expected.runs, strict=True):
        assert records(run.history) == records(other.history)


def test_what_is_chosen_is_measured():
    trainer = regression()
    steps = trainer.steps.variant("x")
    members = [None] * 8
    assert choose(steps, members, "together", {}, None, None)
    assert not choose(steps, members, "in turns", {}, None, None)
    assert not choose(steps, members[:3], None, {}, None, None)
    assert not choose(steps, members, "together", {"observe": print}, None, None)
    assert choose(regression("JAX").steps, members, None, {}, None, None)
    assert not choose(regression("tiered").steps, members, None, {}, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["numba", "JAX"])
def test_compiled_together(mode):
    mode = training_mode(REWRITTEN) if mode == "numba" else mode
    given = {"learning_rate": RATES, "seeds": 2, "start": start, "momentum": 0.9, **OPTIONS}

    def make():
        return regression(mode)

    assert_close(*both_ways(make, **given), 1e-9)
    one, other = (
        make().sweep(TRAIN, VALID, how="together", updates_per_call=n, **given) for n in (1, 2)
    )
    assert_close(one, other, 1e-9)
