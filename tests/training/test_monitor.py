"""Runs that are judged by a monitor, and runs that an observer ends."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, StopReason, Trainer

RNG = np.random.default_rng(1)
LABELS = RNG.integers(0, 2, 200)
POINTS = RNG.normal(size=(200, 2)) + 2 * LABELS[:, None]
TRAIN, VALID = [POINTS[:100], LABELS[:100]], [POINTS[100:], LABELS[100:]]


def make(mode, **monitors):
    x, y = pt.matrix("x"), pt.lvector("y")
    w = pytensor.shared(np.zeros(2), name="w")
    b = pytensor.shared(0.0, name="b")
    z = x @ w + b
    loss = (pt.softplus(z) - y * z).mean()
    accuracy = pt.eq(z > 0, y).mean()
    extra = {name: make_monitor(w) for name, make_monitor in monitors.items()}
    return Trainer(loss, inputs=[x, y], monitors={"accuracy": accuracy, **extra}, mode=mode)


def data():
    return Dataset(TRAIN, batch_size=10, rng=0)


def accuracy_of(w, b):
    return ((POINTS[100:] @ w + b > 0) == LABELS[100:]).mean()


def test_the_best_has_the_highest_accuracy_and_is_left_in_place(mode):
    trainer = make(mode)
    options = {"monitor": "accuracy", "higher_is_better": True, "validate_every": 1}
    trainer.minimize(data(), VALID, learning_rate=0.05, patience=3, max_epochs=60, **options)
    validated = [r.valid["accuracy"] for r in trainer.history if r.validated]
    assert trainer.stop_reason is StopReason.PATIENCE
    assert trainer.best.monitors["accuracy"] == max(validated)
    values = trainer.parameters.copy()
    assert accuracy_of(values["w"], values["b"]) == pytest.approx(max(validated), rel=1e-12)
    # Patience counts validations of the accuracy, though the loss may still fall.
    best_at = validated.index(max(validated))
    assert len(validated) - best_at - 1 == 4


def test_a_lower_monitor_is_better_by_default(mode):
    trainer = make(mode, size=lambda w: pt.sqr(w).sum())
    trainer.minimize(data(), VALID, monitor="size", patience=0, validate_every=1, learning_rate=0.1)
    assert trainer.best.update == 0  # it only grows


def test_a_monitor_that_is_not_there_is_an_error_before_training(mode):
    trainer = make(mode)
    with pytest.raises(ValueError, match=r"monitor='acc' is none of .*loss, accuracy"):
        trainer.minimize(data(), VALID, monitor="acc")
    with pytest.raises(TypeError, match="higher_is_better is 'max'"):
        trainer.minimize(data(), VALID, monitor="accuracy", higher_is_better="max")
    assert trainer.update_count == 0


def test_a_monitor_that_is_not_finite_is_an_error_before_training(mode):
    trainer = make(mode, bad=lambda w: pt.log(pt.sqr(w).sum()))
    with pytest.raises(ValueError, match="monitor 'bad' is -inf on valid"):
        trainer.minimize(data(), VALID, monitor="bad")
    assert trainer.update_count == 0


def test_a_run_goes_on_with_its_judge(mode, tmp_path):
    options = {"monitor": "accuracy", "higher_is_better": True, "validate_every": 1}
    whole = make(mode)
    whole.minimize(data(), VALID, max_updates=40, **options)
    first = Checkpoint(tmp_path / "run", every_updates=1)
    make(mode).minimize(data(), VALID, max_updates=25, checkpoint=first, **options)
    again = Checkpoint(tmp_path / "run", every_updates=1)
    with pytest.raises(ValueError, match="judged by monitor='accuracy'"):
        make(mode).minimize(data(), VALID, max_updates=40, checkpoint=again, resume=True)
    resumed = make(mode)
    again = Checkpoint(tmp_path / "run", every_updates=1)
    resumed.minimize(data(), VALID, max_updates=40, checkpoint=again, resume=True, **options)
    assert resumed.best.monitors == whole.best.monitors
    np.testing.assert_array_equal(resumed.parameters.copy()["w"], whole.parameters.copy()["w"])


@pytest.mark.parametrize("validate_every", [1, 10])
def test_an_observer_ends_the_run_with_the_best_in_place(validate_every, mode):
    trainer = make(mode)

    def stop(record):
        return StopReason.OBSERVER if record.epoch == 4 else None

    trainer.minimize(
        data(), VALID, learning_rate=0.1, validate_every=validate_every, observers=[print, stop]
    )
    assert trainer.stop_reason is StopReason.OBSERVER
    assert trainer.epoch_count == 4
    assert trainer.history[-1].validated
    assert trainer.evaluate(VALID)["loss"] == pytest.approx(trainer.best.loss, rel=1e-12)
    assert trainer.best.epoch == 4  # a convex loss that still falls


def test_what_else_an_observer_returns_means_nothing(mode):
    trainer = make(mode)
    seen = []
    trainer.minimize(
        data(), max_epochs=3, observers=[seen.append, lambda record: StopReason.PATIENCE]
    )
    assert trainer.stop_reason is StopReason.MAX_EPOCHS
    assert len(seen) == 3
