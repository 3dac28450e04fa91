"""Sums of arrays that Numba knows to be contiguous.

PyTensor's function sorts the dimensions of an array by its strides first, and has a loop for each
order that they may have: two to three seconds to compile, of which a contiguous array needs one
loop. That loop is the same here, and so is the result, bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from downhill_rms.compiling.internals import Add, CAReduce
from downhill_rms.compiling.selfcheck import source_key


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes sums in the graphs that are linked here."""
    from numba.extending import overload

    from downhill_rms.compiling.linker import is_linking

    theirs = numba.funcify.dispatch(CAReduce)

    @numba.register(CAReduce)  # type: ignore[untyped-decorator]
    def funcify_sum(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        of_any, key = theirs(op, node=node, **kwargs)
        if not is_linking() or key is None or kwargs or not _is_plain_sum(node):
            return of_any, key
        of_contiguous = numba.njit(numba.function_of_source(*_source(node), {"np": np}))

        def sum_of(x: Any) -> Any:
            raise NotImplementedError  # for Numba alone

        @overload(sum_of)  # type: ignore[untyped-decorator]
        def choose(x: Any) -> Any:
            function = of_contiguous if x.layout == "C" else of_any

            def chosen(x: Any) -> Any:
                return function(x)

            return chosen

        return sum_of, f"sum_{key}_{source_key()}"


def _is_plain_sum(node: Any) -> bool:
    """Whether numbers are added along one dimension or more, in a floating-point dtype."""
    op, (x,), (result,) = node.op, node.inputs, node.outputs
    dtypes = {x.type.dtype, result.type.dtype, op.acc_dtype or result.type.dtype}
    return type(op.scalar_op) is Add and op.axis != () and dtypes <= {"float32", "float64"}


def _source(node: Any) -> tuple[str, str]:
    """The source of the loop, and its function's name."""
    op, (x,), (result,) = node.op, node.inputs, node.outputs
    dtype = result.type.dtype
    accumulated = op.acc_dtype or dtype
    axes = range(x.type.ndim)
    kept = [axis for axis in axes if op.axis is not None and axis not in op.axis]
    lines = ["def sum_of_contiguous(x):"]
    if kept:
        sizes = "".join(f"x.shape[{axis}], " for axis in kept)
        lines.append(f"    result = np.zeros(({sizes}), np.{accumulated})")
        lines += [f"    {'    ' * axis}for i{axis} in range(x.shape[{axis}]):" for axis in axes]
        into, out = ("".join(f"i{axis}, " for axis in some) for some in (kept, axes))
        lines.append(f"    {'    ' * len(axes)}result[{into}] += x[{out}]")
        lines.append(f"    return result{'' if accumulated == dtype else f'.astype(np.{dtype})'}")
    else:
        lines.append("    numbers = x.reshape(x.size)")
        lines.append(f"    result = np.{accumulated}(0)")
        lines.append("    for index in range(numbers.size):")
        lines.append("        result += numbers[index]")
        lines.append(f"    return np.array(result, np.{dtype})")
    return "\n".join(lines), "sum_of_contiguous"
