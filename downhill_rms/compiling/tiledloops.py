"""Elementwise operations of large arrays as tiles, which all threads compute.

PyTensor's loop over an array is called for tiles of it: rows of a matrix, or stretches of a vector
that the vectors of the processor divide. Every number is computed by the same instructions as in
one call for the whole, so that bits depend on nobody's number of threads. What is not computed in
place is written into arrays that are made before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from downhill_rms.compiling.internals import (
    Composite,
    Elemwise,
    ScalarType,
    scalarized_elemwise,
)
from downhill_rms.compiling.selfcheck import source_key

LARGE = 16_384  # numbers of an array from which on it pays
TILE = 4_096  # numbers of a tile at the least
TILES = 4  # for each thread
VECTOR = 256  # numbers of which a tile of a vector is a multiple

_theirs: dict[type, Any] = {}  # PyTensor's functions that make loops


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes elementwise operations in what is linked here."""
    from downhill_rms.compiling import threads

    if threads.are_shared():
        for kind in filter(None, (Elemwise, scalarized_elemwise())):
            _register(numba, kind)


def _register(numba: Any, kind: type) -> None:
    from downhill_rms.compiling.linker import is_linking

    theirs = _theirs[kind] = numba.funcify.dispatch(kind)

    @numba.register(kind)  # type: ignore[untyped-decorator]
    def funcify_elementwise(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        loop = elementwise_node(node)
        if not is_linking() or not _may_be_large(loop):
            return theirs(op, node=node, **kwargs)  # type: ignore[no-any-return]
        new, into = written_into(node)
        function, key = theirs(new.op, node=new, **kwargs)
        return _tiled(numba, new, into, len(node.inputs), function), (
            key and f"tiled_{key}_{source_key()}"
        )


def plain_loop(node: Any) -> Any:
    """Numba's function of an elementwise operation, as PyTensor has it."""
    return _theirs[type(node.op)](node.op, node=node)[0]


def elementwise_node(node: Any) -> Any:
    """An elementwise operation, which may be inside another one that is given numbers."""
    if isinstance(node.op, Elemwise):
        return node
    (inner,) = (inner for inner in node.op.fgraph.apply_nodes if isinstance(inner.op, Elemwise))
    return inner


def _may_be_large(node: Any) -> bool:
    """Whether the results may be large, as far as is known, and have rows to divide them by."""
    first = node.outputs[0].type
    if not first.ndim or first.broadcastable[0]:
        return False
    if any(v.type.broadcastable != first.broadcastable for v in node.outputs):
        return False
    return None in first.shape or bool(np.prod(first.shape) >= LARGE)


def written_into(node: Any) -> tuple[Any, Any]:
    """The same operation in place, with arrays for its other results as further inputs.

    Returns
    -------
    node, elementwise : Apply
        The new operation; itself, or the elementwise one that it contains.
    """
    if isinstance(node.op, Elemwise):
        new = _all_in_place(node)
        return new, new
    graph = node.op.fgraph.unfreeze()
    (inner,) = (inner for inner in graph.apply_nodes if isinstance(inner.op, Elemwise))
    new = _all_in_place(inner)
    places = new.inputs[len(inner.inputs) :]
    op = type(node.op)([*graph.inputs, *places], new.outputs, destroy_map=new.op.destroy_map)
    return op.make_node(*node.inputs, *(place.type() for place in places)), new


def _all_in_place(node: Any) -> Any:
    op = node.op
    fresh = [index for index in range(len(node.outputs)) if index not in op.inplace_pattern]
    if not fresh:
        return node
    if isinstance(op.scalar_op, Composite):
        graph = op.scalar_op.fgraph.unfreeze()
        inputs, outputs = list(graph.inputs), list(graph.outputs)
    else:
        inputs = [variable.type() for variable in op.make_scalar_node(*node.inputs).inputs]
        outputs = op.scalar_op.make_node(*inputs).outputs
    pattern = dict(op.inplace_pattern) | {
        index: len(inputs) + place for place, index in enumerate(fresh)
    }
    scalar_op = Composite([*inputs, *(outputs[index].type() for index in fresh)], outputs)
    places = [node.outputs[index].type() for index in fresh]
    return Elemwise(scalar_op, pattern).make_node(*node.inputs, *places)


def _tiled(numba: Any, node: Any, into: Any, count: int, loop: Any) -> Any:
    """The function for Numba, of so many inputs; the arrays that are written into are made here."""
    from downhill_rms.compiling.threads import run_tiles, thread_count

    scope = {"np": np, "loop": loop, "run_tiles": run_tiles, "thread_count": thread_count}
    kernel = numba.function_of_source(_kernel_source(into), "tile", {"loop": loop})
    scope["tile"] = numba.njit(kernel)
    tiled, whole = (
        numba.function_of_source(_source(node, into, count, in_tiles), "elementwise", scope)
        for in_tiles in (True, False)
    )
    return by_layout(numba, names(count), are_full(into.inputs[:count]), tiled, whole)


def are_full(variables: Sequence[Any]) -> list[bool]:
    """Which of some inputs have more than one number."""
    return [not all(variable.type.broadcastable) for variable in variables]


def by_layout(
    numba: Any, inputs: Sequence[str], full: Sequence[bool], tiled: Any, whole: Any
) -> Any:
    """A function that is the first one where all full arrays are known to be contiguous.

    Of another layout a tile would have another type than the whole, and Numba would compile the
    loop once more.
    """
    from numba.extending import overload

    def chosen(*kinds: Any) -> Any:
        arrays = [kind for kind, is_full in zip(kinds, full, strict=True) if is_full]
        return tiled if all(kind.layout == "C" for kind in arrays) else whole

    # An overload has its function's names of arguments.
    arguments = ", ".join(inputs)
    source = f"def elementwise({arguments}):\n    return chosen({arguments})"
    elementwise, choose = (
        numba.function_of_source(source, "elementwise", {"chosen": chosen}) for _ in range(2)
    )
    overload(elementwise)(choose)
    return elementwise


def names(count: int) -> list[str]:
    """What so many inputs are called in what is written here."""
    return [f"x{index}" for index in range(count)]


def results(into: Any) -> list[str]:
    """What the results of a node are called that works in place."""
    known = names(len(into.inputs))
    return [known[into.op.inplace_pattern[index]] for index in range(len(into.outputs))]


def rows_of(into: Any) -> list[str]:
    """For each input of a node its rows from ``first`` to ``end``, or all of its one row."""
    return [
        name if variable.type.broadcastable[0] else f"{name}[first:end]"
        for name, variable in zip(names(len(into.inputs)), into.inputs, strict=True)
    ]


def _kernel_source(into: Any) -> str:
    """The function that computes one tile of a node that works in place."""
    return "\n    ".join(
        [
            f"def tile(index, rows, length, {', '.join(names(len(into.inputs)))}):",
            "first = index * rows",
            "end = min(length, first + rows)",
            f"loop({', '.join(rows_of(into))})",
        ]
    )


def _source(node: Any, into: Any, count: int, in_tiles: bool) -> str:
    """The function that computes it all."""
    known = names(len(into.inputs))
    result = into.outputs[0].type
    lines = [f"def elementwise({', '.join(known[:count])}):"]
    shape = "".join(f"{_length(into, axis)}, " for axis in range(result.ndim))
    for name, variable in zip(known[count:], into.inputs[count:], strict=True):
        dtype = "bool_" if variable.type.dtype == "bool" else variable.type.dtype
        lines.append(f"{name} = np.empty(({shape}), np.{dtype})")
    outputs = results(into)
    first, returned = outputs[0], outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
    if in_tiles:
        lines += [
            "threads = thread_count()",
            f"if {first}.size >= {LARGE} and threads > 1 and {fits(node, into, first)}:",
            f"    length = {first}.shape[0]",
            f"    tiles = min(max({first}.size // {TILE} // threads, 1), {TILES}) * threads",
            "    rows = (length + tiles - 1) // tiles",
            *([f"    rows = (rows + {VECTOR - 1}) // {VECTOR} * {VECTOR}"] * (result.ndim == 1)),
            "    tiles = (length + rows - 1) // rows",
            f"    arguments = (rows, length, {', '.join(known)})",
            "    if run_tiles(tile, arguments, tiles, min(threads, tiles)):",
            "        raise RuntimeError('a tile of an elementwise operation failed')",
            f"    return {returned}",
        ]
    lines += [f"loop({', '.join(known)})", f"return {returned}"]
    return "\n    ".join(lines)


def _length(into: Any, axis: int) -> str:
    """What has the length of the results along an axis."""
    if into.outputs[0].type.broadcastable[axis]:
        return "1"
    return next(
        f"x{index}.shape[{axis}]"
        for index, variable in enumerate(into.inputs)
        if not variable.type.broadcastable[axis]
    )


def fits(node: Any, into: Any, result: str, but: int | None = None) -> str:
    """Whether all shapes are as they must be, which only the loop of the whole complains of.

    Of all inputs but one, if one is named, which are the inputs of a node or stand for numbers.
    """
    checks = [
        f"x{index}.shape[{axis}] == {'1' if one else f'{result}.shape[{axis}]'}"
        for index, variable in enumerate(into.inputs)
        if index != but
        and f"x{index}" != result
        and not isinstance(node.inputs[index].type, ScalarType)
        for axis, one in enumerate(variable.type.broadcastable)
    ]
    return " and ".join(checks) or "True"
