"""Training with checkpoints: exact resume, real kills, rollback, and what is refused."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Checkpoint, Dataset, StopReason, Trainer
from downhill_rms.saving.statefile import CheckpointError, read_state
from downhill_rms.watching import History
from tests.reliability import full_disk
from tests.training.test_assigned import make as make_assigned
from tests.training.test_resume import (
    DATA,
    OPTIONS,
    TARGET,
    assert_equal,
    data,
    make,
    outcome,
    whole_run,
)

ROOT = Path(__file__).parents[2]


def every_epoch(directory, **options):
    return Checkpoint(directory, every_epochs=1, **options)


def test_resume_from_each_file_of_a_run(mode, tmp_path):
    """With a checkpoint at every update, each is a place to go on from."""
    expected = whole_run(mode)
    trainer = make(mode)
    checkpoint = Checkpoint(tmp_path / "run", every_updates=1, keep=100)
    trainer.minimize(data(), checkpoint=checkpoint, **OPTIONS)
    assert_equal(outcome(trainer), expected)
    files = checkpoint.steps()
    assert [f.name for f in files] == [f"step-{n:09d}.npz" for n in range(1, 13)]
    for file in files:
        directory = tmp_path / file.stem
        directory.mkdir()
        for copied in (file, file.with_name("journal-1.jsonl")):
            (directory / copied.name).write_bytes(copied.read_bytes())
        other = make(mode)
        other.minimize(data(), checkpoint=Checkpoint(directory), resume=True, **OPTIONS)
        assert_equal(outcome(other), expected)


def test_only_the_newest_are_kept_and_the_best_besides(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(data(), checkpoint=every_epoch(tmp_path, keep=2), **OPTIONS)
    names = sorted(path.name for path in tmp_path.iterdir())
    steps = ["step-000000008.npz", "step-000000012.npz"]
    assert names == ["best.npz", "journal-1.jsonl", "lock", *steps]
    best = read_state(tmp_path / "best.npz")
    np.testing.assert_array_equal(best["param/w"], trainer.best.params["w"])


def test_a_checkpoint_does_not_grow_with_the_epochs(mode, tmp_path):
    sizes = {}
    for epochs in (2, 40):
        directory = tmp_path / str(epochs)
        trainer, checkpoint = make(mode), Checkpoint(directory, every_epochs=1)
        options = OPTIONS | {"max_epochs": epochs, "patience": math.inf}
        trainer.minimize(data(), checkpoint=checkpoint, **options)
        sizes[epochs] = checkpoint.steps()[-1].stat().st_size
        loaded = make(mode)
        loaded.load(checkpoint.steps()[-1])
        assert list(loaded.history) == list(trainer.history)
        assert History.from_jsonl(directory / "journal-1.jsonl") == trainer.history
    assert sizes[40] - sizes[2] < 20  # digits of the counts


def test_the_best_is_written_with_the_steps_and_at_the_end(mode, tmp_path, monkeypatch):
    written, replace = [], os.replace

    def noted(source, target):
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    trainer = make(mode)
    options = OPTIONS | {"max_epochs": 5, "patience": math.inf}
    trainer.minimize(data(), checkpoint=Checkpoint(tmp_path, every_epochs=4), **options)
    bests = [record.epoch for record in trainer.history if record.best]
    again = ["best.npz"] if max(bests) > 4 else []
    assert written == ["best.npz", "step-000000016.npz", *again, "step-000000020.npz"]
    assert len(bests) + 1 > len(again) + 1  # the validation before the first update is one, too
    best = make(mode)
    best.load(tmp_path / "best.npz")
    np.testing.assert_array_equal(best.parameters.copy()["w"], trainer.best.params["w"])
    assert (best.update_count, best.epoch_count) == (trainer.best.update, trainer.best.epoch)
    assert list(best.history) == list(trainer.history)[: len(best.history)]


def test_a_run_that_diverges_leaves_its_best(mode, tmp_path):
    trainer = make(mode)
    checkpoint = Checkpoint(tmp_path, every_epochs=1000)
    trainer.minimize(Spoilt(10), [DATA, TARGET], checkpoint=checkpoint, **OPTIONS)
    assert trainer.stop_reason is StopReason.DIVERGED
    best = make(mode)
    best.load(tmp_path / "best.npz")
    np.testing.assert_array_equal(best.parameters.copy()["w"], trainer.best.params["w"])


def test_a_moved_checkpoint_goes_on_without_its_history(mode, tmp_path):
    trainer, checkpoint = make(mode), every_epoch(tmp_path / "run")
    trainer.minimize(data(), checkpoint=checkpoint, **OPTIONS | {"max_epochs": 2})
    moved = tmp_path / "moved"
    moved.mkdir()
    newest = checkpoint.steps()[-1]
    newest.rename(moved / newest.name)
    other = make(mode)
    with pytest.warns(UserWarning, match="is not beside .*whose history it holds"):
        other.minimize(data(), checkpoint=every_epoch(moved), resume=True, **OPTIONS)
    assert [record.epoch for record in other.history] == [3]
    expected = whole_run(mode)
    np.testing.assert_array_equal(other.parameters.copy()["w"], expected["param/w"])


def test_resume_begins_where_there_is_nothing(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(data(), checkpoint=Checkpoint(tmp_path / "new"), resume=True, **OPTIONS)
    assert_equal(outcome(trainer), whole_run(mode))


def test_a_run_that_was_finished_is_not_run_again(mode, tmp_path):
    trainer = make(mode)
    values = trainer.minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    other = make(mode)
    again = other.minimize(data(), checkpoint=Checkpoint(tmp_path), resume=True, **OPTIONS)
    assert again == values
    assert other.stop_reason is StopReason.MAX_EPOCHS
    assert other.update_count == 12


def test_a_finished_run_can_be_prolonged(mode, tmp_path):
    whole = make(mode)
    whole.minimize(data(), **OPTIONS | {"max_epochs": 5})
    trainer = make(mode)
    trainer.minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    other = make(mode)
    options = OPTIONS | {"max_epochs": 5}
    other.minimize(data(), checkpoint=Checkpoint(tmp_path), resume=True, **options)
    np.testing.assert_array_equal(other.parameters.copy()["w"], whole.parameters.copy()["w"])


def test_a_directory_with_checkpoints_is_not_overwritten(mode, tmp_path):
    make(mode).minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    before = sorted(path.read_bytes() for path in tmp_path.glob("*.npz"))
    with pytest.raises(CheckpointError, match="resume=True"):
        make(mode).minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    assert sorted(path.read_bytes() for path in tmp_path.glob("*.npz")) == before


def test_a_damaged_newest_is_passed_over_with_a_warning(mode, tmp_path):
    make(mode).minimize(data(), checkpoint=every_epoch(tmp_path), **OPTIONS)
    newest = tmp_path / "step-000000012.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    other = make(mode)
    with pytest.warns(UserWarning, match="passed over.*step-000000012"):
        other.minimize(data(), checkpoint=Checkpoint(tmp_path), resume=True, **OPTIONS)
    assert_equal(outcome(other), whole_run(mode))


@pytest.mark.filterwarnings("ignore:A damaged checkpoint")
def test_if_none_verifies_nothing_starts_again_silently(mode, tmp_path):
    make(mode).minimize(data(), checkpoint=every_epoch(tmp_path), **OPTIONS)
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"")
    trainer = make(mode)
    with pytest.raises(CheckpointError, match="None of 3"):
        trainer.minimize(data(), checkpoint=Checkpoint(tmp_path), resume=True, **OPTIONS)
    assert trainer.update_count == 0


def test_another_rule_is_refused_and_another_number_taken(mode, tmp_path):
    make(mode).minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    other = make(mode)
    options = OPTIONS | {"max_epochs": 4}
    with pytest.raises(ValueError, match="nesterov was True and is False"):
        other.minimize(
            data(), checkpoint=Checkpoint(tmp_path), resume=True, **options | {"nesterov": False}
        )
    assert other.update_count == 0
    options["learning_rate"] = 0.01
    other.minimize(data(), checkpoint=Checkpoint(tmp_path), resume=True, **options)
    assert other.hyperparameters.learning_rate == 0.01
    assert other.update_count == 16


def test_another_model_is_refused(mode, tmp_path):
    make(mode).minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    v = pytensor.shared(np.zeros(3), name="v")
    x, y = pt.matrix("x"), pt.vector("y")
    other = Trainer(pt.sqr(x @ v - y).mean(), inputs=[x, y], mode=mode)
    with pytest.raises(ValueError, match="param/v is missing.*param/w is unknown"):
        other.minimize(data(), checkpoint=Checkpoint(tmp_path), resume=True)
    np.testing.assert_array_equal(v.get_value(), 0)


def test_other_training_data_are_refused_before_anything_is_taken_up(mode, tmp_path):
    make(mode).minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS)
    other = make(mode)
    with pytest.raises(ValueError, match="n_samples is 20 instead of 26"):
        other.minimize(
            Dataset([DATA[:20], TARGET[:20]], batch_size=8),
            checkpoint=Checkpoint(tmp_path),
            resume=True,
            **OPTIONS,
        )
    assert other.update_count == 0
    np.testing.assert_array_equal(other.parameters.copy()["w"], 0)
    assert other.best is None


def test_a_run_goes_on_from_its_best_file(mode, tmp_path):
    """It is written before the record of its epoch."""
    trainer = make(mode)
    trainer.minimize(data(), checkpoint=Checkpoint(tmp_path), **OPTIONS | {"max_epochs": 1})
    other = make(mode)
    other.load(tmp_path / "best.npz")
    assert other.update_count == 4
    other.minimize(data(), **OPTIONS)
    assert other.update_count == 12


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"resume": True}, "resume"),
        ({"save_batch": True}, "save_batch"),
        ({"on_divergence": "rollback"}, "rollback"),
    ],
)
def test_options_that_need_checkpoints(options, name, mode):
    with pytest.raises(ValueError, match=f"{name}.* is given without checkpoint="):
        make(mode).iterate(data(), **options)


def test_save_and_load_a_file(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    trainer.save(tmp_path / "model.npz")
    other = make(mode)
    other.load(tmp_path / "model.npz")
    assert_equal(outcome(other), outcome(trainer))
    with pytest.raises(CheckpointError, match="no-such-file"):
        other.load(tmp_path / "no-such-file.npz")


def draw_as_a_validation_did(trainer):
    """In release 0.1.0 a validation advanced training's generators."""
    dropout, noise = trainer.steps.generators.values()
    for variable, draw in (
        (dropout, lambda generator, n: generator.binomial(1, 0.8, size=(n, 3))),
        (noise, lambda generator, n: generator.normal(size=n)),
    ):
        generator = variable.get_value()
        for samples in (8, 8, 8, 2):
            draw(generator, samples)
        variable.set_value(generator)


