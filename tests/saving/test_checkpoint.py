"""A directory of checkpoints: when one is due, who holds it, and what is kept."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from downhill_rms import Checkpoint
from downhill_rms.saving import checkpoint as checkpoint_module
from downhill_rms.saving.statefile import CheckpointError, read_state

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_updates": 0}, "every_updates is 0: it is at least 1"),
        ({"every_epochs": 1.5}, "every_epochs is 1.5: it takes an integer"),
        ({"every_seconds": 0}, "every_seconds is 0: it lies in"),
        ({"every_seconds": True}, "every_seconds is True: it takes a number"),
        ({"every_seconds": "a"}, "every_seconds is 'a'"),
        ({"keep": None}, "keep is None: it takes an integer"),
        ({"directory": None}, "directory is None"),
        ({"directory": ""}, "directory is ''"),
    ],
)
def test_options(options, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        Checkpoint(**{"directory": tmp_path, **options})


def test_due_by_updates_and_epochs(tmp_path):
    checkpoint = Checkpoint(tmp_path, every_updates=3, every_epochs=2)
    checkpoint.start(10, 1)
    assert [checkpoint.due(n, 1) for n in range(11, 18)] == [
        *[False, False, True, False, False, True, False]
    ]
    assert not checkpoint.due(17, 2)
    assert checkpoint.due(17, 3)
    assert not checkpoint.due(18, 3)


def test_due_by_seconds(tmp_path):
    checkpoint = Checkpoint(tmp_path, every_epochs=None, every_seconds=10)
    now = checkpoint._last[2]
    assert not checkpoint.due(1000, 1000, now + 9)
    assert checkpoint.due(1000, 1000, now + 10)
    assert not checkpoint.due(1000, 1000, now + 19)


def test_by_default_saving_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    """A clock of our own: an epoch takes 1 s, and saving 3 s."""
    clock = [0.0]
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: clock[0])
    saved = []
    with Checkpoint(tmp_path) as checkpoint:
        assert not checkpoint.due(5, 0)  # in the middle of the first epoch
        for epoch in range(1, 101):
            clock[0] += 1
            if checkpoint.due(10 * epoch, epoch):
                saved.append(epoch)
                clock[0] += 3
                checkpoint.save({"n": epoch}, 10 * epoch)
    assert saved == [1, 28, 55, 82]


def test_by_default_every_epoch_is_saved_where_that_costs_little(tmp_path):
    checkpoint, now = Checkpoint(tmp_path), 1e9
    assert [checkpoint.due(n, n // 2, now + n) for n in range(7)] == [
        *[False, False, True, False, True, False, True]
    ]


def test_the_newest_are_kept(tmp_path):
    with Checkpoint(tmp_path, keep=2) as checkpoint:
        checkpoint.save_best({"n": 0})
        for update in (8, 9, 10, 1_000_000_000, 999_999_999):
            checkpoint.save({"n": update}, update)
        kept = [path.name for path in checkpoint.steps()]
        assert kept == ["step-999999999.npz", "step-1000000000.npz"]
        assert checkpoint.latest()[1] == {"n": 1_000_000_000}
    assert read_state(tmp_path / "best.npz") == {"n": 0}


def test_latest_of_nothing_is_none(tmp_path):
    assert Checkpoint(tmp_path / "not yet").latest() is None


def test_a_damaged_newer_one_is_passed_over(tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        for update in (1, 2, 3):
            checkpoint.save({"n": update}, update)
        for update in (2, 3):
            (tmp_path / f"step-{update:09d}.npz").write_bytes(b"damaged")
        with pytest.warns(UserWarning, match="passed over") as caught:
            assert checkpoint.latest()[1] == {"n": 1}
        assert len(caught) == 2
        (tmp_path / "step-000000001.npz").write_bytes(b"damaged")
        with (
            pytest.warns(UserWarning, match="passed"),
            pytest.raises(CheckpointError, match="None of 3 checkpoints"),
        ):
            checkpoint.latest()


def test_a_second_holder_is_told_the_first_ones_process(tmp_path):
    first, second = Checkpoint(tmp_path), Checkpoint(tmp_path)
    with first, pytest.raises(CheckpointError, match=f"held by process {os.getpid()}"):
        second.open()
    with second:
        pass
    first.open()
    first.open()  # once more does no harm
    first.close()


def run(*arguments):
    """Run Python in a process of its own: this one may have threads, and must not fork."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_races_of_two_processes():
    """The short form of python -m tests.reliability.races."""
    result = run("-m", "tests.reliability.races", "--races", 5)
    assert "refused 5 of 5, files whole 5 of 5" in result.stdout, result.stderr
    assert result.returncode == 0


