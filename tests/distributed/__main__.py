"""Whether many devices and processes give the numbers of one device: a table of differences.

Every case of ``program.py`` is trained on one device without a mesh, then on 1, 2 and 4 virtual
devices of one process, on 2 processes with one device and with two, and on 4 processes. Printed is
the largest relative difference of any loss, monitor, best, parameter and accumulator.

    python -m tests.distributed
    python -m tests.distributed --layouts 1x4 2x1 --cases plain dropout
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from downhill_rms.parallel.processes import run_processes
from tests.distributed.program import CASES

LAYOUTS = ("1x1", "1x2", "1x4", "2x1", "2x2", "4x1")  # processes x devices of each
BOUNDS = {"float32": 1e-5, "float64": 1e-12}


def command(out, local_devices, cases):
    """Of a process that runs cases."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.distributed.program"]
    return [*program, "--out", str(out), "--local-devices", str(local_devices), "--cases", *cases]


def numbers(layout, cases, folder):
    """What the cases give in a layout; None is one device without a mesh."""
    out = Path(folder) / f"{layout}.npz"
    if layout is None:
        subprocess.run([*command(out, 1, cases), "--reference"], check=True)
    else:
        processes, devices = map(int, layout.split("x"))
        if processes == 1:
            subprocess.run(command(out, devices, cases), check=True)
        else:
            words = [*command(out, devices, cases), "--processes", str(processes)]
            code, failure = run_processes(words, processes)
            if code or failure is not None:
                raise RuntimeError(f"{layout}: {failure}, {code}: {failure and failure.error}")
    with np.load(out) as file:
        return dict(file)


def difference(found, expected, case):
    """The largest difference of the arrays of a case, relative to the array's largest number."""
    keys = [key for key in expected if key.startswith(f"{case}|")]
    assert keys
    assert keys == [key for key in found if key.startswith(f"{case}|")]
    return max(
        float(np.abs(found[key] - expected[key]).max() / max(np.abs(expected[key]).max(), 1e-3))
        for key in keys
    )


def main():
    """Print the table; the exit code tells whether all is within the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", nargs="*", default=LAYOUTS)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    within = True
    with tempfile.TemporaryDirectory() as folder:
        expected = numbers(None, options.cases, folder)
        found = {layout: numbers(layout, options.cases, folder) for layout in options.layouts}
    print(f"{'processes x devices':<36}" + "".join(f"{layout:>10}" for layout in options.layouts))
    for case in options.cases:
        worst = [difference(found[layout], expected, case) for layout in options.layouts]
        within &= max(worst) <= BOUNDS[CASES[case].get("dtype", "float64")]
        print(f"{case:<36}" + "".join(f"{value:>10.1e}" for value in worst))
    print("all within the bounds" if within else "NOT within the bounds")
    sys.exit(not within)


if __name__ == "__main__":
    main()