def test_the_first_formats_golden_file_loads_forever(mode):
    """Written by release 0.1.0, by tests/goldens/make_state.py; it is never written again."""
    trainer = make(mode)
    with pytest.warns(UserWarning, match="older release lacks fingerprint") as caught:
        trainer.load(ROOT / "tests" / "goldens" / "state-format-1.npz")
    assert {warning.filename for warning in caught} == {__file__}
    assert (trainer.update_count, trainer.epoch_count, len(trainer.history)) == (8, 2, 2)
    trainer.minimize(data(), **OPTIONS)
    whole = make(mode)
    draw_as_a_validation_did(whole)
    for _ in whole.iterate(data(), **OPTIONS):
        draw_as_a_validation_did(whole)
    assert trainer.update_count == 12
    # Releases of PyTensor may round differently in the last bits.
    found, expected = trainer.parameters.copy()["w"], whole.parameters.copy()["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_second_formats_golden_file_loads_forever(mode):
    """It has members by name, assigned variables, and the fingerprint of its loss."""
    trainer = make_assigned(mode)
    trainer.load(ROOT / "tests" / "goldens" / "state-format-2.npz")
    assert (trainer.update_count, trainer.epoch_count, len(trainer.history)) == (8, 2, 2)
    trainer.minimize(data(), **OPTIONS)
    whole = make_assigned(mode)
    whole.minimize(data(), **OPTIONS)
    for name in ("param/w", "assigned/count", "assigned/ema", "assigned/mean"):
        found, expected = trainer.state_dict()[name], whole.state_dict()[name]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert trainer.state_dict()["assigned/count"] == 12


# Divergence with checkpoints


class Spoilt:
    """Batches of which some are NaN, by their number."""

    def __init__(self, *spoilt):
        self.spoilt, self.count = spoilt, 0

    def __len__(self):
        return 4

    def __call__(self):
        self.count += 1
        return [DATA * (math.nan if self.count in self.spoilt else 1), TARGET]


def test_rollback_returns_to_the_last_checkpoint_with_half_the_learning_rate(mode, tmp_path):
    trainer = make(mode)
    checkpoint = Checkpoint(tmp_path, every_updates=2)
    trainer.minimize(
        Spoilt(7),
        [DATA, TARGET],
        checkpoint=checkpoint,
        on_divergence="rollback",
        **OPTIONS,
    )
    assert trainer.stop_reason is StopReason.MAX_EPOCHS
    assert trainer.update_count == 12
    assert trainer.hyperparameters.learning_rate == OPTIONS["learning_rate"] / 2
    assert np.isfinite(trainer.parameters.copy()["w"]).all()


def test_rollbacks_come_to_an_end(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(
        Spoilt(*range(7, 100)),
        [DATA, TARGET],
        checkpoint=Checkpoint(tmp_path, every_updates=2),
        on_divergence="rollback",
        **OPTIONS,
    )
    assert trainer.stop_reason is StopReason.DIVERGED
    assert trainer.hyperparameters.learning_rate == OPTIONS["learning_rate"] / 8
    for path in tmp_path.glob("*.npz"):
        state = read_state(path)
        assert np.isfinite(state["param/w"]).all()


def test_the_guilty_minibatch_can_be_replayed(mode, tmp_path):
    trainer = make(mode)
    trainer.minimize(
        Spoilt(7), [DATA, TARGET], checkpoint=Checkpoint(tmp_path), save_batch=True, **OPTIONS
    )
    (path,) = tmp_path.glob("diverged-*.npz")
    assert path.name == "diverged-000000007.npz"
    state = read_state(path)
    assert state["update_count"] == 6
    assert np.isfinite(state["param/w"]).all()
    replay = make(mode)
    replay.load_state_dict(state)
    batch = [state["batch/0"], state["batch/1"]]
    assert math.isnan(replay.step(batch)["loss"])


def test_a_nan_never_enters_a_checkpoint(mode, tmp_path):
    """The loss does not depend on the first value, so that it alone tells nothing."""
    w = pytensor.shared(np.ones(2), name="w")
    trainer = Trainer(pt.sqr(w[1]), mode=mode)
    options = {"max_epochs": 9, "validate_every": 100}
    run = trainer.iterate(Dataset(None), checkpoint=every_epoch(tmp_path, keep=9), **options)
    for epoch, _ in enumerate(run):
        if epoch == 3:
            w.set_value(np.array([math.nan, 1.0]))
    assert trainer.stop_reason is StopReason.DIVERGED
    assert [p.name for p in Checkpoint(tmp_path).steps()][-1] == "step-000000004.npz"
    assert np.isfinite(w.get_value()).all()


# Real processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "problem", "trials"),
    [("kill", "regression", 3), ("interrupt", "regression", 3), ("kill", "text", 1)],
)
def test_real_processes_that_are_stopped_go_on_bit_for_bit(how, problem, trials, tmp_path):
    """The short form of tests/reliability/kill.py."""
    command = [sys.executable, "-m", "tests.reliability.kill", "--how", how]
    command += ["--problem", problem, "--trials", str(trials), "--seed", "1"]  # stops early once
    result = subprocess.run(
        [*command, "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{trials} of {trials}" in result.stdout


def test_a_signal_in_every_phase():
    """The short form of tests/reliability/phases.py."""
    command = [sys.executable, "-m", "tests.reliability.phases", "--trials", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("SIGKILL 1 of 1, SIGTERM 1 of 1, SIGINT 1 of 1") == 7


def test_a_disk_that_is_full_at_each_save(tmp_path):
    """A part of tests/reliability/full_disk.py, where mounting is allowed."""
    try:
        runs, faults = full_disk.run_at_each_save(tmp_path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount")
    assert not faults
    assert runs == 30


# Faults found by reading


def test_a_run_that_never_began_leaves_the_parameters_alone(mode, tmp_path):
    """A directory that is held must not put the best of an earlier run in place."""
    trainer = make(mode)
    trainer.minimize(data(), **OPTIONS)
    trainer.set_params([np.full(3, 7.0)])
    best = trainer.best
    with Checkpoint(tmp_path), pytest.raises(CheckpointError, match="held by process"):
        trainer.minimize(data(), checkpoint=Checkpoint(tmp_path))
    np.testing.assert_array_equal(trainer.parameters.copy()["w"], 7.0)
    assert trainer.best is best


def test_an_abandoned_run_saves_no_nan(mode, tmp_path):
    w = pytensor.shared(np.ones(2), name="w")
    trainer = Trainer(pt.sqr(w[1]), mode=mode)
    for _ in trainer.iterate(checkpoint=Checkpoint(tmp_path, every_epochs=99), max_epochs=9):
        w.set_value(np.array([math.nan, 1.0]))
        break
    assert Checkpoint(tmp_path).steps() == []


def test_rollback_needs_a_number_to_halve(mode, tmp_path):
    with pytest.raises(ValueError, match="learning_rate is .*: on_divergence='rollback' halves it"):
        make(mode).iterate(
            data(),
            checkpoint=Checkpoint(tmp_path),
            on_divergence="rollback",
            learning_rate=lambda t: 1 / t,
        )


def test_a_halved_learning_rate_stays_halved_after_a_resume(mode, tmp_path):
    options = OPTIONS | {"on_divergence": "rollback", "resume": True}
    make(mode).minimize(
        Spoilt(7), [DATA, TARGET], checkpoint=Checkpoint(tmp_path, every_updates=2), **options
    )
    other = make(mode)
    options["max_epochs"] = 4
    other.minimize(Spoilt(), [DATA, TARGET], checkpoint=Checkpoint(tmp_path), **options)
    assert other.update_count == 16
    assert other.hyperparameters.learning_rate == OPTIONS["learning_rate"] / 2


def test_a_link_that_the_user_names_is_followed(mode, tmp_path):
    """Also to its history, which lies beside the file itself."""
    trainer, checkpoint = make(mode), every_epoch(tmp_path / "run")
    trainer.minimize(data(), checkpoint=checkpoint, **OPTIONS)
    (tmp_path / "newest.npz").symlink_to(checkpoint.steps()[-1])
    other = make(mode)
    other.load(tmp_path / "newest.npz")
    assert list(other.history) == list(trainer.history)
    other.load_parameters(tmp_path / "newest.npz")


def test_a_path_is_a_checkpoint(mode, tmp_path):
    """As everybody tries it first; what is neither is told before anything runs."""
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    trainer = Trainer(pt.sqr(x - w).mean(), mode=mode)
    for where in (str(tmp_path / "text"), tmp_path / "path"):
        trainer.minimize(np.ones(8), max_epochs=2, checkpoint=where)
        newest, _ = Checkpoint(where).latest()
        assert newest.name == f"step-{trainer.update_count:09d}.npz"
    with pytest.raises(TypeError, match="checkpoint is True"):
        trainer.minimize(np.ones(8), max_epochs=2, checkpoint=True)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda t: "fast", "learning_rate is"),
        (lambda t: None, "learning_rate is"),
        (lambda t: -0.1 * t, r"learning_rate is -0.1: it lies in \[0, inf\)"),
        (lambda: 0.1, "learning_rate is .* takes the symbolic update"),
        (lambda t: pt.as_tensor([t, t]), "learning_rate is a schedule that returned"),
    ],
)
def test_a_schedule_that_is_none_is_refused_and_nothing_changes(schedule, message, mode):
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    trainer = Trainer(pt.sqr(x - w).mean(), mode=mode)
    before = trainer.hyperparameters
    with pytest.raises(ValueError, match=message):
        trainer.iterate(np.ones(8), learning_rate=schedule)
    assert trainer.hyperparameters == before
    trainer.step(np.ones(8))