def test_a_killed_holder_leaves_no_lock_and_its_temporary_is_removed(tmp_path):
    program = (
        "import os, sys\nfrom downhill_rms import Checkpoint\n"
        "checkpoint = Checkpoint(sys.argv[1])\ncheckpoint.open()\n"
        "open(os.path.join(sys.argv[1], '.step-000000001.npz.abc.tmp'), 'w').close()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    result = run("-c", program, tmp_path)
    assert result.returncode == -9
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    with Checkpoint(tmp_path):
        assert list(tmp_path.glob(".*.tmp")) == []


def test_a_read_only_directory_is_found_at_once():
    """In a process without the privileges of root, which may write everywhere."""
    program = (
        "import os, sys\nfrom downhill_rms import Checkpoint\n"
        "if os.getuid() == 0:\n    os.setuid(65534)\n"
        "Checkpoint(sys.argv[1]).open()\n"
    )
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o555)
    result = run("-c", program, directory)
    left = list(directory.iterdir())
    directory.rmdir()
    assert f"CheckpointError: {directory} cannot be written" in result.stderr
    assert left == []


def test_a_directory_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(CheckpointError, match="cannot be written"):
        Checkpoint(tmp_path / "file").open()
    with pytest.raises(CheckpointError, match="cannot be written"):
        Checkpoint(tmp_path / "file" / "below").open()


def test_an_array_survives_the_directory(tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        path = checkpoint.save({"w": np.arange(3.0)}, 7, {"why": "test"})
        np.testing.assert_array_equal(read_state(path)["w"], np.arange(3.0))


# What must never be lost, nor taken from anyone else


def test_what_was_just_written_stays_though_damaged_ones_have_higher_numbers(tmp_path):
    for update in (12, 16, 20):
        (tmp_path / f"step-{update:09d}.npz").write_bytes(b"damaged")
    with Checkpoint(tmp_path, keep=1) as checkpoint:
        path = checkpoint.save({"n": 10}, 10)
        assert path in checkpoint.steps()
        with pytest.warns(UserWarning, match="step-000000020"):
            assert checkpoint.latest() == (path, {"n": 10})


def test_files_of_others_are_neither_read_nor_removed(tmp_path):
    names = [".mine.tmp", ".model.npz.abc.tmp", "step-3-copy.npz", "step-1.npz", "step-x.npz"]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".directory.tmp").mkdir()
    with Checkpoint(tmp_path, keep=1) as checkpoint:
        path = checkpoint.save({"n": 10}, 10)
        assert checkpoint.steps() == [path]
    assert {*names, ".directory.tmp"} < {entry.name for entry in tmp_path.iterdir()}


def test_an_update_is_not_negative(tmp_path):
    with (
        Checkpoint(tmp_path) as checkpoint,
        pytest.raises(ValueError, match="update is -1: it counts from"),
    ):
        checkpoint.save({"n": 1}, -1)


def test_an_unreadable_directory_is_no_empty_one():
    """Else a run would begin anew, silently."""
    program = (
        "import os, sys\nfrom downhill_rms import Checkpoint\n"
        "if os.getuid() == 0:\n    os.setuid(65534)\n"
        "print(Checkpoint(sys.argv[1]).latest())\n"
    )
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    (directory / "step-000000001.npz").write_bytes(b"there")
    directory.chmod(0o333)
    if os.getuid():
        directory.chmod(0o300)
    result = run("-c", program, directory)
    directory.chmod(0o700)
    (directory / "step-000000001.npz").unlink()
    directory.rmdir()
    assert f"CheckpointError: {directory} cannot be read" in result.stderr
    assert result.stdout == ""


