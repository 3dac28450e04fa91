"""What others may put under a checkpoint's name: no pipe is waited for, no link is followed."""

import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from downhill_rms import Checkpoint
from downhill_rms.saving.statefile import CheckpointError, read_state, write_state

ROOT = Path(__file__).parents[2]
LIMITED = """
import resource, sys, warnings
from downhill_rms import Checkpoint
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    print(Checkpoint(sys.argv[1]).latest()[1])
except Exception as error:
    print(type(error).__name__, error)
"""


def latest(directory):
    """What `latest` says, in a process of little memory and time."""
    command = [sys.executable, "-c", LIMITED, str(directory)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OPENBLAS_NUM_THREADS="1")
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return result.stdout.strip() or result.stderr


@pytest.mark.parametrize("kind", ["pipe", "endless device", "link to a checkpoint", "directory"])
def test_what_is_no_regular_file_is_passed_over(kind, tmp_path):
    directory = tmp_path / "run"
    with Checkpoint(directory) as checkpoint:
        whole = checkpoint.save({"n": 1}, 1)
    odd = directory / "step-000000002.npz"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "directory":
        odd.mkdir()
    else:
        other = tmp_path / "other.npz"
        write_state(other, {"n": 2})
        odd.symlink_to("/dev/zero" if kind == "endless device" else other)
    assert latest(directory) == "{'n': 1}"
    whole.unlink()
    assert "CheckpointError None of 1 checkpoints in" in latest(directory)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_is_a_regular_file(kind, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    directory = tmp_path / "run"
    directory.mkdir()
    if kind == "link":
        (directory / "lock").symlink_to(mine)
    else:
        os.mkfifo(directory / "lock")
    with pytest.raises(
        CheckpointError, match=r"cannot be written \(.*it is (a link|no regular file)"
    ):
        Checkpoint(directory).open()
    assert mine.read_text() == "precious"


def test_directories_under_names_of_ours_do_no_harm(tmp_path):
    for name in (".step-000000001.npz.0abc.tmp", "journal-4.jsonl"):
        (tmp_path / name).mkdir()
    with Checkpoint(tmp_path) as checkpoint:
        checkpoint.save({"n": 1}, 1, checkpoint.mark(lambda start: ["line"]))
        assert checkpoint.latest()[1] == {"n": 1, "journal": "line\n"}


def zip_of_empty_members(path, count):
    """A zip's directory alone, with a SHA-256 for its comment."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *[0] * 9, 0, 0, 1, *[0] * 6) + b"a"
    size = len(entry) * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count % 65536, count % 65536, size, 0, 64)
    path.write_bytes(entry * count + end + b"0" * 64)


def test_a_zip_of_a_million_members_costs_little(tmp_path):
    path = tmp_path / "many.npz"
    zip_of_empty_members(path, 1000)
    with zipfile.ZipFile(path) as archive:  # it is one
        assert len(archive.namelist()) == 1000
    zip_of_empty_members(path, 1_000_000)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(CheckpointError, match="absurdly many members"):
        read_state(path)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 100e6


@pytest.mark.parametrize("names", ["short", "long"])
def test_the_writer_refuses_what_the_reader_would(names, tmp_path):
    suffix = "x" * (300 if names == "long" else 0)
    state = {f"{n}{suffix}": np.zeros(0) for n in range(80_000)}
    path = tmp_path / "state.npz"
    write_state(path, {"n": 1})
    with pytest.raises(CheckpointError, match="absurdly many.* can be read again"):
        write_state(path, state)
    assert read_state(path) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_that_could_not_be_read_are_not_written(tmp_path):
    deep = []
    for _ in range(900):
        deep = [deep]
    path = tmp_path / "state.npz"
    try:
        write_state(path, {"n": 1}, {"deep": deep})
    except (CheckpointError, RecursionError):
        assert not list(tmp_path.iterdir())
    else:
        assert read_state(path) == {"n": 1}


def test_a_renamed_step_is_not_the_newest(tmp_path):
    with Checkpoint(tmp_path, keep=9) as checkpoint:
        for update in (1, 2, 3):
            checkpoint.save({"update_count": update}, update)
        (tmp_path / "step-000000001.npz").rename(tmp_path / "step-000009999.npz")
        with pytest.warns(UserWarning, match="step-000009999.npz is of update 1"):
            path, state = checkpoint.latest()
        assert (path.name, state["update_count"]) == ("step-000000003.npz", 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint.save({"update_count": 4}, 4)
            assert checkpoint.latest()[1]["update_count"] == 4
