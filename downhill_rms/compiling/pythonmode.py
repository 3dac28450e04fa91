"""Modes that run PyTensor's own Python code: nothing is compiled."""

from __future__ import annotations

from functools import cache, reduce
from typing import Any

import pytensor.tensor as pt

from downhill_rms.compiling.internals import (
    Add,
    Cast,
    Clip,
    Elemwise,
    Mode,
    Mul,
    SequentialGraphRewriter,
    VMLinker,
    WalkingGraphRewriter,
    node_rewriter,
    optdb,
    predefined_optimizers,
    rewriter_of_scans,
    with_rewriters,
)


@cache
def python_mode(base: Any) -> Any:
    """A mode that runs in Python, inside scans too.

    Inside a scan PyTensor 3.0 rewrites as for C, and its Python code then takes the sum of x1 and
    x2**2 for that of x1**2 and x2**2.
    """
    return with_rewriters(base)


@cache
def uncompiled_mode(base: Any) -> Any:
    """The mode of an `UncompiledFunction`, whatever the base.

    It has the rewrites that keep a loss finite, log(softmax(x)) for example, and none for speed.
    """
    linker = VMLinker(use_cloop=False, c_thunks=False)
    rewriters = (WalkingGraphRewriter(for_numpy), rewriter_of_scans(lambda given: mode))
    stabilize = optdb.query(predefined_optimizers["stabilize"])
    mode = Mode(linker, SequentialGraphRewriter(stabilize, *rewriters))
    return mode


@node_rewriter([Elemwise])  # type: ignore[untyped-decorator]
def for_numpy(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace what PyTensor 3.0's Python code would compute one element at a time."""
    scalar_op, inputs = node.op.scalar_op, node.inputs
    if isinstance(scalar_op, Add | Mul) and len(inputs) > 2:
        return [reduce(node.op, inputs)]
    if isinstance(scalar_op, Clip):
        x, low, high = inputs
        return [pt.minimum(pt.maximum(x, low), high)]
    if isinstance(scalar_op, Cast) and node.op.nfunc_spec is None:
        # The result is converted to the output's type; np.array makes the copy for that.
        return [Elemwise(scalar_op, nfunc_spec=("array", 1, 1))(*inputs)]
    return None