WORKER = """
import os, signal, sys, time
from downhill_rms import Checkpoint
checkpoint = Checkpoint(sys.argv[1])
checkpoint.open()
worker = os.fork()
if not worker:
    for descriptor in range(3):  # so that the test's pipes end with the holder
        os.close(descriptor)
    time.sleep(60)
    os._exit(0)
print(worker, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.3)  # the worker has let go of what it inherited
try:
    Checkpoint(sys.argv[1]).open()
finally:
    os.kill(worker, signal.SIGKILL)
"""


def test_a_worker_that_outlives_a_killed_run_holds_no_lock(tmp_path):
    result = run("-c", WORKER, tmp_path, "killed")
    worker = int(result.stdout)
    try:
        os.kill(worker, 0)  # it lives
        with Checkpoint(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_worker_leaves_the_lock_to_its_run(tmp_path):
    result = run("-c", WORKER, tmp_path, "alive")
    assert f"CheckpointError: {tmp_path} is held by process" in result.stderr


def test_a_file_system_without_locks_leaves_nothing_open(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOTSUP, "no locks here")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(checkpoint_module.fcntl, "flock", refuse)
    # The error is kept, and with it the frame that opened the file.
    with pytest.raises(CheckpointError, match="no locks here") as kept:
        Checkpoint(tmp_path).open()
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept.value.__cause__.errno == errno.ENOTSUP


def test_a_dead_holders_number_is_not_given_out(tmp_path):
    """The lock's file names a process that was killed, until the next one has written its own."""
    dead = int(run("-c", "import os; print(os.getpid())").stdout)
    with Checkpoint(tmp_path):
        (tmp_path / "lock").write_text(str(dead))
        timer = threading.Timer(0.1, (tmp_path / "lock").write_text, [str(os.getpid())])
        timer.start()
        with pytest.raises(CheckpointError, match=f"held by process {os.getpid()}"):
            Checkpoint(tmp_path).open()
        timer.join()


def test_a_forked_child_may_begin_a_run_of_its_own_once_the_parents_is_over(tmp_path):
    program = (
        "import os, sys, time\nfrom downhill_rms import Checkpoint\n"
        "checkpoint = Checkpoint(sys.argv[1])\ncheckpoint.begin()\n"
        "worker = os.fork()\n"
        "if not worker:\n"
        "    time.sleep(0.3)\n    checkpoint.begin()\n    print('begun')\n"
        "else:\n    checkpoint.end()\n    os.waitpid(worker, 0)\n"
    )
    result = run("-c", program, tmp_path)
    assert result.stdout == "begun\n", result.stderr


# One object, one run


def test_one_object_serves_one_run_at_a_time(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.begin()
    with pytest.raises(
        CheckpointError, match="This checkpoint of .* has a run already: it has one at a time"
    ):
        checkpoint.begin()
    with pytest.raises(CheckpointError, match="held by process"):
        Checkpoint(tmp_path).open()
    checkpoint.end()
    with Checkpoint(tmp_path):
        pass
    checkpoint.begin()
    checkpoint.end()


def test_the_end_of_a_run_leaves_the_lock_to_whoever_opened_it(tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.begin()
        checkpoint.end()
        with pytest.raises(CheckpointError, match="held by process"):
            Checkpoint(tmp_path).open()
    with Checkpoint(tmp_path):
        pass


def test_whoever_opened_it_leaves_the_lock_to_the_run(tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.begin()
    with pytest.raises(CheckpointError, match="held by process"):
        Checkpoint(tmp_path).open()
    checkpoint.end()
    with Checkpoint(tmp_path):
        pass


def test_a_run_that_could_not_begin_leaves_the_object_free(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    with Checkpoint(tmp_path), pytest.raises(CheckpointError, match="held by process"):
        checkpoint.begin()
    checkpoint.begin()
    checkpoint.end()
