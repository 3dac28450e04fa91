"""What figures depend on: the processor, memory, products of matrices, and who else works.

python -m tests.benchmarks.hardware
"""

import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy.linalg import blas

from downhill_rms.compiling.machine import best_kernel, loaded_openblas, usable_cores

NUMBERS = 16 * 2**20  # of single precision: larger than caches
ROWS = 1024


def description():
    """All of it, by name, as a new process finds it that has this one's cores."""
    command = [sys.executable, "-m", "tests.benchmarks.hardware"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def look():
    """What this process finds."""
    found, cores = loaded_openblas(), usable_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "load": load,  # before this has made some of its own
        "python": platform.python_version(),
        "processor": processor(),
        "cores": cores,
        "BLAS kernel": found and found.kernel,
        "BLAS threads": found and found.threads,
        "best kernel": best_kernel(),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
        "memory, one core (GB/s)": round(bandwidth(1), 1),
        "memory, all cores (GB/s)": round(bandwidth(cores), 1),
        "products by NumPy (Gflop/s)": round(product_speed(np.dot)),
        "products by SciPy (Gflop/s)": round(product_speed(lambda x, y: blas.sgemm(1, x, y))),
    }


@contextmanager
def busy_core():
    """Have a process work on a core all the time."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def processor():
    """What the processor is called."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def bandwidth(threads):
    """Gigabytes that so many threads read and write in a second, adding arrays in place."""
    arrays = [np.ones((2, NUMBERS // threads), "float32") for _ in range(threads)]

    def add(pair):
        np.add(pair[0], pair[1], out=pair[0])

    with ThreadPoolExecutor(threads) as pool:
        seconds = least_seconds(lambda: list(pool.map(add, arrays)))
    return 3 * 4 * NUMBERS / seconds / 1e9


def product_speed(product):
    """Gigaflops of products of two matrices."""
    matrix = np.asfortranarray(np.ones((ROWS, ROWS), "float32"))
    return 2 * ROWS**3 / least_seconds(lambda: product(matrix, matrix)) / 1e9


def least_seconds(call):
    """The least of some calls."""
    found = []
    for _ in range(8):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


if __name__ == "__main__":
    print(json.dumps(look(), indent=1))
