"""Runs that take turns are to the last bit what they are alone."""

import functools
import math

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from downhill_rms.plateau import reduce_on_plateau
from downhill_rms.schedules import cosine

import downhill_rms
from downhill_rms import Dataset, StopReason, Trainer, loguniform
from downhill_rms.compiling.modes import REWRITTEN, training_mode
from tests.sweeping.models import (
    OPTIONS,
    TRAIN,
    VALID,
    alone,
    assert_same_run,
    assert_same_state,
    records,
    regression,
    start,
)


def swept_and_alone(make, train=TRAIN, valid=VALID, **given):
    """A sweep, each run of which is compared with that run alone."""
    tried = ("learning_rate", "momentum", "rms_halflife", "initial_accumulator", "average")
    options = {n: v for n, v in given.items() if n not in (*tried, "seeds", "start", "minibatches")}
    found = make().sweep(train, valid, how="in turns", **given)
    fixed = {n: v for n, v in given.items() if n in tried and not isinstance(v, list)}
    for run in found.runs:
        if given.get("minibatches") == "seed":
            options["seed"] = run.seed
        trainer = alone(make, run, train, valid, given.get("start"), **fixed, **options)
        assert_same_run(run, trainer)
        if run is found.best:
            assert_same_state(found.state, trainer.state_dict())
    return found


def test_each_run_is_that_of_minimize():
    found = swept_and_alone(
        functools.partial(regression, dropout=True),
        learning_rate=[1e-3, 1e3, 1e160],
        momentum=[0.0, 0.9],
        seeds=2,
        start=start,
        **OPTIONS,
    )
    assert len(found.runs) == 12
    reasons = {run.stop_reason for run in found.runs}
    assert reasons == {StopReason.MAX_EPOCHS, StopReason.PATIENCE, StopReason.DIVERGED}


def test_averages_accumulators_and_many_updates_in_a_call():
    swept_and_alone(
        regression,
        learning_rate=[0.01, 0.1],
        initial_accumulator=[0.0, 2.0],
        average="ema",
        updates_per_call=3,
        monitor="loss",
        **OPTIONS,
    )


def test_schedules_are_tried_too():
    rates = [cosine(0.1, 40), cosine(0.2, 40), 0.1]
    found = swept_and_alone(regression, learning_rate=rates, **OPTIONS)
    assert len({run.best.loss for run in found.runs}) == 3


def test_carried_and_assigned_variables_belong_to_each_run():
    def make():
        x, y = pt.matrix("x"), pt.vector("y")
        w = pytensor.shared(np.zeros(5), name="w")
        state = pytensor.shared(0.0, name="state")
        seen = pytensor.shared(np.float64(0.0), name="seen")
        error = (x @ w + state - y).mean()
        loss = pt.sqr(x @ w + state - y).mean()
        return Trainer(
            loss, [w], [x, y], updates=[(seen, seen + loss)], carried=[(state, error)],
            mode="FAST_COMPILE",
        )  # fmt: skip

    data = Dataset(TRAIN, batch_size=8, shuffle=None)
    options = {n: v for n, v in OPTIONS.items() if n not in ("batch_size", "seed")}
    found = swept_and_alone(make, train=data, learning_rate=[0.01, 0.1], **options)
    assert found.runs[0].best.assigned["seen"] != found.runs[1].best.assigned["seen"]


@pytest.mark.parametrize("iteration_size", [None, 4, 23])
def test_epochs_that_are_no_pass(iteration_size):
    def data():
        return Dataset(TRAIN, batch_size=9, iteration_size=iteration_size, rng=3)

    found = regression().sweep(data(), VALID, learning_rate=[0.01, 0.1], max_updates=31)
    for run in found.runs:
        trainer = alone(regression, run, data(), max_updates=31)
        assert_same_run(run, trainer)


def test_ready_batches_are_the_same_for_all():
    """A callable gives each batch once, and every run sees it."""
    rng, given = np.random.default_rng(0), []

    def batch():
        rows = rng.integers(80, size=8)
        given.append([array[rows] for array in TRAIN])
        return given[-1]

    found = regression().sweep(
        Dataset(batch, iteration_size=5), VALID, learning_rate=[0.01, 0.1], max_epochs=3
    )
    assert len(given) in (15, 16)
    for run in found.runs:
        trainer = alone(regression, run, given[-15:], max_epochs=1)
        losses = [record.train["loss"] for record in run.history]
        assert np.mean(losses) == pytest.approx(trainer.history[0].train["loss"], rel=1e-12)


def test_large_data_are_read_by_each_run(monkeypatch):
    monkeypatch.setattr("downhill_rms.sweeping.minibatches.KEPT", 0)
    swept_and_alone(regression, learning_rate=[0.01, 0.1], **OPTIONS)


