"""Products of few rows with a large matrix, which the transpose of computes in half the time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from downhill_rms.compiling.layout import contiguous, transpose_into, transposed

# Up to so many multiplications OpenBLAS neither packs matrices nor uses threads.
SMALL_PRODUCT = 1_000_000
FEW = 8  # rows are few if the other matrix has so many times as many columns


@numba.njit  # type: ignore[untyped-decorator]
def is_thin(x: Any, y: Any) -> Any:
    """Whether a product is computed turned."""
    return x.size * y.shape[1] > SMALL_PRODUCT and FEW * x.shape[0] <= y.shape[1]


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
