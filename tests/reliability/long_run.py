"""Train a tiny model for very many epochs with the default checkpoint, and see that nothing grows.

Prints the time of an epoch at the start and at the end, what a checkpoint costs then, memory and
the sizes of the files; fails if an epoch takes more than twice as long at the end. That is judged
by the processor's time, since other programs and the disk have a part in the clock's.

    python -m tests.reliability.long_run --epochs 100000
"""

import argparse
import math
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms import Checkpoint, Trainer

PARTS = 10  # of the run: the first is compared with the last


class Timed(Checkpoint):
    """A checkpoint that notes what each save takes, in seconds."""

    def __init__(self, directory):
        super().__init__(directory)
        self.seconds = []

    def save(self, state, update, metadata=None):
        """As the parent does."""
        began = time.perf_counter()
        path = super().save(state, update, metadata)
        self.seconds.append(time.perf_counter() - began)
        return path


def memory():
    """The most that the process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(directory, epochs):
    """The clock's and the processor's time as epochs ended, and what each save took."""
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    trainer = Trainer(pt.sqr(x - w).mean(), mode="FAST_COMPILE")
    checkpoint = Timed(directory)
    options = {"max_epochs": epochs, "patience": math.inf, "learning_rate": 1e-5}
    run = trainer.iterate([np.arange(8.0)], checkpoint=checkpoint, **options)
    ends = [(time.perf_counter(), time.process_time()) for _ in run]
    return np.array(ends), checkpoint.seconds


def main():
    """Print the figures; exit with 1 if the last tenth takes more than twice as long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100_000)
    epochs = parser.parse_args().epochs
    before, part = memory(), epochs // PARTS
    with tempfile.TemporaryDirectory() as folder:
        ends, saves = run(folder, epochs)
        sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
    first, last = (ends[part] - ends[0]) / part, (ends[-1] - ends[-1 - part]) / part
    seconds = ends[-1] - ends[0]
    some = max(len(saves) // PARTS, 1)
    print(f"{epochs} epochs in {seconds[0]:.1f} s, {len(saves)} checkpoints")
    for name, start, end in zip(("clock", "processor"), first, last, strict=True):
        print(
            f"an epoch by the {name}: {1e3 * start:.3f} ms in the first tenth, {1e3 * end:.3f} "
            "ms in the last"
        )
    print(
        f"a checkpoint, median: {1e3 * statistics.median(saves[:some]):.2f} ms in the first tenth, "
        f"{1e3 * statistics.median(saves[-some:]):.2f} ms in the last"
    )
    print(f"memory: {before:.0f} MB before, {memory():.0f} MB at most")
    print(", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()))
    sys.exit(int(last[1] > 2 * first[1]))


if __name__ == "__main__":
    main()
