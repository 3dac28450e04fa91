"""Arrays that Numba knows to be contiguous."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic


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
    return _known(x) if found else np.ascontiguousarray(x)
