"""Work on the threads that OpenBLAS keeps for products of matrices.

The products of a step run on OpenBLAS' threads, which then wait for more, actively, for a while. A
second pool of threads, be it Numba's or OpenMP's, would wait in the same way on the same cores, and
each would slow the other down by more than it gains. So what else runs on all cores is given to
OpenBLAS' threads, by the function that gives them products. It takes a fraction of a microsecond as
long as they wait, and what holds for products holds for it: there are as many threads as OpenBLAS
has at that moment, by its environment variables or by ``threadpool_limits``, a forked process has
new ones, and several threads of Python may have work for them. Nothing stays set.

OpenBLAS documents this function for nobody. What is relied upon is as old as GotoBLAS: a queue of
entries that begin with a function, two numbers that OpenBLAS writes, the function's first five
arguments, and the address of the next entry; what follows may be zeros.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from downhill_rms.compiling.machine import (
    asked_threads,
    blas_library,
    loaded_openblas,
    openblas_function,
    usable_cores,
)

MOST = 64  # threads, for whose entries there is room
OWN_THREADS = 1  # what OpenBLAS answers if its threads are not OpenMP's

# An entry of the queue: its words, those of them that OpenBLAS reads, and what workers share.
WORDS, FUNCTION, FIRST_ARGUMENT, SECOND_ARGUMENT, NEXT = 32, 0, 3, 4, 8
TILE, END, SHARED = 24, 25, 26  # beyond all that OpenBLAS knows of

# Names that compiled code has for what has another address in every process.
EXECUTE, THREADS, LIMIT = (f"downhill_rms_{name}" for name in ("execute", "threads", "limit"))

INT, WORD = ir.IntType(32), ir.IntType(64)

_limit = ctypes.c_int(1)


@cache
def are_shared() -> bool:
    """Whether OpenBLAS' threads take work here; asked before anything is compiled for them."""
    library = blas_library()
    parallel = openblas_function(library, "get_parallel")
    if (
        sys.platform != "linux"
        or platform.machine() not in {"x86_64", "aarch64"}
        or parallel is None
        or parallel() != OWN_THREADS
        or not hasattr(library, "exec_blas")
        or not hasattr(library, "blas_cpu_number")
    ):
        return False
    _limit.value = most_threads()
    llvm.add_symbol(EXECUTE, ctypes.cast(library.exec_blas, ctypes.c_void_p).value)
    threads = ctypes.c_int.in_dll(library, "blas_cpu_number")
    llvm.add_symbol(THREADS, ctypes.addressof(threads))
    llvm.add_symbol(LIMIT, ctypes.addressof(_limit))
    return True


def in_words(own_loops: bool) -> str:
    """What multiplies matrices here, and how many threads this library's loops have."""
    blas = loaded_openblas()
    if blas is None:
        return "Matrix products: not by OpenBLAS. Loops: one thread."
    loops = min(blas.threads, most_threads()) if own_loops and are_shared() else 1
    return (
        f"Matrix products: OpenBLAS, {blas.kernel} kernels, {_threads(blas.threads)}. "
        f"Loops over large arrays: {_threads(loops)}."
    )


def _threads(number: int) -> str:
    return "one thread" if number == 1 else f"{number} threads"


def most_threads() -> int:
    """How many threads a loop has at the most, whatever OpenBLAS has."""
    limit: int = numba.config.NUMBA_NUM_THREADS
    return min(MOST, usable_cores(), limit, asked_threads() or MOST)


@intrinsic  # type: ignore[untyped-decorator]
def thread_count(typing_context: Any) -> tuple[Any, Any]:
    """How many threads a loop has now, this one among them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_thread_count(builder)

    return types.int64(), generate


def emit_thread_count(builder: Any) -> Any:
    """Emit code for `thread_count`."""
    number, limit = (builder.load(_variable(builder, name)) for name in (THREADS, LIMIT))
    least = builder.select(builder.icmp_signed("<", number, limit), number, limit)
    return builder.sext(least, WORD)


def _variable(builder: Any, name: str) -> Any:
    known = builder.module.globals.get(name)
    return known or ir.GlobalVariable(builder.module, INT, name)


@intrinsic  # type: ignore[untyped-decorator]
def run_tiles(
    typing_context: Any, kernel: Any, arguments: Any, tiles: Any, threads: Any
) -> tuple[Any, Any]:
    """Call a compiled function for each of some tiles, on several threads; whether one failed.

    Every thread has the same stretch of tiles whenever there are so many, which may still be in its
    core's cache. Who has done with it helps the others: a thread that waits for its core keeps
    nobody from working.

    Parameters
    ----------
    kernel : Dispatcher
        Called with the number of a tile, and with the ``arguments``. It may call nothing that
        needs Python.
    arguments : tuple
        Anything that Numba knows.
    tiles : int
        How many there are.
    threads : int
        How many work, two at least; as `thread_count` says, or fewer.
    """
    called = kernel.get_call_type(typing_context, (types.int64, *arguments.types), {})
    signature = types.boolean(kernel, arguments, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, given, tiles, threads = values
        function = compiled_function(context, kernel, called)
        given = cgutils.unpack_tuple(builder, given)

        def work(inner: Any, tile: Any, arguments: Any) -> Any:
            return function(inner, [tile, *arguments])

        return run_on_threads(context, builder, work, given, tiles, threads)

    return signature, generate


def linked(context: Any, dispatcher: Any, signature: Any) -> Any:
    """Numba's description of a function that it has compiled, linked to what is compiled now."""
    compiled = dispatcher.dispatcher.overloads[signature.args]
    context.active_code_library.add_linking_library(compiled.library)
    return compiled.fndesc


