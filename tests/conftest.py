"""Tests compile nothing unless they test a backend.

Numba needs 20 to 60 s for a new graph on an empty cache. The Mode below runs PyTensor's own
Python implementation of each operation: it starts in milliseconds and rewrites nothing.
"""

import os
import signal
import sys

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # before JAX is imported

import pytensor
import pytest
from pytensor.compile.mode import Mode
from pytensor.link.vm import VMLinker

from downhill_rms.compiling.internals import rewriter_of_scans


@pytest.fixture(autouse=True)
def fast_compile():
    """Whatever is compiled without naming a mode is compiled fast, and without g++."""
    with pytensor.config.change_flags(cxx="", mode="FAST_COMPILE"):
        yield


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C reaches a test and what it starts, also where pytest itself was told to ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(autouse=True)
def forget_files(tmp_path_factory):
    """What a test imported from files of its own is no module for the next."""
    before = set(sys.modules)
    yield
    temporary = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(temporary):
            del sys.modules[name]


@pytest.fixture
def mode():
    """A mode that compiles nothing at all, inside a scan either.

    PyTensor 3.0 rewrites there as for C, and its Python code then takes the sum of x1 and x2**2
    for that of x1**2 and x2**2.
    """

    inside = rewriter_of_scans(lambda given: mode)
    mode = Mode(VMLinker(use_cloop=False, c_thunks=False), inside)
    return mode


def pytest_addoption(parser):
    parser.addoption(
        "--random-graphs",
        type=int,
        metavar="N",
        help="how many random graphs are tried in each mode; by default a few, always the same",
    )
