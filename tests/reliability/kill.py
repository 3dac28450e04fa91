"""Stop real training processes at random instants, resume them, and compare bit for bit.

Every trial trains a regression with shuffling and dropout, or (``--problem text``) a small form of
examples/text.py, which carries a state from minibatch to minibatch, or (``--problem posterior``) a
variational approximation of a model of PyMC, or (``--problem windows``) a regression on data that
are read by windows, with a checkpoint every 4 updates, or (``--problem sweep``, ``halved``,
``together``) a sweep of six runs, in a process of its own. The process is
killed (``--how kill``, signal 9) or interrupted (``--how interrupt``, Ctrl-C) at random instants
and started again until it comes to its end. Its final parameters, accumulators, best and history
are compared with those of a run that nobody stopped.

    python -m tests.reliability.kill --trials 300
    python -m tests.reliability.kill --trials 200 --how interrupt --mode NUMBA
    python -m tests.reliability.kill --trials 50 --problem text
    python -m tests.reliability.kill --trials 50 --problem posterior
    python -m tests.reliability.kill --trials 50 --problem windows
    python -m tests.reliability.kill --trials 50 --problem sweep
    python -m tests.reliability.kill --trials 50 --problem halved
    python -m tests.reliability.kill --trials 50 --problem together
"""

import argparse
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms import Checkpoint, Dataset, StopReason, Trainer
from downhill_rms.training import recording
from examples import text

SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}
INTERRUPTED, BROKEN = 3, 4  # exit codes of a training process