def compiled_function(context: Any, dispatcher: Any, signature: Any) -> Any:
    """What emits a call of a function that Numba compiles; the call's status is all of its result.

    What the function returns is given up, and the call is no place where it is written out again.
    """
    description = linked(context, dispatcher, signature)

    def call(inner: Any, values: Any) -> Any:
        function = context.declare_function(inner.module, description)
        status, result = context.call_conv.call_function(
            inner, function, description.restype, description.argtypes, values
        )
        for instruction in inner.function.blocks[-1].instructions:
            if isinstance(instruction, ir.CallInstr) and instruction.callee is function:
                instruction.attributes.add("noinline")
        with inner.if_then(status.is_ok, likely=True):
            context.nrt.decref(inner, description.restype, result)
        return status

    return call


def run_on_threads(
    context: Any, builder: Any, work: Any, values: Any, tiles: Any, threads: Any
) -> Any:
    """Emit code that has threads work, with these values at hand; returns whether a tile failed.

    ``work`` is given a builder, the number of a tile and the values there, and returns a status.
    """
    # What the threads share: how many they are, whether one has failed, and the values.
    kind = ir.LiteralStructType([WORD, WORD, *(value.type for value in values)])
    worker = _worker(builder.module, work, kind, len(values))
    shared = cgutils.alloca_once(builder, kind)
    for index, value in enumerate((threads, WORD(0), *values)):
        builder.store(value, cgutils.gep_inbounds(builder, shared, 0, index))
    function, pointer = (builder.ptrtoint(value, WORD) for value in (worker, shared))
    builder.call(_submit(builder.module), [function, pointer, tiles, threads])
    failed = builder.load(cgutils.gep_inbounds(builder, shared, 0, 1))
    return builder.icmp_signed("!=", failed, WORD(0))


def _worker(module: Any, work: Any, kind: Any, count: int) -> Any:
    """What one thread does, which is given the queue and its number: its tiles, then others'."""
    function = ir.Function(
        module,
        ir.FunctionType(ir.VoidType(), [WORD, WORD]),
        module.get_unique_name("downhill_rms_worker"),
    )
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    queue, number = function.args
    shared = builder.inttoptr(
        builder.load(_word(builder, queue, WORD(0), SHARED)), kind.as_pointer()
    )
    threads, failed, *given = (
        cgutils.gep_inbounds(builder, shared, 0, index) for index in range(2 + count)
    )
    values = [builder.load(pointer) for pointer in given]
    total = builder.load(threads)
    with cgutils.for_range(builder, total) as loop:
        owner = builder.urem(builder.add(number, loop.index), total)
        following = _word(builder, queue, owner, TILE)
        end = builder.load(_word(builder, queue, owner, END))
        ask, go, done = (function.append_basic_block(name) for name in ("ask", "work", "done"))
        builder.branch(ask)
        builder.position_at_end(ask)
        tile = builder.atomic_rmw("add", following, WORD(1), "monotonic")
        builder.cbranch(builder.icmp_signed("<", tile, end), go, done)
        builder.position_at_end(go)
        status = work(builder, tile, values)
        with builder.if_then(status.is_error, likely=False):
            builder.store(WORD(1), failed)
        builder.branch(ask)
        builder.position_at_end(done)
    builder.ret_void()
    return function


def _submit(module: Any) -> Any:
    """A function that has threads call a worker, and waits for them.

    By itself, so that its queue is on the stack only while they work.
    """
    name = "downhill_rms_submit"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [WORD] * 4), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    worker, shared, tiles, threads = function.args
    entries = cgutils.alloca_once(builder, ir.ArrayType(WORD, WORDS * MOST))
    queue = builder.ptrtoint(entries, WORD)
    with cgutils.for_range(builder, threads) as loop:
        after = builder.add(loop.index, WORD(1))
        cgutils.memset(builder, _word(builder, queue, loop.index, 0), WORD(8 * WORDS), 0)
        last = builder.icmp_signed("==", after, threads)
        following = builder.ptrtoint(_word(builder, queue, after, 0), WORD)
        first, end = (
            builder.sdiv(builder.mul(tiles, number), threads) for number in (loop.index, after)
        )
        for word, value in (
            (FUNCTION, worker),
            (FIRST_ARGUMENT, queue),
            (SECOND_ARGUMENT, loop.index),
            (NEXT, builder.select(last, WORD(0), following)),
            (TILE, first),
            (END, end),
            (SHARED, shared),
        ):
            builder.store(value, _word(builder, queue, loop.index, word))
    execute = cgutils.get_or_insert_function(module, ir.FunctionType(INT, [WORD, WORD]), EXECUTE)
    builder.call(execute, [threads, queue])
    builder.ret_void()
    return function


def _word(builder: Any, queue: Any, entry: Any, word: int) -> Any:
    """The address of a word of an entry."""
    index = builder.add(builder.mul(entry, WORD(WORDS)), WORD(word))
    return builder.gep(builder.inttoptr(queue, WORD.as_pointer()), [index])


@intrinsic  # type: ignore[untyped-decorator]
def set_blas_threads(typing_context: Any, number: Any) -> tuple[Any, Any]:
    """Have OpenBLAS compute products with so many threads; returns with how many it did before.

    For a product that a thread computes alone, while others compute others. Who sets it sets it
    back before Python goes on: nobody sees it but a thread that multiplies without Python then, and
    is slower then.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        variable = _variable(builder, THREADS)
        before = builder.load(variable)
        builder.store(builder.trunc(arguments[0], INT), variable)
        return builder.sext(before, WORD)

    return types.int64(types.int64), generate
