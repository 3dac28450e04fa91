"""JAX mode as this library compiles in it: PyTensor's own, with the dtypes that the graph says.

PyTensor's JAX code computes some operations in another dtype than the graph promises: a float32 sum
comes out in the float64 that it is accumulated in, and a float32 array times an integer one, which
is float64 for NumPy and PyTensor, is float32 for JAX; and zeros in float32 are float64. Parameters
then change their dtype, or a scan stops at an error.

Lengths are a matter of their own (`lengths`).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Constant

from downhill_rms.compiling import jaxops
from downhill_rms.compiling.internals import (
    FIRST,
    CAReduce,
    Dot,
    Elemwise,
    JAXLinker,
    Mode,
    SequentialGraphRewriter,
    WalkingGraphRewriter,
    node_rewriter,
    with_rewriters,
)
from downhill_rms.compiling.jaxlinker import DonatingLinker, setting_kept
from downhill_rms.compiling.lengths import OfShapes, compute_lengths, slice_split


@cache
def jax_mode(base: Any) -> Any:
    """A JAX mode with these rewrites, inside scans too, that computes updates in place.

    A linker of another class than PyTensor's own is left as it is.
    """
    if type(base.linker) is JAXLinker:
        base = Mode(DonatingLinker(), base.provided_optimizer)
    donates = isinstance(base.linker, DonatingLinker)
    with setting_kept() if donates else nullcontext():
        jaxops.register()
    rewriters = (
        *(jaxops.inline_rest, jaxops.replace_convolution, jaxops.replace_product_without_zeros),
        *(slice_split, compute_lengths, cast_reduction, cast_factors, keep_constant),
    )
    # What is moved out of a scan is given to it, and no length that JAX knows any more. XLA moves
    # what it computes itself.
    # Branches that are compiled apart are given lengths as values; XLA compiles them together.
    base = base.excluding("scan_push_out_non_seq", "lazy_ifelse")
    base = base.register((WalkingGraphRewriter(jaxops.inline_graph), FIRST))
    return with_rewriters(base, SequentialGraphRewriter(*map(WalkingGraphRewriter, rewriters)))


@node_rewriter([CAReduce])  # type: ignore[untyped-decorator]
def cast_reduction(fgraph: Any, node: Any) -> list[Any] | None:
    """Cast a reduction that JAX returns in the dtype of its accumulator."""
    op, (out,) = node.op, node.outputs
    accumulated = getattr(op, "acc_dtype", None)
    if accumulated in (None, out.type.dtype):
        return None
    return [op.clone(dtype=accumulated)(*node.inputs).astype(out.type.dtype)]


@node_rewriter([Elemwise, Dot])  # type: ignore[untyped-decorator]
def cast_factors(fgraph: Any, node: Any) -> list[Any] | None:
    """Cast floating-point numbers that meet integers of 32 bits or more, as NumPy would.

    JAX takes no integer's precision into account.
    """
    dtypes = {v.type.dtype for v in node.inputs} - {"bool"}
    wide = {d for d in dtypes if d in ("int32", "int64", "uint32", "uint64")}
    if {v.type.dtype for v in node.outputs} != {"float64"} or not wide or wide == dtypes:
        return None
    if dtypes - wide == {"float64"}:
        return None
    cast = [v if v.type.dtype in ("bool", "float64") else v.astype("float64") for v in node.inputs]
    return [node.op(*cast)]


@node_rewriter(None)  # type: ignore[untyped-decorator]
def keep_constant(fgraph: Any, node: Any) -> list[Any] | None:
    """Make an array of a constant whose dtype the result depends on.

    PyTensor hands a constant without dimensions to JAX as a Python number, which has the dtype of
    whatever it meets, and float64 where it meets nothing.
    """
    if isinstance(node.op, OfShapes) or not any(map(_is_number, node.inputs)):
        return None
    meets = {v.type.dtype for v in node.inputs if not _is_number(v) and hasattr(v.type, "dtype")}
    if isinstance(node.op, Elemwise) and meets & {v.type.dtype for v in node.outputs}:
        return None
    arrays = [_array(v) if _is_number(v) else v for v in node.inputs]
    return list(node.clone_with_new_inputs(arrays).outputs)


def _is_number(variable: Any) -> bool:
    return isinstance(variable, Constant) and variable.type in (pt.fscalar, pt.dscalar)


def _array(number: Any) -> Any:
    return pt.constant(np.array([number.data])).dimshuffle()
