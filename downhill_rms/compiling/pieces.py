"""Where a graph is cut: into pieces that are as alike as its layers are.

LLVM's time and memory for a function grow faster than the function, and a layer that occurs thirty
times need not be compiled thirty times. A large graph is cut into pieces of some tens of
operations; where a block of operations is repeated, each repetition is cut at the same places, so
that the pieces are equal. What is no work, such as a view of an array, belongs to every piece that
needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from pytensor.graph.basic import Constant

from downhill_rms.compiling.internals import (
    DenseTensorType,
    DimShuffle,
    IncSubtensor,
    RandomType,
    ScalarFromTensor,
    ScalarOp,
    ScalarType,
    Shape_i,
    Subtensor,
    TensorFromScalar,
)

# One function is made of a graph with so many operations, inputs and outputs at most. Measured, in
# processor seconds on an empty cache, as one function and in pieces: 10 layers of 128 units, 240 of
# these, 13 and 15; 40 parameters alone, 338, 9 and 4; 20 layers, 474, 19 and 16.
SMALL = 300
NODES = 32  # operations in a piece
LARGE = 10**6  # bytes: a larger constant is none for Numba, which then keeps nothing on disk

FREE = (DimShuffle, Shape_i, ScalarFromTensor, TensorFromScalar, ScalarOp)


@dataclass
class Piece:
    """Operations that are one function.

    Attributes
    ----------
    nodes : list of Apply
        The operations, in their order.
    reads : list of Variable
        What others have computed, and inputs.
    made : list of Variable
        What no other piece computes.
    passed : list of Constant
        Constants in which equal pieces may differ, and those that are too large for native code.
    """

    nodes: list[Any] = field(default_factory=list)
    reads: list[Any] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    passed: list[Any] = field(default_factory=list)

    def form(self, returned: Sequence[Any]) -> tuple[Any, ...]:
        """What is the same for pieces that are one function, which returns these variables."""
        places = {variable: place for place, variable in enumerate([*self.reads, *self.passed])}
        parts: list[Any] = [variable.type for variable in places]
        for node in self.nodes:
            # A constant is the same variable wherever it is used.
            parts.append((node.op, *(places.get(v, v) for v in node.inputs)))
            for variable in node.outputs:
                parts.append(variable.type)
                places[variable] = len(places)
        return (*parts, *(places[variable] for variable in returned))


def cut(fgraph: Any) -> list[Piece]:
    """The pieces of a graph, in their order; one if it is small."""
    order = fgraph.toposort()
    if not order:
        return []
    if len(order) + len(fgraph.inputs) + len(fgraph.outputs) > SMALL:
        order = _as_needed(fgraph, order)
        free = _free_nodes(fgraph, order)
        pieces = _joined([node for node in order if node not in free], free)
        if len(pieces) > 1:
            return pieces
    return [_piece(order, set())]


def _as_needed(fgraph: Any, order: Sequence[Any]) -> list[Any]:
    """The operations, each just before the first that needs it.

    PyTensor's order is of another kind: it begins with what can be computed at once, such as the
    lengths of all parameters, and mixes what belongs to several layers.
    """
    places = {node: place for place, node in enumerate(order)}
    needs = fgraph.orderings()
    found: dict[Any, None] = {}
    # Of the outputs, those first which PyTensor's order has first: behind the last layer is the
    # gradient that is there first, and what it was computed from is needed no longer.
    outputs = {v.owner for v in fgraph.outputs if v.owner is not None}
    stack = sorted(outputs, key=places.__getitem__, reverse=True)
    while stack:
        node = stack[-1]
        before = [*(v.owner for v in node.inputs), *needs.get(node, ())]
        missing = [n for n in before if n is not None and n not in found]
        if missing:
            stack += reversed(missing)
        else:
            found.setdefault(stack.pop())
    return list(found)


def _joined(work: Sequence[Any], free: set[Any]) -> list[Piece]:
    """Pieces that give each other nothing that cannot be given."""
    places = cuts(_colours(work))
    while True:
        pieces = [_piece(work[a:b], free) for a, b in pairwise(places)]
        maker = {v: index for index, piece in enumerate(pieces) for v in piece.made}
        uncut = {
            place
            for index, piece in enumerate(pieces)
            for variable in piece.reads
            if not _may_pass(variable)
            for place in places[maker[variable] + 1 : index + 1]
        }
        if not uncut:
            return pieces
        places = [place for place in places if place not in uncut]


def _may_pass(variable: Any) -> bool:
    """Whether one function may give a variable to another."""
    kinds = DenseTensorType | RandomType | ScalarType
    return variable.owner is None or isinstance(variable.type, kinds)


def _free_nodes(fgraph: Any, order: Sequence[Any]) -> set[Any]:
    """What may be computed wherever it is needed: it costs nothing, and finds what it would have.

    Who uses a view does so before the array is overwritten; numbers may be used after that.
    """
    kept = set(fgraph.outputs)
    watched = hasattr(fgraph, "destroyers")
    return {
        node
        for node in order
        if isinstance(node.op, FREE)
        and not kept.intersection(node.outputs)
        and (node.op.view_map or not (watched and any(map(fgraph.destroyers, node.inputs))))
    }


def _piece(work: Sequence[Any], free: set[Any]) -> Piece:
    piece = Piece()
    here: set[Any] = set()

    def add(node: Any) -> None:
        for variable in node.inputs:
            if isinstance(variable, Constant) or variable in here:
                continue
            if variable.owner in free:
                add(variable.owner)
            else:
                here.add(variable)
                piece.reads.append(variable)
        here.update(node.outputs)
        piece.nodes.append(node)

    for node in work:
        add(node)
        piece.made += node.outputs
    passed = [
        v
        for node in piece.nodes
        for v in node.inputs
        if _is_large(v) or (free and _is_index(node, v))
    ]
    piece.passed = list(dict.fromkeys(passed))
    return piece


def _is_large(variable: Any) -> bool:
    return (
        isinstance(variable, Constant)
        and isinstance(variable.data, np.ndarray)
        and variable.data.nbytes > LARGE
    )


def _is_index(node: Any, variable: Any) -> bool:
    """Whether a variable is a constant index, which may be another one in a piece like this."""
    return (
        isinstance(node.op, Subtensor | IncSubtensor)
        and isinstance(variable, Constant)
        and isinstance(variable.type, ScalarType)
    )


def _colours(work: Sequence[Any]) -> list[int]:
    """A number for each operation, the same for those at equal places of repeated blocks."""
    position = {v: (i, j) for i, node in enumerate(work) for j, v in enumerate(node.outputs)}
    codes: dict[Any, int] = {}
    colours = []
    for i, node in enumerate(work):
        kinds: list[Any] = [node.op]
        for variable in node.inputs:
            at, output = position.get(variable, (-1, 0))
            near = (i - at, output) if at >= 0 and i - at <= NODES else None
            kinds.append((variable.type, near))
        colours.append(codes.setdefault(tuple(kinds), len(codes)))
    return colours


def cuts(colours: Sequence[int]) -> list[int]:
    """Where to cut operations of these colours, from 0 to their number."""
    places, end = [0], 0
    for start, stop, period in repeats(np.asarray(colours)):
        _fill(places, end, start)
        # A few short blocks together, or parts of a long one; then what is left.
        block = period * max(1, NODES // period)
        end = stop - (stop - start) % block
        for first in range(start, end, block):
            _fill(places, first, first + block)
        _fill(places, end, stop)
        end = stop
    _fill(places, end, len(colours))
    return places


def _fill(places: list[int], start: int, stop: int) -> None:
    """Cut into as few parts of about equal length as are short enough."""
    if stop > start:
        count = -(-(stop - start) // NODES)
        places += [start + (stop - start) * part // count for part in range(1, count + 1)]


def repeats(colours: np.ndarray) -> list[tuple[int, int, int]]:
    """Stretches in which a block is repeated: where each begins and ends, and the block's length.

    They are found by comparing the whole with itself, shifted by each length that a block may have.
    """
    best = (0, 0, 0)  # operations that are like those a block earlier, where, and the block
    for period in range(1, len(colours) // 2 + 1):
        alike = np.concatenate([[False], colours[:-period] == colours[period:], [False]])
        edges = np.flatnonzero(alike[1:] != alike[:-1])
        lengths = edges[1::2] - edges[::2]
        if len(lengths) and (longest := int(lengths.max())) >= period and longest > best[0]:
            best = (longest, int(edges[2 * int(lengths.argmax())]), period)
    length, start, period = best
    if not length:
        return []
    stop = start + length + period
    after = [(stop + a, stop + b, p) for a, b, p in repeats(colours[stop:])]
    return [*repeats(colours[:start]), (start, stop, period), *after]
