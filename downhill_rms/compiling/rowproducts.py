"""Some rows of a product of matrices, by BLAS, for a thread that computes no more of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

from downhill_rms.compiling.threads import INT

PRODUCTS = {"float32": "sgemm", "float64": "dgemm"}


def add_symbols() -> None:
    """Tell LLVM where BLAS' functions are in this process; compiled code knows their names."""
    for name in PRODUCTS.values():
        address = get_cython_function_address("scipy.linalg.cython_blas", name)
        llvm.add_symbol(f"downhill_rms_{name}", address)


@cache
def multiply_rows(left_is_transposed: bool, right_is_transposed: bool) -> Any:
    """A function that computes some rows of a product of two matrices, contiguous ones.

    It is given the matrices as they are before they are transposed, the first row, and an array for
    as many rows as it has.
    """
    # BLAS goes by columns: for it everything is transposed, and the factors change places.
    left_flag, right_flag = (
        ord("T" if turned else "N") for turned in (left_is_transposed, right_is_transposed)
    )

    @numba.njit  # type: ignore[untyped-decorator]
    def rows_of_product(left: Any, right: Any, first: int, result: Any) -> None:
        rows, columns = result.shape
        depth = left.shape[0] if left_is_transposed else left.shape[1]
        begin = first if left_is_transposed else first * depth
        _multiply(
            (right_flag, left_flag),
            (columns, rows, depth),
            (right.ctypes.data, right.shape[1]),
            (left.ctypes.data + begin * left.itemsize, left.shape[1]),
            result,
        )

    return rows_of_product


@intrinsic  # type: ignore[untyped-decorator]
def _multiply(
    typing_context: Any, flags: Any, sizes: Any, first: Any, second: Any, result: Any
) -> tuple[Any, Any]:
    """A product by BLAS: of matrices given by their addresses and leading dimensions."""
    number = ir.FloatType() if result.dtype == types.float32 else ir.DoubleType()
    name = f"downhill_rms_{PRODUCTS[str(result.dtype)]}"

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def reference(value: Any) -> Any:
            place = cgutils.alloca_once(builder, value.type)
            builder.store(value, place)
            return place

        def integer(value: Any) -> Any:
            return reference(builder.trunc(value, INT))

        pairs = (cgutils.unpack_tuple(builder, arguments[index]) for index in range(4))
        characters, lengths, (a, lda), (b, ldb) = pairs
        array = context.make_array(result)(context, builder, arguments[4])
        given = [
            *(reference(builder.trunc(value, ir.IntType(8))) for value in characters),
            *map(integer, lengths),
            reference(number(1)),
            *(builder.inttoptr(a, number.as_pointer()), integer(lda)),
            *(builder.inttoptr(b, number.as_pointer()), integer(ldb)),
            reference(number(0)),
            *(array.data, integer(lengths[0])),
        ]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return types.void(flags, sizes, first, second, result), generate
