"""The code around a loop over arrays that has it run in tiles where they are large.

It is LLVM's, as Numba would write it from a function of some lines for each loop, which would take
half a second to compile.
"""

from __future__ import annotations

from functools import cache, reduce
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_new_ref
from numba.extending import intrinsic
from numba.np import arrayobj

from downhill_rms.compiling.threads import (
    WORD,
    compiled_function,
    emit_thread_count,
    linked,
    run_on_threads,
)
from downhill_rms.compiling.tiledloops import LARGE

TILE = 4_096  # numbers of a tile at the least
TILES = 4  # for each thread
VECTOR = 256  # numbers of which a tile of a vector is a multiple

Pattern = tuple[bool, ...]


@cache
def loop_in_tiles(
    patterns: tuple[Pattern | None, ...], places: tuple[int, ...], fresh: tuple[str, ...]
) -> Any:
    """What calls a function that works in place, for the whole or, on several threads, for tiles.

    Parameters
    ----------
    patterns : tuple of tuple of bool or None
        For each argument of the function, along which axes it has the length 1; None for a number.
    places : tuple of int
        Which arguments are overwritten by the results.
    fresh : tuple of str
        The dtypes of the last arguments, arrays that are made here.
    """
    result_pattern = patterns[places[0]]
    assert result_pattern is not None
    ndim = len(result_pattern)

    @intrinsic  # type: ignore[untyped-decorator]
    def run(typing_context: Any, loop: Any, inputs: Any) -> tuple[Any, Any]:
        made = [types.Array(numba.from_dtype(np.dtype(dtype)), ndim, "C") for dtype in fresh]
        kinds = [*inputs.types, *made]
        called = loop.get_call_type(typing_context, tuple(kinds), {})
        results = [kinds[place] for place in places]
        returned = results[0] if len(results) == 1 else types.Tuple(results)
        full = [
            kind
            for kind, pattern in zip(kinds, patterns, strict=True)
            if pattern is not None and not all(pattern)
        ]
        # Of another layout the rows have another type than the whole, and so has the loop.
        in_tiles = all(kind.layout == "C" for kind in full)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = cgutils.unpack_tuple(builder, arguments[1])
            shape = _shape(context, builder, patterns, kinds, values)
            for kind in made:
                array = arrayobj._empty_nd_impl(context, builder, kind, shape)
                values.append(array._getvalue())
            whole = builder.append_basic_block("whole")
            end = builder.append_basic_block("end")
            if in_tiles:
                _emit_tiles(context, builder, (loop, called), (patterns, kinds, values), shape, end)
            builder.branch(whole)
            builder.position_at_end(whole)
            function = linked(context, loop, called)
            outputs = context.call_internal(builder, function, called, values)
            context.nrt.decref(builder, called.return_type, outputs)
            builder.branch(end)
            builder.position_at_end(end)
            outputs = [values[place] for place in places]
            for place, kind, value in zip(places, results, outputs, strict=True):
                if place < len(inputs.types):
                    context.nrt.incref(builder, kind, value)
            value = (
                outputs[0] if len(outputs) == 1 else context.make_tuple(builder, returned, outputs)
            )
            return impl_ret_new_ref(context, builder, returned, value)

        return returned(loop, inputs), generate

    return run


def _shape(context: Any, builder: Any, patterns: Any, kinds: Any, values: Any) -> list[Any]:
    """The lengths of the results: along each axis that of an argument that has one there."""
    lengths: dict[int, Any] = {}
    for pattern, kind, value in zip(patterns, kinds, values, strict=False):
        if pattern is not None:
            array = context.make_array(kind)(context, builder, value)
            found = cgutils.unpack_tuple(builder, array.shape)
            ndim = len(found)
            lengths = {axis: n for axis, n in enumerate(found) if not pattern[axis]} | lengths
    return [lengths.get(axis, WORD(1)) for axis in range(ndim)]


