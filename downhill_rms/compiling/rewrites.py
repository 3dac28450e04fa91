"""Rewrites of the graph that Numba compiles: less to compile, and faster functions.

They act where PyTensor compiles a training step, after gradients were taken and after its own
rewrites for stability, and replace one operation by another that computes the same:

- a matrix product by a plain ``np.dot`` that takes transposed matrices as they are. Before 3.3
  PyTensor copies each of them first; since 3.3 it compiles a matrix product of its own, which is
  as fast, but takes 15 to 40 s on an empty cache.
- in single precision tanh, exp, sigmoid, log1p and softplus by those of `downhill_rms.float32`,
  which take a tenth of the time or less, and which stay as fast where several of them are fused
  into one loop.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.scalar as ps
from pytensor.compile.mode import NUMBA, Mode, get_mode
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import WalkingGraphRewriter, node_rewriter
from pytensor.link.numba.linker import NumbaLinker
from pytensor.scalar.math import Sigmoid, Softplus
from pytensor.scan.op import Scan
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Dot, dot

# Modes that PyTensor does not know: its Numba mode with these rewrites, and that of a
# `TieredFunction`, which becomes the first.
REWRITTEN, TIERED = "NUMBA_REWRITTEN", "tiered"

# In PyTensor's sequence: after every rewrite that looks for the replaced operations, before
# elementwise operations are fused (48) and inner graphs are compiled (49.6).
POSITION = 47.5


def training_mode(mode: Any) -> Any:
    """The mode that a training step is compiled in.

    Parameters
    ----------
    mode : str, Mode or None
        What the user asked for; None for PyTensor's default.

    Returns
    -------
    str or Mode
        PyTensor's default with these rewrites for None, if that default is Numba; ``NUMBA`` with
        them for `REWRITTEN`; any other ``mode`` as it is.
    """
    if mode == REWRITTEN:
        return _rewritten(NUMBA)
    if mode is None and isinstance(get_mode(None).linker, NumbaLinker):
        return _rewritten(get_mode(None))
    return mode


def default_mode() -> str | None:
    """What begins at once: tiered, unless PyTensor is set to a mode of the user's own."""
    if getattr(sys, "frozen", False):  # a child would be this program again, and no Python
        return None
    unchanged = pytensor.config.mode == "Mode" and isinstance(get_mode(None).linker, NumbaLinker)
    return TIERED if unchanged else None


def pytensor_mode(mode: Any) -> Any:
    """The mode of PyTensor's own that a mode builds upon."""
    return "NUMBA" if mode in (REWRITTEN, TIERED) else mode


def rewriter_of_scans(wanted: Callable[[Any], Any]) -> WalkingGraphRewriter:
    """A rewriter that has the graphs inside scans compiled by another mode.

    Before PyTensor 3.3 the graph inside a scan is rewritten by a mode of the scan's own.

    Parameters
    ----------
    wanted : callable
        Takes the mode of a scan, None if it was given none, to the one that it is to have.
    """

    @node_rewriter([Scan])  # type: ignore[untyped-decorator]
    def rewrite(fgraph: Any, node: Any) -> list[Any] | None:
        mode = wanted(node.op.mode)
        if mode is node.op.mode:
            return None
        op = node.op.clone()
        op.mode = mode
        return list(op(*node.inputs, return_list=True))

    return WalkingGraphRewriter(rewrite)


