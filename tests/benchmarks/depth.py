"""What it takes to compile a step, by layers and by parameters, or of the rungs that are named.

    python -m tests.benchmarks.depth [--peers ours optax ...] [--rung B "LSTM 128-32-64" ...]

Each figure is of a process of its own, imports included, from its start to its first update: on an
empty cache for this library, of PyTensor's and Numba's. Processor time is that of the process and
of all that it starts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import product

from tests.benchmarks.rungs import DEPTH


def cost(contestant, name, cache):
    """Seconds, processor seconds and gigabytes at the most, until the first update is made."""
    command = [sys.executable, "-m", "tests.benchmarks.worker", contestant, name]
    environment = os.environ | {"PYTENSOR_FLAGS": f"base_compiledir={cache}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    started = time.perf_counter()
    process = subprocess.Popen(command, text=True, env=environment, **pipes)
    process.stdin.write("1\n")
    process.stdin.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds = time.perf_counter() - started
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main():
    """Measure on an empty cache, then on the one that this has filled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", default=["ours"])
    deep = [f"deep {what} {size}" for what, rungs in DEPTH.items() for size in rungs]
    parser.add_argument("--rung", nargs="+", default=deep)
    arguments = parser.parse_args()
    for contestant, name in product(arguments.peers, arguments.rung):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "warm"):
                seconds, processor, gigabytes = cost(contestant, name, cache)
                print(
                    f"{contestant:10} {name:19} {state:5} cache {seconds:6.1f} s, of the processor "
                    f"{processor:6.1f} s, {gigabytes:5.2f} GB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
