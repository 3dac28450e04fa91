"""What the bar, the history file and the log cost: epochs of the digits with and without them.

    python -m tests.benchmarks.progress_cost [--rounds N]

One trainer runs blocks of epochs alternately bare and watched: a bar in a pseudo-terminal, a
record appended to a history file and a line to a log file after every epoch, as in
``downhill-rms train``. Printed are the time of an epoch and the ratio block by block.
"""

import argparse
import logging
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from downhill_rms import Dataset, Trainer
from downhill_rms.history import HistoryFile
from examples.digits import problem

EPOCHS = 25  # in a block


def block(trainer, data, **watching):
    """Seconds for one epoch, the mean over a block of them."""
    times = []
    epochs = trainer.iterate(*data, validate_every=1, patience=np.inf, **watching)
    next(epochs)  # what happens once a run
    for _ in range(EPOCHS):
        started = time.perf_counter()
        next(epochs)
        times.append(time.perf_counter() - started)
    epochs.close()
    return statistics.mean(times)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds

    digits = problem()
    data = Dataset(digits.train, batch_size=32, rng=0), digits.valid
    trainer = Trainer(digits.loss, digits.params, digits.inputs, monitors=digits.monitors)
    trainer.set_hyperparameters(learning_rate=0.0)  # the same work in every epoch
    block(trainer, data)

    master, slave = pty.openpty()
    reader = subprocess.Popen(["cat"], stdin=master, stdout=subprocess.DEVNULL)
    log = logging.getLogger("downhill_rms")
    terminal, quiet = os.fdopen(slave, "w"), sys.stderr
    bare, watched = [], []
    with tempfile.TemporaryDirectory() as folder:
        handler = logging.FileHandler(Path(folder, "log.txt"))
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for _ in range(rounds):
            bare.append(block(trainer, data))
            log.addHandler(handler)
            log.setLevel(logging.INFO)
            sys.stderr = terminal
            with HistoryFile(Path(folder, "history.jsonl")) as write:
                watched.append(block(trainer, data, progress=True, observers=[write]))
            sys.stderr = quiet
            log.removeHandler(handler)
            log.setLevel(logging.WARNING)
        handler.close()
    reader.kill()

    ratios = [b / a for a, b in zip(bare, watched, strict=True)]
    for name, values in (("bare", bare), ("watched", watched)):
        low, middle = min(values) * 1e3, statistics.median(values) * 1e3
        print(f"{name:>8}: an epoch takes {middle:.3f} ms (least {low:.3f}), {rounds} blocks")
    quartiles = statistics.quantiles(ratios, n=4)
    print(f"   ratio: {quartiles[1]:.4f} (quartiles {quartiles[0]:.4f} to {quartiles[2]:.4f})")


if __name__ == "__main__":
    main()
