"""Stop a run in every phase, at any line of it, with every signal; go on, and compare bit for bit.

A training process stops itself at a line of the phase that is drawn at random, and is sent a
signal there: it meets the program at exactly this line. After Ctrl-C and SIGTERM the process must
have ended by itself, have left no temporary file, and hold the directory no more. Whatever it was,
a second process that goes on must come to the outcome of a run that nobody stopped.

    python -m tests.reliability.phases --trials 20
    python -m tests.reliability.phases --trials 1           # the short form
"""

import argparse
import os
import pickle
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms import Checkpoint, Dataset, Trainer
from downhill_rms.training import Loop, Steps
from tests.reliability.kill import BROKEN, INTERRUPTED, same

PHASES = {
    "before the first update": (Steps, "_first_update"),
    "validation": (Loop, "_validate"),
    "best save": (Checkpoint, "save_best"),
    "step save": (Checkpoint, "save"),
    "last save": (Loop, "_save_last"),
    "restore": (Loop, "_put_back_best"),
    "show": (Loop, "_show"),
}
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
TRACED = ("downhill_rms", "zipfile")  # files, by a part of their path


class Model:
    """A regression with dropout, compiled once, for every process to train anew."""

    def __init__(self, mode):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(48, 6))
        x, y = pt.matrix("x"), pt.vector("y")
        w = pytensor.shared(np.zeros(6), name="w")
        _, mask = pt.random.shared_rng(seed=1, name="dropout").bernoulli(0.8, size=x.shape)
        self.trainer = Trainer(pt.sqr((x * mask) @ w - y).mean(), inputs=[x, y], mode=mode)
        self.arrays = [features, features @ rng.normal(size=6)]
        self.options = {"learning_rate": 0.01, "momentum": 0.9}
        start = self.trainer.state_dict()
        self.train(None)
        self.trainer.load_state_dict(start)

    def train(self, checkpoint):
        """Train to the end, or to a signal."""
        self.trainer.minimize(
            Dataset(self.arrays, batch_size=8, rng=2),
            checkpoint=checkpoint,
            resume=checkpoint is not None,
            max_epochs=4,
            validate_every=1,
            **self.options,
        )

    def outcome(self):
        """All that a run leaves, but for the time it took."""
        state = self.trainer.state_dict()
        history = [(r.epoch, r.updates, r.train, r.valid, r.best) for r in self.trainer.history]
        state.pop("history")
        return pickle.dumps((state, history))


class Lines:
    """Count the lines that a phase goes through, and stop the process at one of them."""

    def __init__(self, owner, name, stop_at=None):
        self.count, self.stop_at = 0, stop_at
        inner = getattr(owner, name)

        def phase(*args, **kwargs):
            sys.settrace(self.trace)
            try:
                self.line()
                return inner(*args, **kwargs)
            finally:
                sys.settrace(None)

        setattr(owner, name, phase)

    def trace(self, frame, event, argument):
        """Of `sys.settrace`."""
        if not any(part in frame.f_code.co_filename for part in TRACED):
            return None
        if event == "line":
            self.line()
        return self.trace

    def line(self):
        """Take note of a line."""
        self.count += 1
        if self.count == self.stop_at:
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGSTOP)


def start(model, directory, phase=None, stop_at=None):
    """Fork a process that trains in a directory; its id."""
    process = os.fork()
    if process:
        return process
    code = BROKEN
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        lines = None if phase is None else Lines(*PHASES[phase], stop_at)
        model.train(Checkpoint(directory, every_updates=4))
        if lines is not None and stop_at is None:
            directory.with_suffix(".lines").write_text(str(lines.count))
        directory.with_suffix(".outcome").write_bytes(model.outcome())
        code = INTERRUPTED if model.trainer.stop_reason in ("interrupted", "terminated") else 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def ended(process):
    """The exit code of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def trial(model, directory, phase, stop_at, number):
    """What went wrong with one stopped run; None if nothing did."""
    process = start(model, directory, phase, stop_at)
    _, status = os.waitpid(process, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        return f"was not stopped, and ended with {os.waitstatus_to_exitcode(status)}"
    os.kill(process, number)
    os.kill(process, signal.SIGCONT)
    code = ended(process)
    if code != (-number if number == signal.SIGKILL else INTERRUPTED):
        return f"ended with {code}"
    if number != signal.SIGKILL:
        if list(directory.glob(".*.tmp")):
            return "left a temporary file"
        with Checkpoint(directory):
            pass
    if code := ended(start(model, directory)):
        return f"went on, and ended with {code}"
    expected = directory.with_name("whole").with_suffix(".outcome").read_bytes()
    if not same(directory.with_suffix(".outcome").read_bytes(), expected):
        return "went on to another outcome"
    return None


def main():
    """Print how many trials of each phase were right; exit with 1 if one was not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="of each phase and signal")
    parser.add_argument("--mode", default="FAST_COMPILE", help="how PyTensor compiles")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, model, wrong = random.Random(options.seed), Model(options.mode), 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        if code := ended(start(model, whole)):
            sys.exit(f"a run that nobody stopped ended with {code}")
        for phase in PHASES:
            measured = Path(folder) / "measured"
            ended(start(model, measured, phase))
            lines = int(measured.with_suffix(".lines").read_text())
            for path in measured.iterdir():
                path.unlink()
            right = Counter()
            for number in SIGNALS:
                for count in range(options.trials):
                    directory = Path(folder) / f"{phase.replace(' ', '-')}-{int(number)}-{count}"
                    stop_at = rng.randint(1, lines)
                    fault = trial(model, directory, phase, stop_at, number)
                    right[number.name] += fault is None
                    if fault:
                        print(f"{phase}, {number.name} at line {stop_at} of {lines}: it {fault}")
            wrong += len(SIGNALS) * options.trials - right.total()
            counts = ", ".join(f"{name} {n} of {options.trials}" for name, n in right.items())
            print(f"{phase} ({lines} lines): {counts}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
