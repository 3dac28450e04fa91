"""Rewrites of the graph that Numba compiles: less to compile, and faster functions.

They act where PyTensor compiles a training step, after gradients were taken and after its own
rewrites for stability, and replace one operation by another that computes the same:

- a matrix product by a plain ``np.dot`` that takes transposed matrices as they are. Before 3.3
  PyTensor copies each of them first; since 3.3 it compiles a matrix product of its own, which is
  as fast, but takes 15 to 40 s on an empty cache.
- in single precision tanh, exp, sigmoid, log1p and softplus by those of `downhill_rms.float32`,
  which take a tenth of the time or less, and which stay as fast where several of them are fused
  into one loop;
- a view that is given to a scan by a contiguous array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from downhill_rms.compiling.internals import (
    Composite,
    DimShuffle,
    Dot,
    Elemwise,
    Exp,
    Log1p,
    Scan,
    Sigmoid,
    Softplus,
    Subtensor,
    Tanh,
    WalkingGraphRewriter,
    node_rewriter,
    numba_dispatch,
    with_rewriters,
)
from downhill_rms.compiling.selfcheck import source_key


@cache
def numba_mode(base: Any) -> Any:
    """A Numba mode with these rewrites, inside scans too."""
    teach_numba()
    rewrites = (contiguous_inputs, replace_dot, replace_elementwise)
    return with_rewriters(base, *map(WalkingGraphRewriter, rewrites))


def is_transpose(matrix: Any) -> bool:
    """Whether a matrix is the transpose of a variable."""
    node = matrix.owner
    return (
        node is not None and isinstance(node.op, DimShuffle) and tuple(node.op.new_order) == (1, 0)
    )


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
        return Apply(self, list(matrices), [pt.dot(x, y).type()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        output_storage[0][0] = np.dot(*self._factors(inputs))

    def _factors(self, matrices: Sequence[Any]) -> list[Any]:
        return [m.T if t else m for m, t in zip(matrices, self.transposed, strict=True)]


class Tanh32(Tanh):  # type: ignore[misc]
    """Hyperbolic tangent of single-precision numbers."""


class Exp32(Exp):  # type: ignore[misc]
    """Exponential function of single-precision numbers."""


class Sigmoid32(Sigmoid):  # type: ignore[misc]
    """Logistic function of single-precision numbers."""


class Log1p32(Log1p):  # type: ignore[misc]
    """Logarithm of 1 + x of single-precision numbers."""


class Softplus32(Softplus):  # type: ignore[misc]
    """Logarithm of 1 + exp(x) of single-precision numbers."""


SINGLE: dict[type, type] = {
    Tanh: Tanh32,
    Exp: Exp32,
    Sigmoid: Sigmoid32,
    Log1p: Log1p32,
    Softplus: Softplus32,
}


@node_rewriter([Dot])  # type: ignore[untyped-decorator]
def replace_dot(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace a product of two matrices of one floating-point dtype."""
    dtypes = {variable.type.dtype for variable in (*node.inputs, *node.outputs)}
    if type(node.op) is not Dot or len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        return None
    transposed = tuple(map(is_transpose, node.inputs))
    matrices = [v.owner.inputs[0] if t else v for v, t in zip(node.inputs, transposed, strict=True)]
    return [PlainDot(transposed)(*matrices)]


class Contiguous(Op):  # type: ignore[misc]
    """The same array, as one that Numba knows to be contiguous; a copy if it is not."""

    __props__ = ()
    view_map = {0: [0]}  # noqa: RUF012, as PyTensor's operations have it

    def make_node(self, x: Any) -> Any:
        """The same array."""
        return Apply(self, [x], [x.type()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        output_storage[0][0] = np.ascontiguousarray(inputs[0])


@node_rewriter([Scan])  # type: ignore[untyped-decorator]
def contiguous_inputs(fgraph: Any, node: Any) -> list[Any] | None:
    """Give a scan contiguous arrays where a step would be given views.

    Of a slice Numba does not know that it is contiguous, and loops over its rows are not
    vectorised. Of a transposed matrix a product makes a contiguous copy in each step.
    """
    given = {*node.op.outer_seqs(node.inputs), *node.op.outer_non_seqs(node.inputs)}
    inputs = [Contiguous()(v) if v in given and _is_view(v) else v for v in node.inputs]
    if inputs == node.inputs:
        return None
    return list(node.op.make_node(*inputs).outputs)


def _is_view(variable: Any) -> bool:
    node = variable.owner
    return (
        node is not None
        and isinstance(node.op, Subtensor | DimShuffle)
        and getattr(variable.type, "ndim", 0) > 1
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
def teach_numba() -> None:
    """Tell PyTensor how Numba computes these operations; Numba takes a while to import."""
    from downhill_rms.compiling import float32

    numba = numba_dispatch()

    def same(x: Any) -> Any:
        return x

    def transpose(x: Any) -> Any:
        return x.T

    @numba.register_by_properties(PlainDot)  # type: ignore[untyped-decorator]
    def funcify_dot(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        first, second = (numba.njit(transpose if t else same) for t in op.transposed)

        @numba.njit  # type: ignore[untyped-decorator]
        def plain_dot(x: Any, y: Any) -> Any:
            return np.dot(first(x), second(y))

        return plain_dot, 2

    from downhill_rms.compiling.layout import contiguous

    @numba.register_by_properties(Contiguous)  # type: ignore[untyped-decorator]
    def funcify_contiguous(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        @numba.njit  # type: ignore[untyped-decorator]
        def same_array(x: Any) -> Any:
            return contiguous(x)

        return same_array, 1

    # The formulas are no part of what PyTensor's on-disk cache looks at.
    source = source_key()

    def register(op_type: type, function: Callable[[Any], Any]) -> None:
        @numba.register(op_type)  # type: ignore[untyped-decorator]
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
    numba = numba_dispatch()
    theirs = numba.funcify.dispatch(Composite)

    @numba.register(Composite)  # type: ignore[untyped-decorator]
    def funcify_composite(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        if not any(type(inner.op) in SINGLE.values() for inner in op.fgraph.apply_nodes):
            return theirs(op, node=node, **kwargs)  # type: ignore[no-any-return]
        kwargs.pop("storage_map", None)
        function, key = numba.funcify(
            op.fgraph, squeeze_output=True, fgraph_name="numba_composite", **kwargs
        )
        function = numba.njit(function.py_func, forceinline=True)
        function.belongs_in_loop = True
        return function, key and f"inlined_{key}"

    elemwise = numba.elemwise
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
        return numba.njit(stored.py_func, forceinline=True)

    elemwise.store_core_outputs = store_core_outputs
