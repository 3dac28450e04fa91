"""Arrays that Numba knows to be contiguous."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np import arrayobj

from downhill_rms.compiling.internals import DimShuffle

BLOCK = 16  # rows and columns of what is transposed at once


@intrinsic  # type: ignore[untyped-decorator]
def _known(typing_context: Any, x: Any) -> tuple[Any, Any]:
    """The same array, of a type that says that it is contiguous."""
    result = types.Array(x.dtype, x.ndim, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return impl_ret_borrowed(context, builder, result, arguments[0])

    return result(x), generate


@numba.njit  # type: ignore[untyped-decorator]
def contiguous(x: Any) -> Any:
    """The same array as one that is known to be contiguous, copied only if it is not."""
    size, found = x.itemsize, True
    for axis in range(x.ndim - 1, -1, -1):
        found &= x.strides[axis] == size or x.shape[axis] == 1
        size *= x.shape[axis]
    if found:
        return _known(x)
    if x.ndim == 2:
        return transposed(x.T)
    return np.ascontiguousarray(x)


@numba.njit  # type: ignore[untyped-decorator]
def transposed(x: Any) -> Any:
    """A contiguous copy of the transpose of a matrix."""
    result = np.empty((x.shape[1], x.shape[0]), x.dtype)
    transpose_into(x, result)
    return result


@numba.njit  # type: ignore[untyped-decorator]
def transpose_into(x: Any, result: Any) -> None:
    """Write the transpose of a matrix into an array, block by block."""
    rows, columns = x.shape
    bottom, right = rows - rows % BLOCK, columns - columns % BLOCK
    for top in range(0, bottom, BLOCK):
        for left in range(0, right, BLOCK):
            # A fixed number of steps, which LLVM unrolls, and no index that may be negative.
            for i in range(BLOCK):
                for j in range(BLOCK):
                    result[np.uint64(left + i), np.uint64(top + j)] = x[
                        np.uint64(top + j), np.uint64(left + i)
                    ]
    # Slices are not assigned: what Numba would say of their shapes takes three seconds to compile.
    for left in range(columns):
        for top in range(bottom if left < right else 0, rows):
            result[left, top] = x[top, left]


@intrinsic  # type: ignore[untyped-decorator]
def arguments_are_distinct(typing_context: Any) -> tuple[Any, Any]:
    """Promise that no element that a function writes is one that another argument has.

    LLVM compares eight pairs of arrays at the most before it gives up vector instructions.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for argument in builder.function.args:
            # An array is given as its owner, its parent, sizes, and the pointer to its data.
            if re.search(r"\.4$", argument.name) and isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.none(), generate


@numba.njit  # type: ignore[untyped-decorator]
def part_of(start: int, stop: int, length: int) -> tuple[int, int]:
    """Where a slice of an axis begins, and how long it is."""
    start = start + length if start < 0 else start
    stop = stop + length if stop < 0 else stop
    start = min(max(start, 0), length)
    return start, min(max(stop, start), length) - start


@numba.njit  # type: ignore[untyped-decorator]
def index_of(index: int, length: int) -> int:
    """An index that may count from the end, as one that does not."""
    if index < -length or index >= length:
        raise IndexError("index out of range inside a scan")
    return index + length if index < 0 else index


@cache
def lengthened(order: tuple[int | None, ...]) -> Any:
    """What gives an array dimensions of length 1, where ``order`` has None and no axis of it."""

    @intrinsic  # type: ignore[untyped-decorator]
    def lengthen(typing_context: Any, x: Any) -> tuple[Any, Any]:
        result = types.Array(x.dtype, len(order), x.layout)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given = context.make_array(x)(context, builder, arguments[0])
            made = context.make_array(result)(context, builder)
            shape, strides = (
                cgutils.unpack_tuple(builder, v) for v in (given.shape, given.strides)
            )
            one, zero = (context.get_constant(types.intp, number) for number in (1, 0))
            arrayobj.populate_array(
                made,
                data=given.data,
                shape=[one if axis is None else shape[axis] for axis in order],
                strides=[zero if axis is None else strides[axis] for axis in order],
                itemsize=given.itemsize,
                meminfo=given.meminfo,
                parent=given.parent,
            )
            return impl_ret_borrowed(context, builder, result, made._getvalue())

        return result(x), generate

    return lengthen


def register(dispatch: Any) -> None:
    """Have Numba know that an array which only gets dimensions of length 1 keeps its layout.

    Before 3.3 PyTensor says nothing of the layout then, and a loop that adds a bias to the rows of
    a matrix has no vector instructions.
    """
    from downhill_rms.compiling.linker import is_linking

    theirs = dispatch.funcify.dispatch(DimShuffle)

    @dispatch.register(DimShuffle)  # type: ignore[untyped-decorator]
    def funcify_dimshuffle(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        order = tuple(None if axis == "x" else axis for axis in op.new_order)
        kept = [axis for axis in order if axis is not None]
        if not is_linking() or kept != list(range(node.inputs[0].type.ndim)) or not order:
            return theirs(op, node=node, **kwargs)  # type: ignore[no-any-return]
        scope = {"lengthen": lengthened(order), "np": np}
        # Numba takes an array without dimensions for a number here and there.
        array = "x" if kept else "np.asarray(x)"
        source = f"def lengthened(x):\n    return lengthen({array})"
        function = dispatch.njit(dispatch.function_of_source(source, "lengthened", scope))
        return function, f"lengthened_{order}"
