"""Write checkpoints to a disk that is really full: a tmpfs of 4 MB. Needs the right to mount.

python -m tests.reliability.full_disk
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from downhill_rms.saving.statefile import CheckpointError, read_state, write_state


def run(directory):
    """Whether a write without room raised, with the old file whole and nothing else left."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", directory], check=True)
    try:
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
    finally:
        subprocess.run(["umount", directory], check=True)


def main():
    """Print the outcome; exit with 1 if a write did not fail as it should."""
    with tempfile.TemporaryDirectory() as directory:
        raised, whole = run(directory)
    print(f"full disk: {raised} of 20 writes raised, old file whole and alone: {whole}")
    sys.exit(raised != 20 or not whole)


if __name__ == "__main__":
    main()
