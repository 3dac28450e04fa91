"""Copies that are made once, or not at all: contiguous arrays, and arrays with zeros after them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.op import Op

from downhill_rms.compiling.internals import (
    Alloc,
    DimShuffle,
    IncSubtensor,
    Scan,
    Subtensor,
    node_rewriter,
)


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


class ZerosAfter(Op):  # type: ignore[misc]
    """Zeros of which the first rows are given: these rows themselves if they are all of it.

    Parameters
    ----------
    shape : tuple of int or None
        What is known of the result's shape.
    """

    __props__ = ("shape",)
    view_map = {0: [0]}  # noqa: RUF012, as PyTensor's operations have it

    def __init__(self, shape: tuple[int | None, ...]) -> None:
        self.shape = shape

    def make_node(self, rows: Any, stop: Any, shape: Any) -> Any:
        """The sum of ``zeros(shape)[:stop]`` and ``rows``, in the place of the former."""
        return Apply(self, [rows, stop, shape], [rows.type.clone(shape=self.shape)()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        rows, stop, shape = inputs
        array = np.zeros(shape, rows.dtype)
        array[:stop] += rows
        output_storage[0][0] = array


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


@node_rewriter([IncSubtensor])  # type: ignore[untyped-decorator]
def rows_before_zeros(fgraph: Any, node: Any) -> list[Any] | None:
    """Make no zeros for the gradient by ``x[:n]`` where that is all of ``x``, as in every scan."""
    array, rows, *index = node.inputs
    (first, *others) = node.op.idx_list
    if others or not isinstance(first, slice) or len(index) != 1:
        return None
    if first.stop is None or array.owner is None or not isinstance(array.owner.op, Alloc):
        return None
    zero, *shape = array.owner.inputs
    result = node.outputs[0].type
    if (
        not isinstance(zero, Constant)
        or zero.data.any()
        or rows.type.dtype != result.dtype
        or rows.type.broadcastable != result.broadcastable
    ):
        return None
    return [ZerosAfter(result.shape)(rows, index[0], pt.stack(shape))]


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes these."""
    from numba.cpython.unsafe.tuple import tuple_setitem

    from downhill_rms.compiling.layout import contiguous

    @numba.register_by_properties(Contiguous)  # type: ignore[untyped-decorator]
    def funcify_contiguous(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        @numba.njit  # type: ignore[untyped-decorator]
        def same_array(x: Any) -> Any:
            return contiguous(x)

        return same_array, 2

    @numba.register_by_properties(ZerosAfter)  # type: ignore[untyped-decorator]
    def funcify_zeros(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        @numba.njit  # type: ignore[untyped-decorator]
        def zeros_after(rows: Any, stop: Any, shape: Any) -> Any:
            dims = rows.shape
            for axis in range(rows.ndim):
                dims = tuple_setitem(dims, axis, shape[axis])
            if dims == rows.shape and stop >= dims[0]:
                return contiguous(rows)
            result = np.zeros(dims, rows.dtype)
            result[:stop] += rows
            return result

        return zeros_after, 1
