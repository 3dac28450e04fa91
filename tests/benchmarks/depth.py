"""What it takes to compile a step, by layers and by parameters.

    python -m tests.benchmarks.depth [--peers ours optax ...]

Each figure is of a process of its own, imports included, from its start to its first update: on an
empty cache for this library, of PyTensor's and Numba's. Processor time is that of the process and
of all that it starts.
"""

import argparse
import os
import subprocess
import sys
import tempfile

from tests.benchmarks.rungs import DEPTH


def cost(contestant, name, cache):
    """Processor seconds and gigabytes at the most, until the first update is made."""
    command = [sys.executable, "-m", "tests.benchmarks.worker", contestant, name]
    environment = os.environ | {"PYTENSOR_FLAGS": f"base_compiledir={cache}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, env=environment, **pipes)
    process.stdin.write("1\n")
    process.stdin.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main():
    """Measure on an empty cache, then on the one that this has filled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", default=["ours"])
    for contestant in parser.parse_args().peers:
        for what, rungs in DEPTH.items():
            for size in rungs:
                with tempfile.TemporaryDirectory() as cache:
                    for state in ("empty", "warm"):
                        seconds, gigabytes = cost(contestant, f"deep {what} {size}", cache)
                        text = f"{contestant:8} {size:4} {what:10} {state:5} cache"
                        print(f"{text} {seconds:6.1f} s {gigabytes:5.2f} GB", flush=True)


if __name__ == "__main__":
    main()