def test_each_seed_may_have_an_order_of_its_own():
    options = {n: v for n, v in OPTIONS.items() if n != "seed"}
    found = swept_and_alone(regression, learning_rate=0.05, seeds=2, minibatches="seed", **options)
    assert found.runs[0].best.loss != found.runs[1].best.loss


def test_observers_belong_to_a_run():
    def observe(trainer):
        return [reduce_on_plateau(trainer, patience=0)]

    options = {**OPTIONS, "patience": 8}
    found = regression().sweep(TRAIN, VALID, learning_rate=[0.1, 1.0], observe=observe, **options)
    rates = [[record.learning_rate for record in run.history] for run in found.runs]
    assert min(rates[1]) < 1.0
    for run in found.runs:
        trainer = regression()
        given = {**options, **run.settings, "observers": [reduce_on_plateau(trainer, patience=0)]}
        trainer.minimize(TRAIN, VALID, **given)
        assert_same_run(run, trainer)


def test_the_best_is_in_place_and_training_goes_on_from_its_state():
    trainer = regression()
    trainer.minimize(TRAIN, VALID, max_epochs=1, learning_rate=0.5, seed=0)
    before = (trainer.update_count, len(trainer.history), trainer.stop_reason)
    found = trainer.sweep(TRAIN, VALID, learning_rate=[1e-3, 0.1], **OPTIONS)
    assert (trainer.update_count, len(trainer.history), trainer.stop_reason) == before
    assert found.best.settings == {"learning_rate": 0.1}
    for name, value in found.best.best.params.items():
        np.testing.assert_array_equal(trainer.parameters.copy()[name], value)
    assert trainer.evaluate(VALID)["loss"] == found.best.best.loss
    trainer.set_params({"w": np.zeros(5)})
    trainer.set_params("best")
    assert trainer.evaluate(VALID)["loss"] == found.best.best.loss
    trainer.load_state_dict(found.state)
    assert trainer.update_count == found.best.history[-1].updates


def test_without_the_best_all_is_as_it_was():
    trainer = regression()
    trainer.set_params({"w": np.arange(5.0)})
    trainer.sweep(TRAIN, VALID, learning_rate=[1e-3, 0.1], restore_best=False, **OPTIONS)
    np.testing.assert_array_equal(trainer.parameters.copy()["w"], np.arange(5.0))


def test_an_error_in_the_middle_leaves_all_as_it_was():
    def observe(trainer):
        def fail(record):
            if record.epoch == 2:
                raise OSError("no more")

        return [fail]

    trainer = regression()
    with pytest.raises(OSError, match="no more"):
        trainer.sweep(TRAIN, VALID, learning_rate=[1e-3, 0.1], observe=observe, **OPTIONS)
    np.testing.assert_array_equal(trainer.parameters.copy()["w"], np.zeros(5))
    trainer.minimize(TRAIN, VALID, learning_rate=0.1, **OPTIONS)  # which nothing hinders


def test_one_structure_is_compiled_once(monkeypatch):
    from downhill_rms.compiling import compiled

    built = []
    original = compiled.CompiledFunction.build

    def build(function):
        built.append(function.name)
        return original(function)

    monkeypatch.setattr(compiled.CompiledFunction, "build", build)
    regression().sweep(
        TRAIN, VALID, learning_rate=[1e-3, 1e-2, 0.1], momentum=[0.0, 0.5, 0.9], **OPTIONS
    )
    assert built.count("evaluation") == 1
    assert built.count("RMSProp update") == 2  # with momentum, and without


def test_table_summary_and_frame(tmp_path):
    found = regression().sweep(
        TRAIN, VALID, learning_rate=[1e-3, 0.1, 1e160], seeds=2, start=start, **OPTIONS
    )
    table = found.table()
    losses = [row["best loss"] for row in table]
    assert losses == sorted(losses)
    assert table[0]["run"] == found.best.name
    assert table[0]["learning_rate"] == 0.1
    assert [len(found.runs[int(row["run"])].history) for row in table] == [
        row["epochs"] for row in table
    ]
    frame = found.to_pandas()
    assert list(frame.columns) == list(table[0])
    assert frame["best loss"].tolist() == losses
    summary = found.summary()
    assert summary[0]["learning_rate"] == 0.1
    two = [run.best.loss for run in found.runs if run.settings == {"learning_rate": 0.1}]
    assert summary[0]["mean loss"] == pytest.approx(np.mean(two))
    assert summary[0]["spread"] == pytest.approx(np.std(two, ddof=1))
    assert next(row for row in summary if row["learning_rate"] == 1e160)["diverged"] == 2
    found.to_csv(tmp_path / "sweep.csv")
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 7
    assert "best loss" in repr(found)


