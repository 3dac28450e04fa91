"""Lengths under JAX, which must know every shape while it compiles.

JAX knows the shapes of what it is given, but nothing that its own functions compute of them. So
NumPy computes what is made of shapes alone; and of what depends on values, `unknown_length` tells
the user, once JAX has refused it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Constant
from pytensor.graph.op import HasInnerGraph, Op

from downhill_rms.compiling.internals import (
    Alloc,
    ARange,
    CAReduce,
    CheckAndRaise,
    CumOp,
    DimShuffle,
    Elemwise,
    IncSubtensor,
    Join,
    MakeVector,
    ScalarFromTensor,
    ScalarOp,
    ScalarType,
    Shape,
    Shape_i,
    Split,
    Subtensor,
    TensorFromScalar,
    indices_from_subtensor,
    node_rewriter,
)

# What arithmetic with lengths is made of.
ARITHMETIC = (
    *(Alloc, ARange, CAReduce, CheckAndRaise, CumOp, DimShuffle, Elemwise, IncSubtensor, Join),
    *(MakeVector, ScalarFromTensor, ScalarOp, Subtensor, TensorFromScalar),
)

# Which inputs of an operation say how long its result is, by the operation's name.
LENGTHS = {
    "Alloc": slice(1, None),
    "AllocEmpty": slice(None),
    "ARange": slice(None),
    "Eye": slice(0, 2),
    "Repeat": slice(1, 2),
    "Reshape": slice(1, 2),
    "Scan": slice(0, 1),
    "Split": slice(-1, None),
}
# Operations whose result is as long as the values of their operands have it.
BY_VALUE = ("Nonzero", "Unique")


class OfShapes(Op):  # type: ignore[misc]
    """An operation on shapes and constants, which NumPy computes while JAX compiles.

    Parameters
    ----------
    op : Op
        The operation.
    """

    __props__ = ("op",)

    def __init__(self, op: Any) -> None:
        self.op = op

    def make_node(self, *inputs: Any) -> Apply:
        """What the operation makes of the inputs."""
        node = self.op.make_node(*inputs)
        return Apply(self, node.inputs, [out.type() for out in node.outputs])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it as PyTensor's Python code does."""
        inner = self.op.make_node(*node.inputs)
        self.op.prepare_node(inner, None, None, "py")
        self.op.perform(inner, inputs, output_storage)


def with_numpy(op: Any, node: Any, **kwargs: Any) -> Any:
    """The function of an `OfShapes`, for JAX to call while it compiles."""

    def compute(*values: Any) -> Any:
        inputs = [
            np.asarray(value, dtype=v.type.dtype)[() if isinstance(v.type, ScalarType) else ...]
            for value, v in zip(values, node.inputs, strict=True)
        ]
        (storage,) = storages = [[None] for _ in node.outputs]
        op.perform(node, inputs, storages)
        return storage[0]

    return compute


@node_rewriter([Split])  # type: ignore[untyped-decorator]
def slice_split(fgraph: Any, node: Any) -> list[Any] | None:
    """Make slices of a split at places that JAX knows; of `pt.concatenate` it is the gradient.

    PyTensor's JAX code takes constant lengths alone.
    """
    x, *axes, lengths = node.inputs  # since 3.1 the axis is the operation's
    axis = (
        axes[0].data if axes and isinstance(axes[0], Constant) else getattr(node.op, "axis", None)
    )
    if axis is None or isinstance(lengths, Constant) or not is_of_shapes(lengths):
        return None
    before = (slice(None),) * (int(axis) % x.type.ndim)
    parts, start = [], pt.constant(0, dtype="int64")
    for i in range(len(node.outputs)):
        stop = start + lengths[i]
        parts.append(x[(*before, slice(start, stop))])
        start = stop
    return parts


@node_rewriter(None)  # type: ignore[untyped-decorator]
def compute_lengths(fgraph: Any, node: Any) -> list[Any] | None:
    """Have NumPy compute the numbers that are made of shapes alone, and ranges of them."""
    if len(node.outputs) != 1 or not isinstance(node.op, ARITHMETIC):
        return None
    is_number = node.outputs[0].type.ndim == 0
    if not (is_number or isinstance(node.op, ARange)) or not all(map(is_of_shapes, node.inputs)):
        return None
    return [OfShapes(node.op)(*map(_by_numpy, node.inputs))]


def is_of_shapes(variable: Any) -> bool:
    """Whether numbers, in up to two dimensions, are made of shapes and constants alone."""
    seen, ahead = set(), [variable]
    while ahead:
        v = ahead.pop()
        if v in seen or isinstance(v, Constant):
            continue
        seen.add(v)
        if v.owner is None or getattr(v.type, "ndim", 3) > 2:
            return False
        if not isinstance(v.owner.op, Shape | Shape_i | OfShapes):
            if not isinstance(v.owner.op, ARITHMETIC):
                return False
            ahead.extend(v.owner.inputs)
    return True


def _by_numpy(variable: Any) -> Any:
    """What is made of shapes alone, with every operation on the way to it computed by NumPy."""
    node = variable.owner
    if node is None or isinstance(node.op, Shape | Shape_i | OfShapes):
        return variable
    return OfShapes(node.op)(*map(_by_numpy, node.inputs))


def unknown_length(outputs: Sequence[Any]) -> str | None:
    """Which operation of a graph JAX cannot compile since values decide how long its result is."""
    for node in nodes_of(outputs):
        if lengths := list(_values_that_are_lengths(node)):
            names = dict.fromkeys(repr(v.name) for v in _sources(lengths) if v.name)
            of = f"the values of {', '.join(names)}" if names else "values that are computed"
            return f"how long the result of {node.op} is depends on {of}"
    return None


def nodes_of(outputs: Sequence[Any]) -> Iterator[Any]:
    """Every operation, those inside scans and other inner graphs too, the first ones last."""
    seen, ahead = set(), [v.owner for v in outputs]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        ahead.extend(v.owner for v in node.inputs)
        if isinstance(node.op, HasInnerGraph):
            ahead.extend(v.owner for v in node.op.inner_outputs)


def _values_that_are_lengths(node: Any) -> Iterator[Any]:
    op, name = node.op, type(node.op).__name__
    lengths = list(node.inputs[LENGTHS[name]]) if name in LENGTHS else []
    if hasattr(op, "size_param"):
        lengths.append(op.size_param(node))
    if "Subtensor" in name:
        first = 2 if "Inc" in name else 1
        indices = indices_from_subtensor(node.inputs[first:], op.idx_list)
        ends = [(i.start, i.stop, i.step) for i in indices if isinstance(i, slice)]
        lengths += [v for three in ends for v in three if isinstance(v, pt.Variable)]
        masks = [v for v in node.inputs[first:] if getattr(v.type, "dtype", None) == "bool"]
        yield from masks
    if name in BY_VALUE or (name == "Scan" and op.info.as_while):
        yield from node.inputs
    yield from (v for v in lengths if not is_of_shapes(v))


def _sources(variables: Sequence[Any]) -> Iterator[Any]:
    """What is given, of which values are computed, other than by its shape."""
    seen, ahead = set(), list(variables)
    while ahead:
        v = ahead.pop()
        if v in seen or isinstance(v, Constant):
            continue
        seen.add(v)
        if v.owner is None:
            yield v
        elif not isinstance(v.owner.op, Shape | Shape_i):
            ahead.extend(v.owner.inputs)
