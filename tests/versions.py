"""Run the tests on several versions of PyTensor, each in an environment of its own.

Run ``python -m tests.versions`` for the tests of the backends, with ``--all`` for the suite and the
slow tests of several processes and of PyMC, and with versions as arguments for these alone.
``--environments DIRECTORY`` keeps environments and compiled code there for the next time. A version
for which this machine has no Python is skipped, and a line says why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEWEST = "newest"

# Which versions of Python each runs on: PyTensor's wheels say so.
VERSIONS = {
    "3.0.7": ("3.11", "3.12", "3.13"),
    "3.1.3": ("3.12", "3.13"),
    "3.2.4": ("3.12", "3.13"),
    "3.3.4": ("3.12", "3.13"),
    NEWEST: ("3.14", "3.13", "3.12"),
}

# What compiles, or depends on what PyTensor compiles.
BACKEND_TESTS = [
    *("tests/compiling/test_rewrites.py", "tests/compiling/test_modes.py"),
    *("tests/compiling/test_backends.py", "tests/compiling/test_random_graphs.py"),
    *("tests/compiling/test_lengths.py", "tests/compiling/test_uncompiled.py"),
    *("tests/compiling/test_fusing.py", "tests/compiling/test_graphcache.py"),
    *("tests/compiling/test_columns.py", "tests/compiling/test_products.py"),
    *("tests/compiling/test_threads.py", "tests/compiling/test_tiledloops.py"),
    *("tests/compiling/test_productupdates.py", "tests/compiling/test_jaxlinker.py"),
]
# The slow tests whose end depends on what is installed beside PyTensor: JAX and PyMC.
SLOW_TESTS = ["tests/parallel", "tests/pymc"]
NEEDED = ("hypothesis", "jax", "pytest", "pytest-xdist")


def python_for(supported: tuple[str, ...]) -> str | None:
    """A Python of one of these versions: the running one, one on the path, or pyenv's."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running in supported:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in supported:
        found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
        for candidate in map(str, filter(None, reversed(found))):
            said = subprocess.run([candidate, "-c", "import venv"], capture_output=True)
            if said.returncode == 0:  # pyenv has a command for every version that it knows of
                return candidate
    return None


def make_environment(python: str, version: str, directory: Path, extras: bool) -> Path:
    """The Python of an environment with this version of PyTensor; one that is there is kept."""
    inside = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pytensor = "pytensor" if version == NEWEST else f"pytensor=={version}"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", str(directory)], check=True)
    what = [f"{ROOT}[test]"] if extras else [str(ROOT), *NEEDED]
    pip = [str(inside), "-m", "pip", "install", "--quiet", "--upgrade", pytensor]
    subprocess.run([*pip, *(what[1:]), "--editable", what[0]], check=True)
    return inside


def run_tests(python: Path, cache: Path, tests: list[str], marks: str = "not slow") -> int:
    """The exit status of pytest for tests of some marks, with compiled code kept in ``cache``."""
    flags = ",".join(filter(None, [os.environ.get("PYTENSOR_FLAGS"), f"base_compiledir={cache}"]))
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-n",
        "auto",
        "-m",
        marks,
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    environment = os.environ | {"PYTENSOR_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main() -> int:
    """Returns how many versions failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=", ".join(VERSIONS))
    parser.add_argument("--all", action="store_true", help="run the suite")
    parser.add_argument("--environments", type=Path, metavar="DIRECTORY", help="keep them there")
    arguments = parser.parse_args()
    if unknown := set(arguments.versions) - set(VERSIONS):
        parser.error(f"versions are {', '.join(VERSIONS)}: received {', '.join(sorted(unknown))}")
    said: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.environments or Path(temporary)
        for version in arguments.versions or VERSIONS:
            said[version] = _one(version, home.resolve(), arguments.all)
            print(f"PyTensor {version}: {said[version]}", flush=True)
    print(*(f"{version:8} {text}" for version, text in said.items()), sep="\n")
    return sum(text.startswith("FAILED") for text in said.values())


def _one(version: str, home: Path, everything: bool) -> str:
    started = time.monotonic()
    python = python_for(VERSIONS[version])
    if python is None:
        return f"skipped: it needs Python {' or '.join(VERSIONS[version])}, which is not here"
    inside = make_environment(python, version, home / f"pytensor-{version}", everything)
    cache = home / f"cache-{version}"
    if everything:
        status = run_tests(inside, cache, [])
        status = run_tests(inside, cache, SLOW_TESTS, "slow") or status
    else:
        status = run_tests(inside, cache, BACKEND_TESTS)
    words = "passed" if status == 0 else f"FAILED (exit status {status})"
    return f"{words} in {time.monotonic() - started:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
