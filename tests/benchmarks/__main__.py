"""Training, timed beside other libraries.

    python -m tests.benchmarks [--rung A B C D] [--peers torch optax] [--rounds 15] [--json FILE]

Every contestant trains the same network from the same parameters on the same minibatches by the
same centered RMSProp, in a process of its own. They take turns, one at a time, block by block;
each block's time is divided by that of this library's block in the same round. The losses after
the first block are compared, so that nobody computes something else. Needs the extra ``bench``.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from downhill_rms.machine import best_kernel, loaded_openblas, usable_cores
from tests.benchmarks.rungs import RUNGS

TOLERANCE = 0.02  # relative, of the losses: sums of float32 in different orders


class Contestant:
    """A worker process."""

    def __init__(self, name, rung):
        command = [sys.executable, "-m", "tests.benchmarks.worker", name, rung]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes)
        self.version = json.loads(self.process.stdout.readline())

    def train(self, updates):
        """Seconds that the updates took, and the loss after them."""
        self.process.stdin.write(f"{updates}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["loss"]

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def measure(rung, names, rounds):
    """Microseconds an update in every round, and losses after the first block, by contestant."""
    contestants = {name: Contestant(name, rung) for name in names}
    updates = RUNGS[rung].updates
    times = {name: [] for name in names}
    losses = {}
    for turn in range(rounds + 1):  # the first compiles and warms up
        for name, contestant in contestants.items():
            seconds, loss = contestant.train(updates)
            losses.setdefault(name, loss)  # later ones amplify rounding
            if turn:
                times[name].append(seconds / updates * 1e6)
    versions = {name: contestant.version for name, contestant in contestants.items()}
    for contestant in contestants.values():
        contestant.close()
    return {"times": times, "losses": losses, "versions": versions}


def disagree(losses):
    """Whether the losses are not those of the same computation."""
    ours = losses["ours"]
    return not all(
        math.isclose(loss, ours, rel_tol=TOLERANCE, abs_tol=1e-3) for loss in losses.values()
    )


def show(rung, result):
    """Print a rung's figures."""
    print(f"\n{rung}: {RUNGS[rung].title}; microseconds an update")
    for name, times in result["times"].items():
        ratios = [a / b for a, b in zip(times, result["times"]["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"  {name:<6} least {min(times):8.1f}  median {statistics.median(times):8.1f}  "
            f"ratio {middle:6.2f} (quartiles {low:.2f} to {high:.2f})  "
            f"loss {result['losses'][name]:.5f}  {result['versions'][name]}"
        )
    if disagree(result["losses"]):
        print("  THE LOSSES DISAGREE: not the same computation")


def machine():
    """What the figures depend on."""
    blas = loaded_openblas()
    return {
        "python": platform.python_version(),
        "cores": usable_cores(),
        "BLAS kernel": blas and blas.kernel,
        "BLAS threads": blas and blas.threads,
        "best kernel": best_kernel(),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
    }


def main():
    """Measure the rungs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rung", nargs="+", choices=list(RUNGS), default=list(RUNGS))
    parser.add_argument("--peers", nargs="+", default=["torch", "optax"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    results = {"machine": machine(), "rungs": {}}
    for rung in arguments.rung:
        result = measure(rung, ["ours", *arguments.peers], arguments.rounds)
        results["rungs"][rung] = result
        show(rung, result)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    return any(disagree(result["losses"]) for result in results["rungs"].values())


if __name__ == "__main__":
    sys.exit(main())