def test_a_monitor_that_rises_judges():
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(5), name="w")
    loss = pt.sqr(x @ w - y).mean()
    trainer = Trainer(loss, [w], [x, y], monitors={"fit": -loss}, mode="FAST_COMPILE")
    judged = {"monitor": "fit", "higher_is_better": True}
    found = trainer.sweep(TRAIN, VALID, learning_rate=[1e-3, 0.1], **judged, **OPTIONS)
    assert found.best.settings == {"learning_rate": 0.1}
    fits = [row["best fit"] for row in found.table()]
    assert fits == sorted(fits, reverse=True)


def test_halving_keeps_the_better_half():
    options = {**OPTIONS, "patience": math.inf, "max_epochs": 9}
    rates = [1e-4, 1e-3, 1e-2, 0.1, 0.2]
    full = regression().sweep(TRAIN, VALID, learning_rate=rates, **options)
    found = regression().sweep(TRAIN, VALID, learning_rate=rates, halve_every=3, **options)
    lengths = sorted(len(run.history) for run in found.runs)
    assert lengths == [3, 3, 6, 9, 9]
    for run, whole in zip(found.runs, full.runs, strict=True):
        assert records(run.history) == records(whole.history)[: len(run.history)]
        assert (run.stop_reason is StopReason.HALVED) == (len(run.history) < 9)
    at = {run.settings["learning_rate"]: run.history[2].valid["loss"] for run in full.runs}
    out = [run.settings["learning_rate"] for run in found.runs if len(run.history) == 3]
    assert sorted(out) == sorted(sorted(at, key=at.get)[3:])


def test_a_run_that_diverges_leaves_the_others():
    found = regression().sweep(TRAIN, VALID, learning_rate=[1e160, 0.1], **OPTIONS)
    assert found.runs[0].stop_reason is StopReason.DIVERGED
    assert found.runs[0].divergence is not None
    assert len(found.runs[1].history) == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": [0.1]}, "learning_rate"),
        ({"learning_rate": []}, "empty"),
        ({"learning_rate": [0.1, -1.0]}, "learning_rate"),
        ({"momentum": [0.0, 1.5]}, "momentum"),
        ({"learning_rate": [0.1], "seeds": 3}, "nothing depends on them"),
        ({"learning_rate": [0.1], "start": start}, "without seeds="),
        ({"learning_rate": [0.1], "start": 3, "seeds": 2}, "start is 3"),
        ({"learning_rate": [0.1], "how": "both"}, "how"),
        ({"learning_rate": [0.1], "minibatches": "own"}, "minibatches"),
        ({"learning_rate": [0.1], "minibatches": "seed"}, "without seeds="),
        ({"learning_rate": [0.1], "halve_every": 3}, "multiple of validate_every"),
        ({"learning_rate": [0.1], "on_divergence": "raise"}, "on_divergence"),
        ({"learning_rate": [0.1], "resume": True}, "run_directory"),
        ({"learning_rate": [0.1], "checkpoint": "here"}, "checkpoint"),
        ({"learning_rate": [0.1], "observers": []}, "observers"),
        ({"learning_rate": [0.1], "monitor": "accuracy"}, "accuracy"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(given, message):
    trainer = regression()
    with pytest.raises((TypeError, ValueError), match=message):
        trainer.sweep(TRAIN, VALID, **given)
    assert trainer.steps._evaluation.function is None


def test_a_start_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="shape"):
        regression().sweep(
            TRAIN, VALID, learning_rate=[0.1], seeds=2, start=lambda rng: {"w": rng.normal(size=4)}
        )


def test_the_function_makes_the_trainer():
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    rates = loguniform(1e-3, 1e-1)
    options = {"learning_rate": rates, "sample": 4, "seed": 1, "max_epochs": 20}
    loss = pt.sqr(x - w).mean()
    found = downhill_rms.sweep(loss, [np.ones(64)], mode="FAST_COMPILE", **options)
    assert len({run.settings["learning_rate"] for run in found.runs}) == 4
    assert float(w.get_value()) == found.best.best.params["w"]
    again = downhill_rms.sweep(loss, [np.ones(64)], mode="FAST_COMPILE", **options)
    assert [run.settings for run in again.runs] == [run.settings for run in found.runs]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["numba", "JAX"])
@pytest.mark.filterwarnings("ignore:The RandomType SharedVariables")
def test_compiled_runs_are_those_of_minimize(mode):
    mode = training_mode(REWRITTEN) if mode == "numba" else mode
    swept_and_alone(
        functools.partial(regression, mode, dropout=True),
        learning_rate=[1e-3, 0.1],
        seeds=2,
        start=start,
        momentum=0.9,
        **OPTIONS,
    )


@pytest.mark.slow
def test_tiered_runs_begin_at_once():
    found = regression("tiered").sweep(TRAIN, VALID, learning_rate=[1e-3, 0.1], **OPTIONS)
    expected = regression().sweep(TRAIN, VALID, learning_rate=[1e-3, 0.1], **OPTIONS)
    for run, other in zip(found.runs, expected.runs, strict=True):
        assert run.best.loss == pytest.approx(other.best.loss, rel=1e-9)
