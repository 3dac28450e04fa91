"""Stop one of several processes at random instants: all end at one update, and all goes on.

Every trial trains a regression with dropout and momentum in 2 processes, with a checkpoint every 5
updates. At a random instant one process, at random too, is given SIGTERM (``--how signal``), or is
killed (``--how kill``, signal 9). After a signal every process must have ended at the same update;
after a kill the others must end within a bounded time. Then the run is started again, and comes to
its end with the numbers of a run that nobody stopped, bit for bit.

    python -m tests.distributed.stops --trials 20 --how signal
    python -m tests.distributed.stops --trials 20 --how kill
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from downhill_rms.parallel import run_processes

PROCESSES, EPOCHS = 2, 60
BOUND = 30.0  # seconds in which the others end after a kill
ENDED = "it had ended before"
HOW = {"signal": signal.SIGTERM, "kill": signal.SIGKILL}


def train(folder, process_id):
    """Train to the end, or to the next signal, and say where that was."""
    from downhill_rms import Checkpoint, Dataset
    from tests.distributed.program import arrays, regression

    trainer = regression("float64", dropout=True, devices="all")
    pid = folder / f"pid-{process_id}"

    def tell(record):
        if not pid.exists():
            pid.write_text(str(os.getpid()))

    trainer.minimize(
        Dataset(list(arrays("float64")), batch_size=16, rng=2),
        checkpoint=Checkpoint(folder / "checkpoints", every_updates=5),
        resume=True,
        learning_rate=0.001,
        momentum=0.9,
        max_epochs=EPOCHS,
        validate_every=5,
        patience=np.inf,
        observers=[tell],
    )
    pid.unlink(missing_ok=True)  # from here on a signal is no longer the trainer's to answer
    state = trainer.state_dict()
    state.pop("history")
    arrays_of = {n: v for n, v in state.items() if isinstance(v, np.ndarray)}
    losses = np.array([[r.train["loss"], r.valid["loss"]] for r in trainer.history])
    if process_id == 0:
        np.savez(folder / "outcome.npz", **arrays_of, losses=losses)
    end = {"updates": trainer.update_count, "reason": trainer.stop_reason}
    (folder / f"end-{process_id}").write_text(json.dumps(end))


def run(folder, how=None, longest=0.0):
    """Run the processes once, and stop one of them; seconds from a kill to the end of all."""
    for name in ("pid", "end"):
        for process in range(PROCESSES):
            (folder / f"{name}-{process}").unlink(missing_ok=True)
    stopped: list[float] = []
    victim = folder / f"pid-{random.randrange(PROCESSES)}"
    delay = random.uniform(0, longest)

    def stop():
        while not (victim.exists() and victim.read_text()):
            time.sleep(0.01)
            if over.is_set():
                return
        if not over.wait(delay) and victim.exists():
            os.kill(int(victim.read_text()), HOW[how])
            stopped.append(time.monotonic())

    over = threading.Event()
    if how is not None:
        threading.Thread(target=stop).start()
    program = [sys.executable, "-W", "ignore", "-m", "tests.distributed.stops", "--child"]
    code, failure = run_processes([*program, str(folder), "--processes", str(PROCESSES)], PROCESSES)
    over.set()
    if how != "kill" and (code or failure is not None):
        raise RuntimeError(f"{code}, {failure}: {failure and failure.error}")
    return time.monotonic() - stopped[0] if stopped else None


def ends(folder):
    """Where each process said that it ended."""
    files = [folder / f"end-{process}" for process in range(PROCESSES)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def outcome(folder):
    """The final numbers."""
    with np.load(folder / "outcome.npz") as file:
        return dict(file)


def same(found, expected):
    """Whether two outcomes are equal, bit for bit."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], value) for name, value in expected.items()
    )


def trial(folder, how, longest, expected):
    """Stop a run once and go on with it; what went wrong, or how long the others took to end."""
    folder.mkdir(parents=True)
    seconds = run(folder, how, longest)
    found = ends(folder)
    if seconds is None:
        return ENDED, None
    if how == "signal":
        if len({end["updates"] for end in found}) != 1 or len(found) != PROCESSES:
            return f"ended at different updates: {found}", None
    elif seconds > BOUND:
        return f"the others took {seconds:.0f} s to end", None
    for _ in range(3):
        run(folder)
        if all(end["reason"] == "max_epochs" for end in ends(folder)):
            break
    if not same(outcome(folder), expected):
        return "other numbers than a run that nobody stopped", None
    return None, seconds


def trial_in_time(folder, how, longest, expected):
    """The same, again and sooner where the run had ended before it was to be stopped."""
    for attempt in range(20):
        fault, seconds = trial(folder / str(attempt), how, longest, expected)
        if fault != ENDED:
            break
        longest *= 0.7
    return fault, seconds


def main():
    """Run the trials and print how they went; the exit code tells whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--how", choices=HOW, default="signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process-id", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        from downhill_rms.parallel import initialize

        initialize(options.coordinator, options.processes, options.process_id)
        train(options.child, options.process_id)
        return
    random.seed(options.seed)
    wrong, times = 0, []
    with tempfile.TemporaryDirectory() as name:
        unbroken = Path(name) / "unbroken"
        unbroken.mkdir()
        began = time.monotonic()
        run(unbroken)
        longest = (time.monotonic() - began) / 2  # after the first epoch, about
        expected = outcome(unbroken)
        for number in range(options.trials):
            folder = Path(name) / str(number)
            fault, seconds = trial_in_time(folder, options.how, longest, expected)
            if fault is not None:
                wrong += 1
                print(f"trial {number}: {fault}")
            else:
                times.append(seconds)
    print(
        f"{options.how}: {options.trials - wrong} of {options.trials} ended at one update and "
        f"went on to the same numbers, bit for bit; all had ended {np.median(times):.1f} s after "
        f"it, {max(times):.1f} s at most"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
