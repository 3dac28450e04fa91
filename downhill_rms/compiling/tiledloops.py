"""Elementwise operations of large arrays as tiles, which all threads compute.

PyTensor's loop over an array is called for tiles of it: rows of a matrix, or stretches of a vector
that the vectors of the processor divide. Every number is computed by the same instructions as in
one call for the whole, so that bits depend on nobody's number of threads. What is not computed in
place is written into arrays that are made before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from downhill_rms.compiling.internals import (
    QUICK,
    Composite,
    Elemwise,
    ScalarType,
    scalarized_elemwise,
)
from downhill_rms.compiling.selfcheck import source_key

LARGE = 16_384  # numbers of an array from which on it pays

_theirs: dict[type, Any] = {}  # PyTensor's functions that make loops


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes elementwise operations in what is linked here."""
    from downhill_rms.compiling import threads

    for kind in filter(None, (Elemwise, scalarized_elemwise())):
        _theirs[kind] = numba.funcify.dispatch(kind)
        if threads.are_shared():
            _register(numba, kind)


def _register(numba: Any, kind: type) -> None:
    from downhill_rms.compiling.linker import is_linking

    theirs = _theirs[kind]

    @numba.register(kind)  # type: ignore[untyped-decorator]
    def funcify_elementwise(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str | None]:
        loop = node if isinstance(op, Elemwise) else _only_elementwise(op.fgraph)
        if not is_linking() or not _may_be_large(loop):
            return theirs(op, node=node, **kwargs)  # type: ignore[no-any-return]
        new, into = written_into(node)
        function, key = theirs(new.op, node=new, **kwargs)
        return _tiled(numba, new, into, len(node.inputs), function), (
            key and f"tiled_{key}_{source_key()}"
        )


def plain_loop(node: Any) -> tuple[Any, str | None]:
    """PyTensor's function of an elementwise operation for Numba, and its key."""
    return _theirs[type(node.op)](node.op, node=node)  # type: ignore[no-any-return]


def _only_elementwise(graph: Any) -> Any:
    """The elementwise operation inside one that gives numbers to it."""
    (inner,) = (inner for inner in graph.apply_nodes if isinstance(inner.op, Elemwise))
    return inner


def _may_be_large(node: Any) -> bool:
    """Whether the results may be large, as far as is known, and have rows to divide them by."""
    from downhill_rms.compiling.linker import largest_shared_variable

    first = node.outputs[0].type
    if not first.ndim or first.broadcastable[0]:
        return False
    if any(v.type.broadcastable != first.broadcastable for v in node.outputs):
        return False
    if None not in first.shape and np.prod(first.shape) < LARGE:
        return False
    if any(node.inputs[index].owner is None for index in node.op.inplace_pattern.values()):
        # An update, or something of the like, of what the graph is given.
        return largest_shared_variable() >= LARGE
    return _is_slow(node.op.scalar_op)


def _is_slow(scalar_op: Any) -> bool:
    """Whether there is more to compute of a number than to read and write it.

    If not, a loop is as fast as its arrays are read, mostly from a cache, and to compile its tiles
    takes more than they gain.
    """
    if isinstance(scalar_op, Composite):
        return any(not isinstance(node.op, QUICK) for node in scalar_op.fgraph.apply_nodes)
    return not isinstance(scalar_op, QUICK)


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
    inner = _only_elementwise(graph)
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
    from downhill_rms.compiling.loopcode import loop_in_tiles

    known = names(len(into.inputs))
    # PyTensor's function is none that Numba compiles by itself.
    source = f"def loop({', '.join(known)}):\n    return called({', '.join(known)})"
    function = numba.function_of_source(source, "loop", {"called": loop})
    patterns = tuple(
        None if isinstance(outer.type, ScalarType) else tuple(inner.type.broadcastable)
        for outer, inner in zip(node.inputs, into.inputs, strict=True)
    )
    places = tuple(into.op.inplace_pattern[index] for index in range(len(into.outputs)))
    fresh = tuple(variable.type.dtype for variable in into.inputs[count:])
    scope = {"run": loop_in_tiles(patterns, places, fresh), "loop": numba.njit(function)}
    given = ", ".join(known[:count])
    source = f"def elementwise({given}):\n    return run(loop, ({given},))"
    return numba.njit(numba.function_of_source(source, "elementwise", scope))


def names(count: int) -> list[str]:
    """What so many inputs are called in what is written here."""
    return [f"x{index}" for index in range(count)]