def regression(mode):
    """A trainer, its data and its options."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 20))
    target = features @ rng.normal(size=20)
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(20), name="w")
    _, mask = pt.random.shared_rng(seed=1, name="dropout").bernoulli(0.8, size=x.shape)
    trainer = Trainer(pt.sqr((x * mask) @ w - y).mean(), inputs=[x, y], mode=mode)
    return trainer, [Dataset([features, target], batch_size=8, rng=2)], {"learning_rate": 0.01}


def small_text(mode):
    """The same of a network that carries its state through a text."""
    words = text.python_help()[:6000]
    task = text.learning(text.Writer(sorted(set(words)), units=4), words)
    definition = {"monitors": task.monitors, "carried": task.carried, "mode": mode}
    trainer = Trainer(task.loss, inputs=task.inputs, **definition)
    return trainer, [task.train, task.valid], {"learning_rate": 0.01, "monitor": "bits"}


def windows(mode):
    """The regression, its samples permuted in windows."""
    trainer, _, options = regression(mode)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 20))
    arrays = {"x": features, "y": features @ rng.normal(size=20)}
    return trainer, [Dataset(arrays, batch_size=8, window=24, rng=2, prefetch=1)], options


def posterior(mode):
    """The same of a variational approximation; needs PyMC."""
    from downhill_rms.pymc import advi_problem
    from tests.pymc import models

    y = models.normal_data(100)
    problem = advi_problem(models.normal_model(y), {"y": y}, updates=52, seed=1)
    train = Dataset({"y": y}, batch_size=8, rng=2)
    return problem.trainer(mode), [train], dict(problem.hyperparameters)


PROBLEMS = {
    "regression": regression,
    "text": small_text,
    "windows": windows,
    "posterior": posterior,
}


# Sweeps, by what is special about them.
SWEEPS = {"sweep": {}, "halved": {"halve_every": 2}, "together": {"how": "together"}}


def sweep(directory, mode, problem):
    """The same of a sweep; runs that go together have no dropout."""
    trainer, _, _ = regression(mode)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 20))
    target = features @ rng.normal(size=20)
    if problem == "together":
        x, y = pt.matrix("x"), pt.vector("y")
        w = pytensor.shared(np.zeros(20), name="w")
        trainer = Trainer(pt.sqr(x @ w - y).mean(), inputs=[x, y], mode=mode)
    recording.SECONDS_BETWEEN_CHECKPOINTS = 0.1  # of each run
    found = trainer.sweep(
        [features[:80], target[:80]],
        [features[80:], target[80:]],
        learning_rate=[0.001, 0.1, 3.0],
        seeds=2,
        start=lambda rng: {"w": rng.normal(size=20)},
        run_directory=directory / "sweep",
        resume=True,
        seed=2,
        batch_size=8,
        patience=2,
        max_epochs=6,
        validate_every=1,
        **SWEEPS[problem],
    )
    if any(run.stop_reason is StopReason.INTERRUPTED for run in found.runs):
        return INTERRUPTED
    state = dict(found.state)
    state.pop("history")
    history = [
        (
            *(run.name, str(run.stop_reason), run.best.epoch, run.best.loss),
            [(r.epoch, r.updates, r.train, r.valid, r.best) for r in run.history],
        )
        for run in found.runs
    ]
    (directory / "outcome").write_bytes(pickle.dumps((state, history)))
    return 0


def train(directory, mode, problem):
    """Train to the end, or to the next signal, and leave the outcome in a file."""
    if problem in SWEEPS:
        return sweep(directory, mode, problem)
    trainer, data, options = PROBLEMS[problem](mode)
    trainer.minimize(
        *data,
        checkpoint=Checkpoint(directory, every_updates=4, every_epochs=None),
        resume=True,
        momentum=0.9,
        max_epochs=4,
        validate_every=1,
        restore_best=False,
        **options,
    )
    if trainer.stop_reason is StopReason.INTERRUPTED:
        return INTERRUPTED
    state = trainer.state_dict()
    history = [(r.epoch, r.updates, r.train, r.valid, r.best) for r in trainer.history]
    state.pop("history")
    (directory / "outcome").write_bytes(pickle.dumps((state, history)))
    return 0


def start(directory, mode, problem):
    """Fork, so that a trial does not pay for imports; returns the process id."""
    directory.mkdir(exist_ok=True)
    process = os.fork()
    if process:
        return process
    code = BROKEN
    try:
        code = train(directory, mode, problem)
    except KeyboardInterrupt:
        code = INTERRUPTED  # before the trainer took note of signals
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def run_until_done(directory, mode, problem, how, longest):
    """Stop the process at random instants until one comes to its end; how often it was stopped."""
    stops = 0
    while True:
        process = start(directory, mode, problem)
        if how is not None:
            time.sleep(random.uniform(0, longest))
            os.kill(process, SIGNALS[how])
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return stops
        if code not in (INTERRUPTED, -signal.SIGKILL, -signal.SIGINT):
            raise RuntimeError(f"the training process ended with {code}")
        stops += 1
        longest *= 1.05  # so that a slow machine comes to an end


def same(found, expected):
    """Whether two outcomes are equal, bit for bit."""
    (state, history), (other, other_history) = map(pickle.loads, (found, expected))
    if history != other_history or state.keys() != other.keys():
        return False
    return all(np.array_equal(state[name], value) for name, value in other.items())


def main():
    """Run the trials and print how many were identical."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--how", choices=SIGNALS, default="kill")
    parser.add_argument("--mode", default="FAST_COMPILE", help="how PyTensor compiles")
    parser.add_argument("--problem", choices=[*PROBLEMS, *SWEEPS], default="regression")
    parser.add_argument("--directory", type=Path, help="where to work")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    identical = stops = 0
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        unbroken = Path(folder) / "unbroken"
        for _ in range(2):  # the second is timed with a warm cache
            began = time.perf_counter()
            run_until_done(unbroken, options.mode, options.problem, None, 0)
            seconds = time.perf_counter() - began
            expected = (unbroken / "outcome").read_bytes()
            shutil.rmtree(unbroken)
        for trial in range(options.trials):
            directory = Path(folder) / str(trial)
            kind = (options.mode, options.problem, options.how)
            stops += run_until_done(directory, *kind, 1.2 * seconds)
            identical += same((directory / "outcome").read_bytes(), expected)
    print(
        f"{options.how}, {options.mode}: {identical} of {options.trials} bit-identical "
        f"after {stops} stops, runs of {seconds:.2f} s"
    )
    sys.exit(identical < options.trials or not stops)  # nothing was tried without a stop


if __name__ == "__main__":
    main()
