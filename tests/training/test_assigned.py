"""Variables that the user's updates assign are state: saved, restored, part of the best."""

import math

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, StopReason, Trainer
from downhill_rms.saving import read_checkpoint, read_state
from tests.training.test_resume import DATA, TARGET, StopAfter, assert_equal, data, outcome

OPTIONS = {"learning_rate": 0.05, "rms_regularizer": 1.0, "max_epochs": 3, "validate_every": 1}


def make(mode):
    """A regression on inputs that running statistics centre, with a counter and an EMA."""
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    count = pytensor.shared(0, name="count")
    ema = pytensor.shared(np.zeros(3), name="ema")
    mean = pytensor.shared(np.zeros(3), name="mean")
    loss = pt.sqr((x - mean) @ w - y).mean()
    updates = [(count, count + 1), (ema, 0.9 * ema + 0.1 * w), (mean, 0.9 * mean + 0.1 * x.mean(0))]
    return Trainer(loss, params=[w], inputs=[x, y], updates=updates, mode=mode)


def assigned(trainer):
    return {v.name: np.array(v.get_value()) for v, _ in trainer.graph.updates}


def test_they_are_in_the_state(mode):
    trainer = make(mode)
    trainer.minimize(data(), restore_best=False, **OPTIONS)
    state = trainer.state_dict()
    assert state["assigned/count"] == 12
    for name, value in assigned(trainer).items():
        np.testing.assert_array_equal(state[f"assigned/{name}"], value)
    other = make(mode)
    other.load_state_dict(state)
    assert assigned(other)["count"] == 12
    assert_equal(outcome(other), outcome(trainer))


@pytest.mark.parametrize("updates", [1, 5, 8])
def test_a_resumed_run_has_the_whole_runs_values(updates, mode, monkeypatch, tmp_path):
    """A counter that began anew would end below 12."""
    whole, halves, other = make(mode), make(mode), make(mode)
    whole.minimize(data(), restore_best=False, **OPTIONS)
    dataset = data()
    options = OPTIONS | {"restore_best": False, "resume": True}
    with monkeypatch.context() as patch:
        StopAfter(dataset, patch, updates)
        halves.minimize(dataset, checkpoint=Checkpoint(tmp_path), **options)
    assert halves.update_count == assigned(halves)["count"] == updates
    other.minimize(data(), checkpoint=Checkpoint(tmp_path), **options)
    assert assigned(other)["count"] == 12
    assert_equal(outcome(other), outcome(whole))


def test_the_best_are_put_back_with_the_parameters(mode):
    """Each validation after the first is made worse, so that the first stays the best."""
    trainer = make(mode)
    for _ in trainer.iterate(data(), **OPTIONS | {"learning_rate": 1e-9}):
        if trainer.epoch_count == 1:
            best = trainer.parameters.copy()["w"], assigned(trainer)
            trainer.parameters.set([np.full(3, 50.0)])
    assert trainer.best.epoch == 1
    assert assigned(trainer)["count"] == best[1]["count"] == trainer.best.assigned["count"] == 4
    for name, value in best[1].items():
        np.testing.assert_array_equal(assigned(trainer)[name], value)
    np.testing.assert_array_equal(trainer.parameters.copy()["w"], best[0])


def test_set_params_best_puts_them_back_too(mode):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    values = assigned(trainer)
    trainer.step([DATA, TARGET])
    assert assigned(trainer)["count"] == values["count"] + 1
    trainer.set_params("best")
    for name, value in values.items():
        np.testing.assert_array_equal(assigned(trainer)[name], value)


