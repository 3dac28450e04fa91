"""Products of few rows with a large matrix, whose transpose is computed in less time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from downhill_rms.compiling.layout import contiguous, transpose_into, transposed

# Up to so many multiplications OpenBLAS neither packs matrices nor uses threads.
SMALL_PRODUCT = 1_000_000

# So many rows are few beside any matrix, with four times as many columns, and more of them beside a
# large one, with eight times as many. Measured, in microseconds on one core and in two threads, as
# it is and turned: 32 rows of 512 with 128 columns, 52 and 45, 46 and 33; 64 rows of 128 with 512
# columns, 74 and 83, 54 and 62; 48 rows of 512 with 2,048 columns, 1,137 and 928, 903 and 681.
FEW = 32
LARGE = 2**18  # numbers in the matrix


@numba.njit  # type: ignore[untyped-decorator]
def is_thin(x: Any, y: Any) -> Any:
    """Whether a product is computed turned."""
    rows, columns = x.shape[0], y.shape[1]
    few = 4 * rows <= columns if rows <= FEW else 8 * rows <= columns and y.size > LARGE
    return few and rows * y.size > SMALL_PRODUCT


@numba.njit  # type: ignore[untyped-decorator]
def thin_dot(x: Any, y: Any, y_transposed: Any) -> Any:
    """A product."""
    if is_thin(x, y):
        return transposed(np.dot(contiguous(y_transposed), x.T))
    return np.dot(x, y)


@numba.njit  # type: ignore[untyped-decorator]
def thin_dot_into(x: Any, y: Any, y_transposed: Any, result: Any) -> None:
    """Write a product into an array."""
    if is_thin(x, y):
        transpose_into(np.dot(contiguous(y_transposed), x.T), result)
    else:
        np.dot(x, y, result)
