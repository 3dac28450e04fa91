"""Operations that PyTensor's JAX code lacks, or computes for constants alone, by others."""

from __future__ import annotations

from typing import Any

import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.op import Op

from downhill_rms.compiling.internals import (
    Blockwise,
    CAReduce,
    Convolve1d,
    Convolve2d,
    OpFromGraph,
    Pad,
    inline_ofg_node,
    jax_dispatch,
    node_rewriter,
)
from downhill_rms.compiling.lengths import OfShapes, is_of_shapes, with_numpy
from downhill_rms.compiling.products import ThinDot


class Convolution(Op):  # type: ignore[misc]
    """A convolution of which shapes say whether it is a full one: a gradient of another.

    Parameters
    ----------
    ndim : int
        How many dimensions are convolved, the last ones.
    """

    __props__ = ("ndim",)

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def make_node(self, x: Any, kernel: Any, is_full: Any) -> Apply:
        """The convolution, full or valid."""
        dims = max(x.type.ndim, kernel.type.ndim)
        dtype = pt.add(x.flatten(), kernel.flatten()).type.dtype
        return Apply(self, [x, kernel, is_full], [pt.tensor(dtype=dtype, shape=(None,) * dims)])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Only JAX computes it."""
        raise NotImplementedError(str(self))


def register() -> None:
    """Tell PyTensor how JAX computes these operations, and the library's others."""
    dispatch = jax_dispatch()
    dispatch.register(OfShapes)(with_numpy)
    dispatch.register(Convolution)(_convolution)
    dispatch.register(ThinDot)(lambda op, **kwargs: _product)


def _product(x: Any, matrix: Any, transposed: Any) -> Any:
    """A product in a scan; XLA chooses the layout."""
    return x @ matrix


def _convolution(op: Any, node: Any, **kwargs: Any) -> Any:
    import jax.numpy as jnp
    from jax.scipy.signal import convolve

    lengths = [",".join(f"{name}{i}" for i in range(op.ndim)) for name in "nko"]
    signature = "({}),({})->({})".format(*lengths)

    def compute(x: Any, kernel: Any, is_full: Any) -> Any:
        mode: Any = "full" if is_full else "valid"
        return jnp.vectorize(lambda a, b: convolve(a, b, mode), signature=signature)(x, kernel)

    return compute


@node_rewriter([Blockwise, Convolve1d, Convolve2d])  # type: ignore[untyped-decorator]
def replace_convolution(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace a convolution that shapes decide about: PyTensor tells JAX of constants alone."""
    op = getattr(node.op, "core_op", node.op)
    if not isinstance(op, Convolve1d | Convolve2d) or not is_of_shapes(node.inputs[2]):
        return None
    x, kernel, is_full = node.inputs
    (old,) = node.outputs
    if is_full.type.ndim:  # of a batch
        is_full = is_full[(0,) * is_full.type.ndim]
    convolved = Convolution(op.ndim)(x, kernel, is_full)
    return [old.type.filter_variable(convolved)]


@node_rewriter([CAReduce])  # type: ignore[untyped-decorator]
def replace_product_without_zeros(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace what the gradient of a product is made of, which JAX does not have."""
    if type(node.op.scalar_op).__name__ != "MulWithoutZeros":
        return None
    (x,), (old,) = node.inputs, node.outputs
    product = pt.prod(pt.switch(pt.eq(x, 0), pt.ones((), x.dtype), x), axis=node.op.axis)
    return [old.type.filter_variable(product.astype(old.type.dtype))]


@node_rewriter([OpFromGraph])  # type: ignore[untyped-decorator]
def inline_graph(fgraph: Any, node: Any) -> list[Any] | None:
    """Put the graph inside a user's operation in its place, so that JAX knows its lengths."""
    return list(inline_ofg_node(node)) if type(node.op) is OpFromGraph else None


@node_rewriter([OpFromGraph])  # type: ignore[untyped-decorator]
def inline_rest(fgraph: Any, node: Any) -> list[Any] | None:
    """The same for operations of PyTensor's, once they have been rewritten by what they are.

    Those that JAX has are left, but for padding by lengths that are computed of shapes.
    """
    dispatch = jax_dispatch().dispatch
    is_known = dispatch(type(node.op)) is not dispatch(OpFromGraph)
    if isinstance(node.op, Pad):
        is_known = isinstance(node.inputs[1], Constant)
    return None if is_known else list(inline_ofg_node(node))
