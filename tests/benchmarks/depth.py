"""What it takes to compile a step, by layers and by parameters, or of the rungs that are named.

    python -m tests.benchmarks.depth [--peers ours optax ...] [--rung B "LSTM 128-32-64" ...]
                                     [--json FILE]

Each figure is of a process of its own, imports included, from its start to its first update: on an
empty cache for this library, of PyTensor's and Numba's. Processor time is that of the process and
of all that it starts, until some updates more are made, which are timed too. What a file has of
other rungs and contestants stays there (``docs/depth.json``).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from tests.benchmarks.rungs import DEPTH, rung_of


def cost(contestant, name, cache):
    """Seconds until the first update is made, and what it took of processor and memory.

    Then milliseconds for each further update.
    """
    command = [sys.executable, "-m", "tests.benchmarks.worker", contestant, name]
    environment = os.environ | {"PYTENSOR_FLAGS": f"base_compiledir={cache}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = time.perf_counter()
    process = subprocess.Popen(command, text=True, env=environment, **pipes)
    process.stdout.readline()  # who it is
    answer_of(process, 1)
    seconds, updates = time.perf_counter() - started, rung_of(name).updates
    answers = [answer_of(process, updates) for _ in range(3)]
    process.stdin.close()
    process.stdout.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        "seconds": seconds,
        "processor": used.ru_utime + used.ru_stime,
        "gigabytes": used.ru_maxrss / 1e6,
        "update": min(answer["seconds"] for answer in answers) / updates * 1e3,
    }


def answer_of(process, updates):
    """What a worker says of so many updates."""
    process.stdin.write(f"{updates}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main():
    """Measure on an empty cache, then on the one that this has filled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", default=["ours"])
    deep = [f"deep {what} {size}" for what, rungs in DEPTH.items() for size in rungs]
    parser.add_argument("--rung", nargs="+", default=deep)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    if arguments.json and arguments.json.exists():
        found = json.loads(arguments.json.read_text())
    for contestant, name in product(arguments.peers, arguments.rung):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "warm"):
                figures = cost(contestant, name, cache)
                print(
                    f"{contestant:10} {name:19} {state:5} cache {figures['seconds']:6.1f} s, of "
                    f"the processor {figures['processor']:6.1f} s, {figures['gigabytes']:5.2f} GB, "
                    f"then {figures['update']:.2f} ms an update",
                    flush=True,
                )
                found.setdefault(name, {}).setdefault(contestant, {})[state] = figures
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