def test_the_best_on_disk_has_them(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    best = read_state(tmp_path / "best.npz")
    assert best["assigned/count"] == best["best/assigned/count"] == best["best/update"]
    newest = read_checkpoint(Checkpoint(tmp_path).steps()[-1])
    other = make(mode)
    other.load_state_dict(newest)
    other.set_params("best")
    assert assigned(other)["count"] == best["best/update"]


def diverging(mode, start=0.0):
    """A statistic that the loss does not need, and that becomes NaN at a NaN of the second input"""
    x, z = pt.vector("x"), pt.vector("z")
    w = pytensor.shared(1.0, name="w")
    ema = pytensor.shared(start, name="ema")
    updates = [(ema, pt.minimum(ema, z.mean()))]
    return Trainer(pt.sqr(x - w).mean(), params=[w], inputs=[x, z], updates=updates, mode=mode)


def batches(*spoilt):
    calls = []

    def give():
        calls.append(1)
        return [np.ones(4), np.full(4, math.nan if len(calls) in spoilt else 1.0)]

    return Dataset(give, iteration_size=4)


def test_a_nan_in_them_is_a_divergence_and_enters_no_checkpoint(mode, tmp_path):
    trainer = diverging(mode)
    judge = [np.ones(4), np.ones(4)]
    options = {"max_epochs": 3, "validate_every": 1}
    trainer.minimize(batches(6), judge, checkpoint=Checkpoint(tmp_path), **options)
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.divergence.found == ("1 of 1 values of variable 'ema' are not finite",)
    assert [path.name for path in Checkpoint(tmp_path).steps()] == ["step-000000004.npz"]
    assert np.isfinite(trainer.state_dict()["assigned/ema"])


def test_one_that_begins_infinite_is_no_divergence(mode):
    """A running minimum begins at infinity."""
    trainer = diverging(mode, start=math.inf)
    trainer.minimize(batches(), [np.ones(4), np.ones(4)], max_epochs=2, validate_every=1)
    assert trainer.stop_reason is StopReason.MAX_EPOCHS


def test_a_rollback_returns_them_too(mode, tmp_path):
    trainer, calls = make(mode), []

    def spoilt():
        calls.append(1)
        return [DATA * (math.nan if len(calls) == 7 else 1), TARGET]

    trainer.minimize(
        Dataset(spoilt, iteration_size=4),
        [DATA, TARGET],
        checkpoint=Checkpoint(tmp_path, every_updates=2),
        on_divergence="rollback",
        restore_best=False,
        **OPTIONS,
    )
    assert trainer.stop_reason is StopReason.MAX_EPOCHS
    assert trainer.update_count == assigned(trainer)["count"] == 12
    assert np.isfinite(assigned(trainer)["mean"]).all()


def test_a_first_update_that_is_taken_back_leaves_them(mode):
    trainer = make(mode)
    with pytest.raises(ValueError, match="finite before training starts"):
        trainer.step([DATA * math.nan, TARGET])
    assert assigned(trainer)["count"] == 0
    np.testing.assert_array_equal(assigned(trainer)["mean"], 0)


def test_a_guilty_minibatch_is_replayed_with_the_values_before_it(mode, tmp_path):
    trainer, calls = make(mode), []

    def spoilt():
        calls.append(1)
        return [DATA * (math.nan if len(calls) == 7 else 1), TARGET]

    dataset = Dataset(spoilt, iteration_size=4)
    options = OPTIONS | {"checkpoint": Checkpoint(tmp_path), "save_batch": True}
    trainer.minimize(dataset, [DATA, TARGET], **options)
    state = read_state(tmp_path / "diverged-000000007.npz")
    assert state["assigned/count"] == 6
    assert np.isfinite(state["assigned/mean"]).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("assigned/ema", np.zeros(4), r"assigned/ema is \(4,\)"),
        ("assigned/ema", np.zeros(3, dtype="float32"), "float32 instead of .* float64"),
        ("assigned/other", np.zeros(3), "assigned/other is unknown"),
        ("assigned/ema", None, "assigned/ema is missing"),
        ("best/assigned/ema", None, "best/assigned/ema is missing"),
    ],
)
def test_others_than_the_states_are_refused(field, value, message, mode):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    state = trainer.state_dict() | {field: value}
    if value is None:
        del state[field]
    other = make(mode)
    before = outcome(other)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    assert_equal(outcome(other), before)


def test_a_variable_that_cannot_be_saved_is_refused_before_training():
    sparse = pytest.importorskip("pytensor.sparse")
    scipy_sparse = pytest.importorskip("scipy.sparse")
    total = pytensor.shared(scipy_sparse.eye(2, format="csr"), name="total")
    w = pytensor.shared(1.0, name="w")
    with pytest.raises(TypeError, match="updates assigns 'total'.*dense array"):
        Trainer(pt.sqr(w), updates=[(total, sparse.add(total, total))])


def test_a_state_of_release_0_1_loads_with_a_warning_that_names_what_it_lacks(mode):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    state = as_in_release_0_1(trainer.state_dict())
    other = make(mode)
    other.step([DATA, TARGET])
    with pytest.warns(UserWarning, match=r"lacks .*assigned/count, assigned/ema, assigned/mean"):
        other.load_state_dict(state)
    assert other.update_count == 12
    assert assigned(other)["count"] == 1  # as it was
    np.testing.assert_array_equal(other.best.params["w"], trainer.best.params["w"])


def as_in_release_0_1(state):
    """A state without what later releases added."""
    import json

    signature = json.loads(state["signature"])
    signature.pop("assigned")
    added = ("assigned/", "fingerprint", "run/monitor", "run/higher_is_better", "average")
    kept = {n: v for n, v in state.items() if not any(name in n for name in added)}
    return kept | {"signature": json.dumps(signature)}
