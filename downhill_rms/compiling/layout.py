"""Arrays that Numba knows to be contiguous."""

from __future__ import annotations

import re
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, overload

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


def register(dispatch: Any) -> None:
    """Have Numba know that an array which only gets dimensions of length 1 stays contiguous.

    Before 3.3 PyTensor says nothing of the layout then, and a loop that adds a bias to the rows of
    a matrix has no vector instructions.
    """
    from downhill_rms.compiling.linker import is_linking

    theirs = dispatch.funcify.dispatch(DimShuffle)

    @dispatch.register(DimShuffle)  # type: ignore[untyped-decorator]
    def funcify_dimshuffle(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        shuffled, key = theirs(op, node=node, **kwargs)
        kept = [axis for axis in op.new_order if axis != "x"]
        if not is_linking() or not kept or kept != list(range(node.inputs[0].type.ndim)):
            return shuffled, key

        def lengthened(x: Any) -> Any:
            raise NotImplementedError  # for Numba alone

        @overload(lengthened)  # type: ignore[untyped-decorator]
        def choose(x: Any) -> Any:
            def known(x: Any) -> Any:
                return _known(shuffled(x))

            def unknown(x: Any) -> Any:
                return shuffled(x)

            return known if x.layout == "C" else unknown

        return lengthened, key and f"lengthened_{key}"
