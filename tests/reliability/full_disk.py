"""Write checkpoints to a disk that is really full: a tmpfs of 4 MB. Needs the right to mount.

First single files are written where there is no room. Then the disk is filled at each save of a
run in turn, the best's, each step's and the last one's, but for so many bytes: the run must raise
CheckpointError, with the best in place, the directory free and no temporary left; with room again
it must go on to the outcome of a run that had room all along.

python -m tests.reliability.full_disk
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from downhill_rms import Checkpoint
from downhill_rms.saving.statefile import CheckpointError, read_state, write_state
from tests.reliability.kill import same
from tests.reliability.phases import Model

ROOM = (0, 4096, 8192)  # bytes that are left: tmpfs gives pages


@contextlib.contextmanager
def small_disk(directory):
    """Give a directory room for 4 MB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", directory], check=True)
    try:
        yield Path(directory)
    finally:
        subprocess.run(["umount", directory], check=True)


def run(directory):
    """How many writes without room raised, and whether the old file is whole and alone."""
    with small_disk(directory):
        path = Path(directory) / "state.npz"
        write_state(path, {"w": np.arange(100_000)})
        raised = 0
        for values in range(426_000, 446_000, 1_000):  # just above the room that is left
            try:
                write_state(path, {"w": np.zeros(values)})
            except CheckpointError as error:
                raised += "No space left" in str(error)
        alone = [p.name for p in path.parent.iterdir()] == ["state.npz"]
        return raised, alone and read_state(path)["w"][-1] == 99_999


class Filling(Checkpoint):
    """A checkpoint whose disk is full at one of its saves."""

    def __init__(self, directory, full_at=None, room=0):
        super().__init__(directory, every_updates=4)
        self.full_at, self.room, self.saves = full_at, room, 0
        self.filler = directory.parent / "filler"

    def save(self, state, update, metadata=None):
        """Write a step, or find the disk full."""
        self.fill()
        return super().save(state, update, metadata)

    def save_best(self, state, metadata=None):
        """Write the best, or find the disk full."""
        self.fill()
        return super().save_best(state, metadata)

    def fill(self):
        """Leave little room if it is time."""
        self.saves += 1
        if self.saves == self.full_at:
            with contextlib.suppress(OSError), open(self.filler, "wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            with open(self.filler, "r+b") as file:
                file.truncate(max(self.filler.stat().st_size - self.room, 0))


def run_out_of_room(model, start, folder, full_at, room):
    """What was wrong with a run whose disk was full at a save, or "" for nothing."""
    model.trainer.load_state_dict(start)
    checkpoint = Filling(folder / "run", full_at, room)
    try:
        model.train(checkpoint)
    except CheckpointError as error:
        if "No space left" not in str(error):
            return f"raised {error}"
        best = model.trainer.best.params["w"]
        if not np.array_equal(model.trainer.parameters.copy()["w"], best):
            return "left other parameters than the best in place"
    else:
        if room == 0:
            return "raised nothing"
    checkpoint.filler.unlink()
    if list(checkpoint.directory.glob(".*.tmp")):
        return "left a temporary file"
    with Checkpoint(folder / "run"):
        pass
    model.trainer.load_state_dict(start)
    model.train(Filling(folder / "run"))
    return ""


def run_at_each_save(directory):
    """How many runs there were, and what was wrong with them."""
    model = Model("FAST_COMPILE")
    start = model.trainer.state_dict()
    with small_disk(directory) as folder:
        whole = Filling(folder / "whole")
        model.train(whole)
        expected, faults = model.outcome(), []
        for full_at in range(1, whole.saves + 1):
            for room in ROOM:
                fault = run_out_of_room(model, start, folder, full_at, room)
                if not fault and not same(model.outcome(), expected):
                    fault = "went on to another outcome"
                if fault:
                    faults.append(f"save {full_at} of {whole.saves}, {room} bytes left: it {fault}")
                for path in (folder / "run").iterdir():
                    path.unlink()
    return whole.saves * len(ROOM), faults


def main():
    """Print the outcome; exit with 1 if a write did not fail as it should."""
    with tempfile.TemporaryDirectory() as directory:
        raised, whole = run(directory)
        runs, faults = run_at_each_save(directory)
    print(f"full disk: {raised} of 20 writes raised, old file whole and alone: {whole}")
    print("".join(f"{fault}\n" for fault in faults), end="")
    print(
        f"full disk at each save of a run: {runs - len(faults)} of {runs} ended whole and went on"
    )
    sys.exit(raised != 20 or not whole or bool(faults))


if __name__ == "__main__":
    main()
