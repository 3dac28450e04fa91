"""What the bar, the history file and the log cost: epochs of the digits with and without them.

    python -m tests.benchmarks.progress_cost [--rounds N]

One trainer runs blocks of epochs alternately bare, watched as by ``downhill-rms train`` in a
terminal (a bar in a pseudo-terminal, and a record appended to a history file after every epoch),
and logged, with a line in a log file in place of the bar. Printed are the median time of an
epoch, and ratios block by block.
"""

import argparse
import contextlib
import logging
import os
import pty
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from downhill_rms import Dataset, Trainer
from downhill_rms.watching.history import HistoryFile
from examples.digits import problem
from tests.benchmarks.contest import spread

EPOCHS = 25  # in a block


def block(trainer, data, **watching):
    """Seconds for one epoch, the median over a block of them."""
    times = []
    epochs = trainer.iterate(*data, validate_every=1, patience=np.inf, **watching)
    next(epochs)  # what happens once a run
    for _ in range(EPOCHS):
        started = time.perf_counter()
        next(epochs)
        times.append(time.perf_counter() - started)
    epochs.close()
    return statistics.median(times)


@contextlib.contextmanager
def pseudo_terminal():
    """A terminal that another process reads."""
    master, slave = pty.openpty()
    reader = subprocess.Popen(
        ["cat"], stdin=master, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with os.fdopen(slave, "w") as terminal:
        yield terminal
    reader.kill()
    reader.wait()


@contextlib.contextmanager
def logging_to(path):
    """The library's log in a file, as the command line writes it."""
    log, handler = logging.getLogger("downhill_rms"), logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield
    log.removeHandler(handler)
    log.setLevel(logging.WARNING)
    handler.close()


def measure(rounds, folder):
    """Times of an epoch in each round, by what was on."""
    digits = problem()
    data = Dataset(digits.train, batch_size=32, rng=0), digits.valid
    trainer = Trainer(digits.loss, digits.params, digits.inputs, monitors=digits.monitors)
    trainer.set_hyperparameters(learning_rate=0.0)  # the same work in every epoch
    block(trainer, data)
    times = {"bare": [], "watched": [], "logged": []}
    with pseudo_terminal() as terminal, HistoryFile(folder / "history.jsonl") as write:
        for _ in range(rounds):
            times["bare"].append(block(trainer, data))
            with contextlib.redirect_stderr(terminal):
                times["watched"].append(block(trainer, data, progress=True, observers=[write]))
            with logging_to(folder / "log.txt"):
                times["logged"].append(block(trainer, data, observers=[write]))
    return times


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(parser.parse_args().rounds, Path(folder))
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times["bare"], strict=True)]
        low, middle, high = spread(ratios)
        print(
            f"{name:>8}: an epoch takes {statistics.median(values) * 1e6:.0f} us, "
            f"{middle:.4f} times bare (quartiles {low:.4f} to {high:.4f})"
        )


if __name__ == "__main__":
    main()
