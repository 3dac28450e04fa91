"""Tests compile nothing unless they test a backend.

Numba needs 20 to 60 s for a new graph on an empty cache. The Mode below runs PyTensor's own
Python implementation of each operation: it starts in milliseconds and rewrites nothing.
"""

import pytensor
import pytest
from pytensor.compile.mode import Mode
from pytensor.graph.rewriting.basic import WalkingGraphRewriter, node_rewriter
from pytensor.link.vm import VMLinker
from pytensor.scan.op import Scan


@pytest.fixture(autouse=True)
def fast_compile():
    """Whatever is compiled without naming a mode is compiled fast, and without g++."""
    with pytensor.config.change_flags(cxx="", mode="FAST_COMPILE"):
        yield


@pytest.fixture
def mode():
    """A mode that compiles nothing at all, inside a scan either.

    PyTensor 3.0 rewrites there as for C, and its Python code then takes the sum of x1 and x2**2
    for that of x1**2 and x2**2.
    """

    @node_rewriter([Scan])
    def same_inside(fgraph, node):
        if node.op.mode is mode:
            return None
        op = node.op.clone()
        op.mode = mode
        return op(*node.inputs, return_list=True)

    mode = Mode(VMLinker(use_cloop=False, c_thunks=False), WalkingGraphRewriter(same_inside))
    return mode
