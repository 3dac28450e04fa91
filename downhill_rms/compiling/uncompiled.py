"""PyTensor functions that run at once: Python and NumPy, with nothing compiled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytensor
import pytensor.scalar as ps
import pytensor.tensor as pt
from pytensor.compile.mode import Mode, optdb, predefined_optimizers
from pytensor.graph.rewriting.basic import (
    SequentialGraphRewriter,
    WalkingGraphRewriter,
    node_rewriter,
)
from pytensor.link.vm import VMLinker
from pytensor.tensor.elemwise import Elemwise

from downhill_rms.compiling.rewrites import rewriter_of_scans
from downhill_rms.rule import Update


class UncompiledFunction:
    """Expressions of minibatches that PyTensor's own Python code computes.

    Called as any PyTensor function is. It starts in tenths of a second, writes no file, and takes
    two to ten times as long a call as a compiled one, more for small arrays.

    Parameters
    ----------
    inputs, outputs, updates : sequence
        As for ``pytensor.function``.

    Attributes
    ----------
    calls : int
        Calls so far.
    input_storage : list of Container
        Those of the PyTensor function.
    """

    def __init__(
        self, inputs: Sequence[Any], outputs: Sequence[Any], updates: Sequence[Update] = ()
    ) -> None:
        with nothing_compiled():
            self._function = pytensor.function(
                list(inputs),
                list(outputs),
                updates=list(updates),
                mode=_mode(),
                on_unused_input="ignore",
                trust_input=True,
            )
        self.calls = 0
        self.input_storage = self._function.input_storage
        # Once a block of this size was freed, glibc keeps smaller ones for the next call, which
        # otherwise takes each large array from the kernel anew: half the time of a call.
        np.empty(31 << 20, dtype="uint8")

    def __call__(self, *batch: Any) -> list[Any]:
        """Call it with one array for each input, each of exactly the input's type."""
        with np.errstate(all="ignore"):  # compiled code does not warn of overflow either
            if self.calls:
                result: list[Any] = self._function(*batch)
            else:
                with nothing_compiled():  # inner graphs are built when they are first called
                    result = self._function(*batch)
        self.calls += 1
        return result


def nothing_compiled() -> Any:
    """While this is in force, PyTensor compiles no C and hands nothing to Numba."""
    return pytensor.config.change_flags(cxx="", mode="FAST_COMPILE")


def _mode() -> Mode:
    # The rewrites that keep a loss finite, log(softmax(x)) for example, and none for speed.
    linker, stabilize = (
        VMLinker(use_cloop=False, c_thunks=False),
        predefined_optimizers["stabilize"],
    )
    inside = Mode(linker, stabilize)

    # PyTensor 3.0 rewrites inside a scan as for C, and its Python code then takes the sum of x1 and
    # x2**2 for that of x1**2 and x2**2.
    ours = (WalkingGraphRewriter(_for_numpy), rewriter_of_scans(lambda given: inside))
    return Mode(linker, SequentialGraphRewriter(optdb.query(stabilize), *ours))


@node_rewriter([Elemwise])  # type: ignore[untyped-decorator]
def _for_numpy(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace what PyTensor 3.0's Python code would compute one element at a time."""
    scalar_op, inputs = node.op.scalar_op, node.inputs
    if isinstance(scalar_op, ps.Add | ps.Mul) and len(inputs) > 2:
        return [reduce(node.op, inputs)]
    if isinstance(scalar_op, ps.Clip):
        x, low, high = inputs
        return [pt.minimum(pt.maximum(x, low), high)]
    if isinstance(scalar_op, ps.Cast) and node.op.nfunc_spec is None:
        # The result is converted to the output's type; np.array makes the copy for that.
        return [Elemwise(scalar_op, nfunc_spec=("array", 1, 1))(*inputs)]
    return None
