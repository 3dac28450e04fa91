"""Arrays that Numba knows to be contiguous."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

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
    """A contiguous copy of the transpose of a matrix, made block by block."""
    rows, columns = x.shape
    result = np.empty((columns, rows), x.dtype)
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
    return result
