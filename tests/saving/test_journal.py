"""Lines beside the checkpoints: written once, known by their length and hash."""

import errno
import json
import os

import pytest

from downhill_rms import Checkpoint
from downhill_rms.saving import read_checkpoint
from downhill_rms.saving.journal import Journal
from downhill_rms.saving.statefile import CheckpointError, write_state

LINES = [f"line {n}: π" for n in range(100)]


def numbered(count):
    """The first so many lines, from any of them on."""
    return lambda start: LINES[start:count]


def text(count):
    return "".join(line + "\n" for line in LINES[:count])


@pytest.fixture
def checkpoint(tmp_path):
    """Three steps after 10, 11 and 40 lines, and a best after 10."""
    with Checkpoint(tmp_path, keep=3) as checkpoint:
        best = checkpoint.mark(numbered(10))
        for update in (10, 11, 40):
            checkpoint.save({"n": update}, update, checkpoint.mark(numbered(update)))
        checkpoint.save_best({"n": 0}, best)
        yield checkpoint


def test_each_checkpoint_knows_its_own_lines(checkpoint):
    for path in checkpoint.steps():
        state = read_checkpoint(path)
        assert state["journal"] == text(state["n"])
    assert read_checkpoint(checkpoint.directory / "best.npz")["journal"] == text(10)
    assert (checkpoint.directory / "journal-1.jsonl").read_text() == text(40)


def test_each_line_is_asked_for_and_written_once(tmp_path, monkeypatch):
    asked, written, write = [], [], os.write

    def counted(descriptor, content):
        written.append(bytes(content))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", counted)
    with Checkpoint(tmp_path) as checkpoint:
        for count in range(1, 100):
            metadata = checkpoint.mark(lambda start, n=count: asked.append(start) or LINES[start:n])
            checkpoint.save({}, count, metadata)
    assert asked == list(range(99))
    assert b"".join(written).decode() == text(99)


def test_what_comes_after_is_not_seen(checkpoint):
    """As of a process that was killed between the journal and the checkpoint."""
    with open(checkpoint.directory / "journal-1.jsonl", "ab") as file:
        file.write(b"cut li")
    assert checkpoint.latest()[1] == {"n": 40, "journal": text(40)}


def test_a_state_without_lines_needs_no_file(tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        path = checkpoint.save({"n": 1}, 1, checkpoint.mark(numbered(0)))
        assert [p.name for p in tmp_path.glob("journal*")] == []
        assert read_checkpoint(path) == {"n": 1, "journal": ""}
        assert read_checkpoint(checkpoint.save({"n": 2}, 2)) == {"n": 2}


@pytest.mark.parametrize("damage", ["short", "other", "directory", "link", "pipe"])
def test_a_damaged_journal_is_a_damaged_checkpoint(checkpoint, damage):
    path = checkpoint.directory / "journal-1.jsonl"
    content = path.read_bytes()
    path.unlink()
    if damage == "short":  # the oldest two still have theirs
        path.write_bytes(content[:-1])
        with pytest.warns(UserWarning, match=r"passed over.*journal-1.* bytes\)"):
            assert checkpoint.latest()[1] == {"n": 11, "journal": text(11)}
        return
    if damage == "other":
        path.write_bytes(b"L" + content[1:])
    elif damage == "directory":
        path.mkdir()
    elif damage == "link":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    with (
        pytest.warns(UserWarning, match=r"passed over.*journal-1.*remove it to do without"),
        pytest.raises(CheckpointError, match="None of 3"),
    ):
        checkpoint.latest()


def test_a_journal_that_was_left_behind_is_told_and_done_without(checkpoint):
    (checkpoint.directory / "journal-1.jsonl").unlink()
    with pytest.warns(
        UserWarning, match="journal-1.jsonl is not beside .*, whose history it holds"
    ):
        assert checkpoint.latest()[1] == {"n": 40, "journal": ""}


@pytest.mark.parametrize(
    "fields",
    [
        {"file": "../journal-1.jsonl"},
        {"file": "/etc/passwd"},
        {"size": -1},
        {"size": True},
        {"sha256": 7},
        {"more": 1},
    ],
)
def test_hostile_metadata_are_refused(fields, tmp_path):
    (tmp_path / "journal-1.jsonl").write_text("line\n")
    good = {"file": "journal-1.jsonl", "size": 5, "sha256": "0" * 64}
    write_state(tmp_path / "step-000000001.npz", {}, {"journal": good | fields})
    with pytest.raises(CheckpointError, match="names no journal"):
        read_checkpoint(tmp_path / "step-000000001.npz")


@pytest.mark.parametrize("before", [0, 5])
def test_a_write_that_fails_leaves_what_was_there(before, tmp_path, monkeypatch):
    journal, write = Journal(tmp_path / "journal-1.jsonl"), os.write

    def full(descriptor, content):
        if len(content) > 3:
            return write(descriptor, content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    journal.add(LINES[:before])
    journal.flush()
    journal.add(LINES[before:8])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(CheckpointError, match="No space left"):
            journal.flush()
    assert journal.path.exists() == bool(before)
    assert not before or journal.path.read_text() == text(before)
    journal.flush()
    assert journal.path.read_text() == text(8)


@pytest.mark.parametrize("removed", [True, False])
def test_a_journal_that_someone_touched_is_not_written_on(removed, tmp_path):
    journal = Journal(tmp_path / "journal-1.jsonl")
    journal.add(LINES[:5])
    journal.flush()
    if removed:
        journal.path.unlink()
    else:
        os.truncate(journal.path, 3)
    journal.add(LINES[5:6])
    with pytest.raises(CheckpointError, match="cannot be written"):
        journal.flush()


def test_a_run_that_goes_on_writes_another_and_removes_what_nobody_needs(checkpoint):
    directory = checkpoint.directory

    def journals():
        return sorted(path.name for path in directory.glob("journal*"))

    for number in (2, 3):
        checkpoint.begin()
        checkpoint.start(40, 40)
        for update in (41, 42, 43):
            checkpoint.save({"n": update}, update, checkpoint.mark(numbered(update)))
        checkpoint.end()
        assert f"journal-{number}.jsonl" in journals()
        assert checkpoint.latest()[1]["journal"] == text(43)
    assert journals() == ["journal-1.jsonl", "journal-2.jsonl", "journal-3.jsonl"]
    checkpoint.begin()  # the best needs the first still
    checkpoint.end()
    assert journals() == ["journal-1.jsonl", "journal-3.jsonl"]
    (directory / "journal-7.jsonl").touch()
    newest = checkpoint.steps()[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[:-1])
    checkpoint.begin()  # who knows what a damaged one needs
    checkpoint.end()
    assert "journal-7.jsonl" in journals()
    newest.write_bytes(content)
    checkpoint.begin()
    checkpoint.end()
    assert journals() == ["journal-1.jsonl", "journal-3.jsonl"]


def test_a_journal_of_records_is_a_history_file(tmp_path):
    with Checkpoint(tmp_path) as checkpoint:
        lines = [json.dumps({"epoch": n}) for n in range(3)]
        checkpoint.save({}, 1, checkpoint.mark(lambda start: lines[start:]))
    found = (tmp_path / "journal-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in found] == [0, 1, 2]