def _emit_tiles(
    context: Any, builder: Any, loop: Any, arrays: Any, shape: list[Any], end: Any
) -> None:
    """Go to the end if the loop has run in tiles, or on if the arrays are small or do not fit."""
    patterns, kinds, values = arrays
    size = reduce(builder.mul, shape)
    with builder.if_then(builder.icmp_signed(">=", size, WORD(LARGE)), likely=False):
        threads = emit_thread_count(builder)
        fit = builder.icmp_signed(">", threads, WORD(1))
        for pattern, kind, value in zip(patterns, kinds, values, strict=True):
            if pattern is not None:
                array = context.make_array(kind)(context, builder, value)
                lengths = cgutils.unpack_tuple(builder, array.shape)
                for one, length, whole in zip(pattern, lengths, shape, strict=True):
                    equal = builder.icmp_signed("==", length, WORD(1) if one else whole)
                    fit = builder.and_(fit, equal)
        with builder.if_then(fit):
            rows, tiles = _tiles(builder, size, shape, threads)
            dispatcher, called = loop
            call = compiled_function(context, dispatcher, called)

            def work(inner: Any, tile: Any, given: Any) -> Any:
                length, rows, *given = given
                first = inner.mul(tile, rows)
                stop = inner.add(first, rows)
                stop = inner.select(inner.icmp_signed("<", stop, length), stop, length)
                parts = [
                    value
                    if pattern is None or pattern[0]
                    else rows_of(context, inner, kind, value, first, stop)
                    for pattern, kind, value in zip(patterns, kinds, given, strict=True)
                ]
                return call(inner, parts)

            fewer = builder.icmp_signed("<", tiles, threads)
            threads = builder.select(fewer, tiles, threads)
            shared = [shape[0], rows, *values]
            failed = run_on_threads(context, builder, work, shared, tiles, threads)
            with builder.if_then(failed, likely=False):
                message = ("a tile of an elementwise operation failed",)
                context.call_conv.return_user_exc(builder, RuntimeError, message)
            builder.branch(end)
            builder.position_at_end(builder.append_basic_block())


def _tiles(builder: Any, size: Any, shape: list[Any], threads: Any) -> tuple[Any, Any]:
    """Rows of a tile, and how many tiles there are."""
    each = builder.sdiv(builder.sdiv(size, WORD(TILE)), threads)
    for bound, sign in ((WORD(1), ">"), (WORD(TILES), "<")):
        each = builder.select(builder.icmp_signed(sign, each, bound), each, bound)
    rows = _quotient(builder, shape[0], builder.mul(each, threads))
    if len(shape) == 1:
        rows = builder.mul(_quotient(builder, rows, WORD(VECTOR)), WORD(VECTOR))
    return rows, _quotient(builder, shape[0], rows)


def _quotient(builder: Any, number: Any, by: Any) -> Any:
    """A quotient of positive numbers, rounded up."""
    return builder.add(builder.sdiv(builder.sub(number, WORD(1)), by), WORD(1))


def rows_of(context: Any, builder: Any, kind: Any, value: Any, first: Any, stop: Any) -> Any:
    """Some rows of a contiguous array, as an array that has no owner."""
    array = context.make_array(kind)(context, builder, value)
    shape, strides = (cgutils.unpack_tuple(builder, v) for v in (array.shape, array.strides))
    address = builder.add(builder.ptrtoint(array.data, WORD), builder.mul(first, strides[0]))
    part = context.make_array(kind)(context, builder)
    arrayobj.populate_array(
        part,
        data=builder.inttoptr(address, array.data.type),
        shape=[builder.sub(stop, first), *shape[1:]],
        strides=strides,
        itemsize=array.itemsize,
        meminfo=None,
        parent=None,
    )
    return part._getvalue()


@intrinsic  # type: ignore[untyped-decorator]
def some_rows(typing_context: Any, array: Any, first: Any, stop: Any) -> tuple[Any, Any]:
    """Rows of a contiguous array, for a function that calls another with them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return rows_of(context, builder, array, *arguments)

    return array(array, types.int64, types.int64), generate
