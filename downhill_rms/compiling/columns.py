"""Columns of three-dimensional arrays by constant indices, as in a convolution's neighbourhoods.

PyTensor's functions for Numba copy such columns into an array that is not contiguous, so that a
product copies them again, and add gradients up number by number. These copy and add whole rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.op import Op

from downhill_rms.compiling.internals import (
    AdvancedIncSubtensor,
    AdvancedSubtensor,
    node_rewriter,
)

COLUMNS = (slice(None), 0)  # how PyTensor writes the index of ``x[:, index]``


class TakeColumns(Op):  # type: ignore[misc]
    """``x[:, index]``."""

    __props__ = ()

    def make_node(self, x: Any, index: Any) -> Any:
        """The columns of ``x``, (rows, columns, depth), that ``index`` names, in its order."""
        rows, _, depth = x.type.shape
        return Apply(self, [x, index], [x.type.clone(shape=(rows, *index.type.shape, depth))()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        x, index = inputs
        output_storage[0][0] = np.ascontiguousarray(x[:, index])


class AddColumns(Op):  # type: ignore[misc]
    """What ``x`` is after ``x[:, index] += y``, where an index may be named more than once."""

    __props__ = ()

    def make_node(self, x: Any, y: Any, index: Any) -> Any:
        """The sum, of the type of ``x``."""
        return Apply(self, [x, y, index], [x.type()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        x, y, index = inputs
        result = np.array(x, order="C")
        added = np.broadcast_to(y, result[:, index].shape)
        np.add.at(result.swapaxes(0, 1), index, added.swapaxes(0, 1))
        output_storage[0][0] = result


@node_rewriter([AdvancedSubtensor])  # type: ignore[untyped-decorator]
def replace_taking(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace ``x[:, index]``."""
    if not _names_columns(node):
        return None
    return [node.outputs[0].type.filter_variable(TakeColumns()(*node.inputs))]


@node_rewriter([AdvancedIncSubtensor])  # type: ignore[untyped-decorator]
def replace_adding(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace the gradient by ``x`` of ``x[:, index]``."""
    x, y, *_ = node.inputs
    if (
        not _names_columns(node)
        or node.op.set_instead_of_inc
        or (y.type.dtype, y.type.ndim) != (x.type.dtype, 3)
    ):
        return None
    return [AddColumns()(*node.inputs)]


def _names_columns(node: Any) -> bool:
    x, *_, index = node.inputs
    return (
        tuple(node.op.idx_list) == COLUMNS
        and isinstance(index, Constant)
        and (index.type.ndim, x.type.ndim) == (1, 3)
        and index.data.dtype.kind in "iu"
        and x.type.dtype in {"float32", "float64"}
    )


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes these."""
    from downhill_rms.compiling.layout import contiguous

    @numba.njit  # type: ignore[untyped-decorator]
    def places(index: Any, columns: Any) -> Any:
        """The indices, counted from the first column."""
        found = np.empty(index.size, np.intp)
        for j in range(index.size):
            place = np.intp(index[j])
            if place < 0:
                place += columns
            if place < 0 or place >= columns:
                raise IndexError("index out of bounds")
            found[j] = place
        return found

    # Flat arrays and unsigned numbers below: where an index might be negative, or an array might
    # be another's, LLVM copies and adds number by number.

    @numba.register_by_properties(TakeColumns)  # type: ignore[untyped-decorator]
    def funcify_taking(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        @numba.njit  # type: ignore[untyped-decorator]
        def take_columns(x: Any, index: Any) -> Any:
            rows, columns, depth = x.shape
            place = places(index, columns)
            result = np.empty((rows, place.size, depth), x.dtype)
            source, target = contiguous(x).reshape(x.size), result.reshape(result.size)
            length, to = np.uint64(depth), np.uint64(0)
            for i in range(rows):
                for j in range(place.size):
                    start = np.uint64(i * columns + place[j]) * length
                    for k in range(length):
                        target[to + k] = source[start + k]
                    to += length
            return result

        return take_columns, 1

    @numba.register_by_properties(AddColumns)  # type: ignore[untyped-decorator]
    def funcify_adding(op: Any, node: Any, **kwargs: Any) -> tuple[Any, int]:
        @numba.njit  # type: ignore[untyped-decorator]
        def add_columns(x: Any, y: Any, index: Any) -> Any:
            rows, columns, depth = x.shape
            place = places(index, columns)
            result = np.empty(x.shape, x.dtype)
            result[:] = x
            shape = (rows, place.size, depth)
            if y.shape == shape:
                added = contiguous(y)
            else:
                added = contiguous(np.broadcast_to(y, shape).copy())
            source, target = added.reshape(added.size), result.reshape(result.size)
            length, at = np.uint64(depth), np.uint64(0)
            for i in range(rows):
                for j in range(place.size):
                    start = np.uint64(i * columns + place[j]) * length
                    for k in range(length):
                        target[start + k] += source[at + k]
                    at += length
            return result

        return add_columns, 1