@cache
def source_key() -> str:
    """A hash of these rewrites and their functions, for the caches of what is compiled of them."""
    here = Path(__file__)
    sources = (path.read_bytes() for path in (here, here.with_name("float32.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()


class PlainDot(Op):  # type: ignore[misc]
    """A product of two matrices by ``np.dot``.

    PyTensor's transpose makes ``np.dot`` copy a matrix first; NumPy's own does not.

    Parameters
    ----------
    transposed : tuple of bool
        Whether the first and the second matrix are transposed before.
    """

    __props__ = ("transposed",)

    def __init__(self, transposed: tuple[bool, ...]) -> None:
        self.transposed = transposed

    def make_node(self, *matrices: Any) -> Any:
        """The product of these matrices, given as they are before they are transposed."""
        x, y = self._factors(matrices)
        return Apply(self, list(matrices), [dot(x, y).type()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        output_storage[0][0] = np.dot(*self._factors(inputs))

    def _factors(self, matrices: Sequence[Any]) -> list[Any]:
        return [m.T if t else m for m, t in zip(matrices, self.transposed, strict=True)]


class Tanh32(ps.Tanh):  # type: ignore[misc]
    """Hyperbolic tangent of single-precision numbers."""


class Exp32(ps.Exp):  # type: ignore[misc]
    """Exponential function of single-precision numbers."""


class Sigmoid32(Sigmoid):  # type: ignore[misc]
    """Logistic function of single-precision numbers."""


class Log1p32(ps.Log1p):  # type: ignore[misc]
    """Logarithm of 1 + x of single-precision numbers."""


class Softplus32(Softplus):  # type: ignore[misc]
    """Logarithm of 1 + exp(x) of single-precision numbers."""


SINGLE: dict[type, type] = {
    ps.Tanh: Tanh32,
    ps.Exp: Exp32,
    Sigmoid: Sigmoid32,
    ps.Log1p: Log1p32,
    Softplus: Softplus32,
}


@cache
def _rewritten(base: Mode) -> Mode:
    _teach_numba()

    rewriters = [
        WalkingGraphRewriter(replace_dot),
        WalkingGraphRewriter(replace_elementwise),
        rewriter_of_scans(lambda given: mode if given is None else given),
    ]
    mode = base.register(*((rewriter, POSITION) for rewriter in rewriters))
    return mode


@node_rewriter([Dot])  # type: ignore[untyped-decorator]
def replace_dot(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace a product of two matrices of one floating-point dtype."""
    dtypes = {variable.type.dtype for variable in (*node.inputs, *node.outputs)}
    if type(node.op) is not Dot or len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        return None
    transposed = tuple(map(_is_transpose, node.inputs))
    matrices = [v.owner.inputs[0] if t else v for v, t in zip(node.inputs, transposed, strict=True)]
    return [PlainDot(transposed)(*matrices)]


def _is_transpose(matrix: Any) -> bool:
    node = matrix.owner
    return (
        node is not None and isinstance(node.op, DimShuffle) and tuple(node.op.new_order) == (1, 0)
    )


@node_rewriter([Elemwise])  # type: ignore[untyped-decorator]
def replace_elementwise(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace a function of single-precision numbers."""
    scalar_op = node.op.scalar_op
    new = SINGLE.get(type(scalar_op))
    if new is None or {node.inputs[0].type.dtype, node.outputs[0].type.dtype} != {"float32"}:
        return None
    return [Elemwise(new(scalar_op.output_types_preference))(*node.inputs)]


@cache
def _teach_numba() -> None:
    """Tell PyTensor how Numba computes these operations; Numba takes a while to import."""
    from pytensor.link.numba.dispatch.basic import (
        numba_njit,
        register_funcify_and_cache_key,
        register_funcify_default_op_cache_key,
    )

    from downhill_rms.compiling import float32

    def same(x: Any) -> Any:
        return x

    def transpose(x: Any) -> Any:
        return x.T

    @register_funcify_default_op_cache_key(PlainDot)  # type: ignore[untyped-decorator]
    def funcify_dot(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        first, second = (numba_njit(transpose if t else same) for t in op.transposed)

        @numba_njit  # type: ignore[untyped-decorator]
        def plain_dot(x: Any, y: Any) -> Any:
            return np.dot(first(x), second(y))

        return plain_dot, 2

    # The formulas are no part of what PyTensor's on-disk cache looks at.
    source = source_key()

    def register(op_type: type, function: Callable[[Any], Any]) -> None:
        @register_funcify_and_cache_key(op_type)  # type: ignore[untyped-decorator]
        def funcify(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str]:
            return function, f"{op_type.__name__}_{source}"

    for op_type in SINGLE.values():
        register(op_type, getattr(float32, op_type.__name__.removesuffix("32").lower()))

    _inline_composites()


def _inline_composites() -> None:
    """Have Numba compile a fused loop with these functions as a whole.

    PyTensor compiles what a fused loop computes for one element as a function. With two of our
    functions it is too large for LLVM to inline it, and a loop around a call is not vectorised.
    Composites without our functions stay PyTensor's, and so does every graph in another mode. An
    operation of our own in their place would be lost: PyTensor 3.3 makes new composites of them
    where it fuses a loop with a sum.
    """
    from pytensor.link.numba.dispatch import elemwise
    from pytensor.link.numba.dispatch.basic import (
        numba_funcify_and_cache_key,
        numba_njit,
        register_funcify_and_cache_key,
    )

    theirs = numba_funcify_and_cache_key.dispatch(ps.Composite)

    @register_funcify_and_cache_key(ps.Composite)  # type: ignore[untyped-decorator]
    def funcify_composite(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        if not any(type(inner.op) in SINGLE.values() for inner in op.fgraph.apply_nodes):
            return theirs(op, node=node, **kwargs)  # type: ignore[no-any-return]
        kwargs.pop("storage_map", None)
        function, key = numba_funcify_and_cache_key(
            op.fgraph, squeeze_output=True, fgraph_name="numba_composite", **kwargs
        )
        function = numba_njit(function.py_func, forceinline=True)
        function.belongs_in_loop = True
        return function, key and f"inlined_{key}"

    if not hasattr(elemwise, "store_core_outputs"):
        return

    # Before 3.3 the loop calls a function, made here, that calls the composite and stores its
    # results, or adds them where a sum or an indexed addition is fused into the loop.
    make = elemwise.store_core_outputs

    @wraps(make)
    def store_core_outputs(function: Any, *args: Any, **kwargs: Any) -> Any:
        stored = make(function, *args, **kwargs)
        if not getattr(function, "belongs_in_loop", False):
            return stored
        return numba_njit(stored.py_func, forceinline=True)

    elemwise.store_core_outputs = store_core_outputs
