"""The end of a run happens, whole, whatever fails or comes in between."""

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from downhill_rms import Checkpoint, StopReason
from downhill_rms import trainer as trainer_module
from downhill_rms.saving import CheckpointError
from downhill_rms.watching import Progress
from tests.training.test_resume import OPTIONS, assert_equal, data, make, outcome, whole_run

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def at_the_last_save(monkeypatch):
    """Do something when a step is about to get its name; rare checkpoints make it the last."""
    replace = os.replace

    def install(action):
        def replaced(source, target):
            if Path(target).name.startswith("step-"):
                action()
            replace(source, target)

        monkeypatch.setattr(os, "replace", replaced)

    return install


@pytest.fixture
def own_handlers():
    """Handlers as a program may have them, which take note of what reaches them."""
    seen = []
    former = {n: signal.signal(n, lambda number, frame: seen.append(number)) for n in SIGNALS}
    yield seen
    for number, handler in former.items():
        signal.signal(number, handler)


def rare(directory):
    return Checkpoint(directory, every_epochs=1000)


def assert_ended(trainer, directory):
    """The best is in place, the directory free, and nothing is left of a write."""
    np.testing.assert_array_equal(trainer.parameters.copy()["w"], trainer.best.params["w"])
    with Checkpoint(directory):
        pass
    assert not list(directory.glob(".*.tmp"))


def no_room():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_last_save_waits_until_all_is_saved(
    number, times, mode, tmp_path, at_the_last_save, own_handlers
):
    """A second one, too, if the first came before the end."""
    trainer, events = make(mode), []

    def stop(record):
        if record.epoch == 2 and times == 2:
            os.kill(os.getpid(), number)

    def again():
        events.append("saving")
        os.kill(os.getpid(), number)

    at_the_last_save(again)
    options = OPTIONS | {"restore_best": True, "checkpoint": rare(tmp_path), "observers": [stop]}
    trainer.minimize(data(), **options)
    assert (events, own_handlers) == (["saving"], [])
    interrupted, terminated = StopReason.INTERRUPTED, StopReason.TERMINATED
    assert trainer.stop_reason is (interrupted if number == signal.SIGINT else terminated)
    assert_ended(trainer, tmp_path)
    resumed = make(mode)
    resumed.minimize(data(), checkpoint=rare(tmp_path), resume=True, **OPTIONS)
    assert_equal(outcome(resumed), whole_run(mode))


def test_once_more_in_the_last_save_acts_at_once_and_the_rest_is_done(
    mode, tmp_path, at_the_last_save
):
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    at_the_last_save(lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    trainer = make(mode)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.minimize(data(), checkpoint=rare(tmp_path), **OPTIONS | {"restore_best": True})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
    assert_ended(trainer, tmp_path)


def test_a_last_save_that_fails_leaves_the_best_in_place_and_the_directory_free(
    mode, tmp_path, at_the_last_save
):
    at_the_last_save(no_room)
    trainer = make(mode)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.minimize(data(), checkpoint=rare(tmp_path), **OPTIONS | {"restore_best": True})
    assert trainer.stop_reason is StopReason.ERROR
    assert_ended(trainer, tmp_path)


def test_a_consumer_that_leaves_gets_the_end_too(mode, tmp_path, at_the_last_save):
    at_the_last_save(no_room)
    trainer = make(mode)
    epochs = trainer.iterate(data(), checkpoint=rare(tmp_path), **OPTIONS | {"restore_best": True})
    next(epochs)
    with pytest.raises(CheckpointError, match="No space left"):
        epochs.close()
    assert_ended(trainer, tmp_path)


class Broken(Progress):
    """A device that is gone when the run ends."""

    def __init__(self):
        self.closed = False

    def draw(self, epoch, updates, losses):
        raise RuntimeError("the device is gone")

    def close(self):
        self.closed = True


def test_what_cannot_be_shown_at_the_end_does_not_stop_the_end(mode, tmp_path, monkeypatch):
    progress = Broken()
    monkeypatch.setattr(trainer_module, "open_progress", lambda *given: progress)
    trainer = make(mode)
    with pytest.raises(RuntimeError, match="the device is gone"):
        trainer.minimize(data(), checkpoint=rare(tmp_path), **OPTIONS | {"restore_best": True})
    monkeypatch.undo()
    assert progress.closed
    assert trainer.stop_reason is StopReason.ERROR
    assert_ended(trainer, tmp_path)
    resumed = make(mode)
    resumed.minimize(data(), checkpoint=rare(tmp_path), resume=True, **OPTIONS)
    assert_equal(outcome(resumed), whole_run(mode))


def test_the_first_of_two_errors_is_the_one_that_comes(
    mode, tmp_path, monkeypatch, at_the_last_save
):
    at_the_last_save(no_room)
    monkeypatch.setattr(trainer_module, "open_progress", lambda *given: Broken())
    with pytest.raises(CheckpointError, match="No space left") as caught:
        make(mode).minimize(data(), checkpoint=rare(tmp_path), **OPTIONS)
    assert any("the device is gone" in note for note in caught.value.__notes__)


# One Checkpoint for two trainers


def test_one_checkpoint_is_not_given_to_two_runs(mode, tmp_path):
    """The second is refused, and its end takes nothing from the first."""
    checkpoint = Checkpoint(tmp_path)
    first = make(mode).iterate(data(), checkpoint=checkpoint, **OPTIONS)
    next(first)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="has a run already"):
            make(mode).minimize(data(), checkpoint=checkpoint, resume=resume, **OPTIONS)
        with pytest.raises(CheckpointError, match="held by process"):
            Checkpoint(tmp_path).open()
    first.close()
    with Checkpoint(tmp_path):
        pass


def test_a_directory_that_the_program_holds_stays_held_after_the_run(mode, tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        make(mode).minimize(data(), checkpoint=checkpoint, **OPTIONS)
        with pytest.raises(CheckpointError, match="held by process"):
            Checkpoint(tmp_path).open()
