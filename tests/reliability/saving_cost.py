"""What a checkpoint costs, beside writing the same bytes to the disk.

Both write to a new name and sync, alternately in one run; the ratio of their times is printed.

    python -m tests.reliability.saving_cost
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from downhill_rms.saving.statefile import write_state

ROUNDS = 9
BYTES = 100_000_000


def write_bytes(path, content):
    """Write and sync, as plainly as it can be done."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def main():
    """Print minimum and median of both, and of their ratios pair by pair."""
    array = np.random.default_rng(0).normal(size=BYTES // 8)
    times = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        for _ in range(ROUNDS):
            pair = []
            for write in (write_bytes, lambda path, _: write_state(path, {"w": array})):
                path = Path(folder) / "file"
                began = time.perf_counter()
                write(path, array.data)
                pair.append(time.perf_counter() - began)
                path.unlink()
            times.append(pair)
    ratios = [ours / plain for plain, ours in times]
    for name, values in zip(("plain write", "checkpoint"), zip(*times, strict=True), strict=True):
        print(f"{name}: minimum {min(values):.3f} s, median {statistics.median(values):.3f} s")
    print(f"ratio: minimum {min(ratios):.2f}, median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
