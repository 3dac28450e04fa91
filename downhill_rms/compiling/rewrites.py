"""Rewrites of the graph that Numba compiles: less to compile, and faster functions.

They act where PyTensor compiles a training step, after gradients were taken and after its own
rewrites for stability, and replace one operation by another that computes the same:

- products of matrices by those of `products`: a plain ``np.dot``, or rows of a matrix for a one-hot
  one. PyTensor copies transposed matrices first, before 3.3, and since then compiles a matrix
  product of its own, which is as fast, but takes 15 to 40 s on an empty cache;
- in single precision tanh, exp, sigmoid, log1p, softplus and softmax by those of `float32`, which
  take a tenth of the time or less, and which stay as fast where several of them are fused into one
  loop;
- arrays that would only be copied by themselves (`copies`), and columns that constant indices take
  (`columns`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from downhill_rms.compiling import (
    columns,
    copies,
    linker,
    products,
    productupdates,
    softmax,
    sums,
    tiledloops,
)
from downhill_rms.compiling.assumptions import AssumeNothing
from downhill_rms.compiling.fusing import FuseTogether
from downhill_rms.compiling.graphcache import CachingMode
from downhill_rms.compiling.inplace import OverwriteLastRead, SuperviseQuickly, UpdateInPlace
from downhill_rms.compiling.internals import (
    AFTER_IN_PLACE,
    BEFORE_FUSION,
    BEFORE_IN_PLACE,
    CANONICAL,
    FIRST,
    IN_PLACE,
    Composite,
    Elemwise,
    Exp,
    Log1p,
    Scan,
    Sigmoid,
    Softplus,
    Tanh,
    WalkingGraphRewriter,
    last_fusions,
    node_rewriter,
    numba_dispatch,
    with_rewriters,
)
from downhill_rms.compiling.partialsums import SharePartialSums
from downhill_rms.compiling.selfcheck import source_key


@cache
def numba_mode(base: Any) -> Any:
    """A Numba mode with these rewrites, inside scans too."""
    from downhill_rms.compiling import threads

    teach_numba()
    rewritten = with_rewriters(base, *map(WalkingGraphRewriter, REWRITERS))
    rewritten = rewritten.excluding("inplace_elemwise")
    rewritten = rewritten.register(
        (SuperviseQuickly(), FIRST),
        (AssumeNothing(), FIRST + 1e-6),
        (SharePartialSums(), CANONICAL),
        (WalkingGraphRewriter(columns.replace_taking), CANONICAL + 1e-6),
        (WalkingGraphRewriter(columns.replace_adding), CANONICAL + 2e-6),
        (UpdateInPlace(), BEFORE_IN_PLACE),
        (OverwriteLastRead(), IN_PLACE),
    )
    if threads.are_shared():
        rewritten = rewritten.register((productupdates.UpdateWithProducts(), AFTER_IN_PLACE))
    if fusions := last_fusions(base):
        rewritten = rewritten.register((FuseTogether(fusions), BEFORE_FUSION))
    return CachingMode(linker.PiecewiseLinker(), rewritten.provided_optimizer)


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


@node_rewriter([Elemwise])  # type: ignore[untyped-decorator]
def replace_elementwise(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace a function of single-precision numbers."""
    scalar_op = node.op.scalar_op
    new = SINGLE.get(type(scalar_op))
    if new is None or {node.inputs[0].type.dtype, node.outputs[0].type.dtype} != {"float32"}:
        return None
    return [Elemwise(new(scalar_op.output_types_preference))(*node.inputs)]


REWRITERS = (
    copies.rows_before_zeros,
    copies.contiguous_inputs,
    products.replace_sum_of_products,
    products.replace_dot,
    softmax.replace_softmax,
    replace_elementwise,
)


@cache
def teach_numba() -> None:
    """Tell PyTensor how Numba computes these operations; Numba takes a while to import."""
    from downhill_rms.compiling import float32, layout

    numba = numba_dispatch()
    for module in (
        products,
        columns,
        copies,
        softmax,
        linker,
        sums,
        layout,
        tiledloops,
        productupdates,
    ):
        module.register(numba)

    # The formulas are no part of what PyTensor's on-disk cache looks at.
    source = source_key()

    def register(op_type: type, function: Callable[[Any], Any]) -> None:
        @numba.register(op_type)  # type: ignore[untyped-decorator]
        def funcify(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str]:
            return function, f"{op_type.__name__}_{source}"

    for op_type in SINGLE.values():
        register(op_type, getattr(float32, op_type.__name__.removesuffix("32").lower()))

    _inline_composites()
    _write_scans()


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


def _write_scans() -> None:
    """Have Numba compile scans of this mode as `scanloop` writes them."""
    from downhill_rms.compiling import scanloop

    numba = numba_dispatch()
    theirs = numba.funcify.dispatch(Scan)

    @numba.register(Scan)  # type: ignore[untyped-decorator]
    def funcify_scan(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        try:
            return scanloop.compiled(op, node, **kwargs)
        except NotImplementedError:
            return theirs(op, node=node, **kwargs)  # type: ignore[no-any-return]
