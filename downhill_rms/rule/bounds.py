"""What a graph demands of its data: extents that meet, and integers that index.

The graph is built again with what is known of the shapes, and PyTensor's own inference carries
them on. Where extents cannot meet, or an index is compared with the extent of what it indexes,
is noted on the way, inside scans and ``OpFromGraph`` too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Constant
from pytensor.graph.op import HasInnerGraph
from pytensor.graph.replace import vectorize_graph
from pytensor.graph.traversal import toposort, walk
from pytensor.scan.op import Scan
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.shape import Shape, Shape_i
from pytensor.tensor.subtensor import indices_from_subtensor
from pytensor.tensor.type import TensorType

from downhill_rms.rule.traversal import label, operation_name

Extents = tuple[int | None, ...]  # a shape, None where an extent is not known

INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"bool"}


@dataclass(frozen=True)
class Conflict:
    """An operation whose operands do not fit each other.

    Attributes
    ----------
    operation : str
        Its name.
    operands : tuple of str
        What meets there, each with its shape.
    reason : str
        What PyTensor says of it, in one line.
    remedy : str
        What to do about it.
    inside : bool
        Whether the operation has a graph of its own, where it happened.
    """

    operation: str
    operands: tuple[str, ...]
    reason: str
    remedy: str = "Change the data, or the shapes of the parameters"
    inside: bool = False

    def __str__(self) -> str:
        first, *others = self.operands
        met = f" meets {' and '.join(others)}" if others else ""
        return f"{first}{met} in {self.operation}: {self.reason}. {self.remedy}."


@dataclass(frozen=True)
class Index:
    """Integers that index an axis whose extent is known.

    Attributes
    ----------
    values : Variable
        The integers, an expression of the reading's ``leaves``.
    inputs : tuple of int
        The inputs that they are computed from, by their places.
    extent : int
        Entries along the axis: an index is from ``-extent`` to ``extent - 1``.
    axis : int
        The axis.
    tensor : str
        What is indexed.
    """

    values: Any
    inputs: tuple[int, ...]
    extent: int
    axis: int
    tensor: str


@dataclass(frozen=True)
class Reading:
    """What a graph demands of data of certain shapes.

    Attributes
    ----------
    outputs : list of Variable
        The outputs, built again.
    leaves : dict of Variable to Variable
        The inputs and shared variables that they were built from, and those that stand for them.
    conflict : Conflict or None
        The first operation whose operands seem not to fit. It may never be computed, as in a
        branch that is not taken.
    indices : tuple of Index
        Integers to be checked, computed from integer inputs and shared variables alone.
    unbounded : tuple of str
        What is indexed by integers that cannot be checked so.
    """

    outputs: list[Any]
    leaves: dict[Any, Any]
    conflict: Conflict | None
    indices: tuple[Index, ...]
    unbounded: tuple[str, ...]


def read_bounds(
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    shapes: Mapping[Any, Extents],
    names: Mapping[Any, str],
) -> Reading:
    """Find what a graph demands of its data.

    Parameters
    ----------
    outputs : sequence of Variable
        The loss and whatever else is computed.
    inputs : sequence of Variable
        What minibatches feed.
    shapes : mapping of Variable to tuple of int or None
        What is known of the shapes of inputs and shared variables.
    names : mapping of Variable to str
        What they are called in errors, such as ``"input 'x'"``.

    Returns
    -------
    Reading
    """
    tensors = {v: shape for v, shape in shapes.items() if isinstance(v.type, TensorType)}
    leaves = {v: _typed(v, shape) for v, shape in tensors.items()}
    builder = _Builder({leaf: names[v] for v, leaf in leaves.items() if v in names})
    built = builder.build(outputs, leaves)
    places = {leaves[v]: place for place, v in enumerate(inputs) if v in leaves}
    known = {leaf for leaf in leaves.values() if leaf.type.dtype in INTEGERS}
    indices, unbounded = [], []
    for index in builder.indices:
        behind = _value_leaves(index.values)
        if index.extent is None:
            # Without values of its own it is made from shapes, such as arange(n) of n rows.
            bounded = not behind
        elif bounded := behind <= known:
            read = tuple(sorted(places[leaf] for leaf in behind if leaf in places))
            indices.append(Index(index.values, read, index.extent, index.axis, index.tensor))
        if not bounded:
            unbounded.append(index.tensor)
    return Reading(built, leaves, builder.conflict, tuple(indices), tuple(unbounded))


def conflict_at(
    node: Any, shapes: Sequence[Any], reason: str, names: Mapping[Any, str]
) -> Conflict:
    """Describe an operation that fails.

    Parameters
    ----------
    node : Apply
        The operation, of variables as they are declared.
    shapes : sequence of tuple or None
        Those that its operands have; None for what is no tensor.
    reason : str
        Why it fails, in another library's words.
    names : mapping of Variable to str
        What inputs and shared variables are called.
    """
    tensors = [
        (variable, tuple(shape))
        for variable, shape in zip(node.inputs, shapes, strict=True)
        if shape is not None and not isinstance(variable, Constant)
    ]
    reason = " ".join(reason.partition("\n")[0].split()).rstrip(".")
    remedy = Conflict.remedy
    if isinstance(node.op, Elemwise):
        met = [shape for _, shape in tensors]
        reason = _different_lengths(met) or reason
        for variable, shape in tensors:
            if axes := _wanting_repetition(variable, shape, met):
                reason = "a length of 1 is repeated only where the variable's type says so"
                remedy = _remedy_of_repetition(variable, shape, axes, names)
    elif isinstance(getattr(node.op, "core_op", node.op), Dot):
        (_, left), (_, right) = tensors
        reason = f"{left[-1]} columns meet {right[-2]} rows"
    else:  # scalars are sizes and indices there
        tensors = [(variable, shape) for variable, shape in tensors if shape] or tensors
    operands = tuple(_operand(variable, shape, names) for variable, shape in tensors)
    inside = isinstance(node.op, HasInnerGraph)
    return Conflict(operation_name(node.op), operands, reason, remedy, inside)


def _different_lengths(shapes: Sequence[Extents]) -> str:
    """Where shapes cannot meet elementwise."""
    for axis, extents in enumerate(zip(*shapes, strict=True)):
        lengths = dict.fromkeys(extent for extent in extents if extent not in (1, None))
        if len(lengths) > 1:
            return f"the lengths along axis {axis} are {' and '.join(map(str, lengths))}"
    return ""


def _wanting_repetition(variable: Any, shape: Extents, shapes: Sequence[Extents]) -> list[int]:
    """The axes along which an operand has length 1 undeclared, and another may have more."""
    return [
        axis
        for axis, extent in enumerate(shape)
        if extent == 1
        and variable.type.shape[axis] != 1
        and any(other[axis] != 1 for other in shapes)
    ]


def _remedy_of_repetition(
    variable: Any, shape: Extents, axes: Sequence[int], names: Mapping[Any, str]
) -> str:
    source, _ = _undimmed(variable, shape)
    if source.owner is not None:
        return f"Put pt.specify_broadcastable(..., {axes[0]}) around {label(variable)}"
    repeated: list[int | None] = [1 if axis in axes else None for axis in range(len(shape))]
    _, declared = _undimmed(variable, tuple(repeated))
    called, shape_in_words = names.get(source) or label(source), _in_words(declared, "None")
    return f"Make {called} with shape={shape_in_words}, which pytensor.shared and pt.tensor take"


def _operand(variable: Any, shape: Extents, names: Mapping[Any, str]) -> str:
    source, shape = _undimmed(variable, shape)
    return f"{names.get(source) or label(source)} of shape {_in_words(shape)}"


def _undimmed(variable: Any, shape: Extents) -> tuple[Any, Extents]:
    """A variable before dimensions were added or moved, and its shape there."""
    while variable.owner is not None and isinstance(variable.owner.op, DimShuffle):
        if variable.owner.op.drop:
            break
        order = variable.owner.op.new_order
        (variable,) = variable.owner.inputs
        shape = tuple(shape[order.index(axis)] for axis in range(variable.type.ndim))
    return variable, shape


def _in_words(shape: Extents, unknown: str = "?") -> str:
    extents = [unknown if extent is None else str(extent) for extent in shape]
    return f"({', '.join(extents)}{',' * (len(extents) == 1)})"


def _typed(variable: Any, shape: Extents) -> Any:
    """A variable of the same kind whose shape is known."""
    if not isinstance(variable.type, TensorType) or len(shape) != variable.type.ndim:
        return variable.type(name=variable.name)
    return variable.type.clone(shape=tuple(shape))(name=variable.name)


def _value_leaves(variable: Any) -> set[Any]:
    """What the values of a variable are computed from, its shape apart."""

    def arguments(variable: Any) -> Any:
        if variable.owner is None or isinstance(variable.owner.op, Shape | Shape_i):
            return None
        return variable.owner.inputs

    found = walk([variable], arguments, bfs=False)
    return {v for v in found if v.owner is None and not isinstance(v, Constant)}


@dataclass(frozen=True)
class _FoundIndex:
    values: Any
    extent: int | None
    axis: int
    tensor: str


class _Builder:
    """Build a graph again, one operation after the other, and note what it demands."""

    def __init__(self, names: Mapping[Any, str]) -> None:
        self.names = dict(names)
        self.conflict: Conflict | None = None
        self.indices: list[_FoundIndex] = []

    def build(self, outputs: Sequence[Any], given: Mapping[Any, Any]) -> list[Any]:
        """The outputs in terms of what is given in place of some variables."""
        built = dict(given)
        for node in toposort(outputs, blockers=list(given)):
            operands = [built.get(variable, variable) for variable in node.inputs]
            for old, new in zip(node.outputs, self._results(node, operands), strict=True):
                built.setdefault(old, new)
                if new.name is None:
                    new.name = old.name
        return [built.get(variable, variable) for variable in outputs]

    def _results(self, node: Any, operands: list[Any]) -> Sequence[Any]:
        if isinstance(node.op, OpFromGraph):
            inner = dict(zip(node.op.inner_inputs, operands, strict=True))
            return self.build(node.op.inner_outputs, inner)
        if isinstance(node.op, Scan):
            return self._scan_results(node, operands)
        self._look_at_indices(node, operands)
        shapes: list[Any] = [getattr(operand.type, "shape", None) for operand in operands]
        if isinstance(node.op, Elemwise):
            known = list(zip(node.inputs, shapes, strict=True))
            if any(_wanting_repetition(variable, shape, shapes) for variable, shape in known):
                self._note(node, operands, "")
        try:
            return list(node.op.make_node(*operands).outputs)
        except Exception as error:  # whatever an operation says of operands that do not fit
            self._note(node, operands, str(error))
            return [variable.type(name=variable.name) for variable in node.outputs]

    def _note(self, node: Any, operands: Sequence[Any], reason: str) -> None:
        if self.conflict is None:
            shapes = [getattr(operand.type, "shape", None) for operand in operands]
            names = {
                _undimmed(old, old.type.shape)[0]: self._called(new)
                for old, new in zip(node.inputs, operands, strict=True)
                if hasattr(old.type, "shape")
            }
            self.conflict = conflict_at(node, shapes, reason, names)

    def _called(self, variable: Any) -> str:
        source, _ = _undimmed(variable, variable.type.shape)
        return self.names.get(source) or label(source)

    def _look_at_indices(self, node: Any, operands: Sequence[Any]) -> None:
        """Note every index of an operation, slices apart: those end where the tensor ends."""
        places = _index_places(node.op, operands)
        if places is None:
            return
        axis = 0
        for index in places:
            if isinstance(index, slice):
                axis += 1
            elif index.type.dtype == "bool":
                axis += index.type.ndim
            else:
                self._look_at_index(node, operands, index, axis)
                axis += 1

    def _look_at_index(self, node: Any, operands: Sequence[Any], index: Any, axis: int) -> None:
        extent = operands[0].type.shape[axis]
        if not isinstance(index, Constant):
            self.indices.append(_FoundIndex(index, extent, axis, self._called(operands[0])))
        elif extent is not None and not ((-extent <= index.data) & (index.data < extent)).all():
            self._note(node, operands, f"index {index.data} is out of bounds for axis {axis}")

    def _scan_results(self, node: Any, operands: list[Any]) -> Sequence[Any]:
        """Read the graph inside a scan; its outputs are new variables of known shapes."""
        op = node.op
        given = dict(
            zip(op.inner_non_seqs(op.inner_inputs), op.outer_non_seqs(operands), strict=True)
        )
        steps: dict[Any, Any] = {}  # one step of a sequence: the whole of it
        sequences = zip(op.inner_seqs(op.inner_inputs), op.outer_seqs(operands), strict=True)
        for variable, sequence in sequences:
            given[variable] = _typed(variable, sequence.type.shape[1:])
            steps[given[variable]] = sequence
            self.names[given[variable]] = f"a step of {self._called(sequence)}"
        mappings = op.get_oinp_iinp_iout_oout_mappings()
        buffers = mappings["outer_inp_from_inner_inp"]
        for place, variable in enumerate(op.inner_inputs):
            if variable not in given:
                given[variable] = _state(variable, operands[buffers[place]])
                self.names[given[variable]] = f"{variable.name or 'the state'} in a scan"
        outside, self.indices = self.indices, []
        inner = self.build(op.inner_outputs, given)
        self.indices = [*outside, *(_over_all_steps(index, steps) for index in self.indices)]
        results = []
        for place, variable in enumerate(node.outputs):
            (last, *_) = mappings["inner_out_from_outer_out"][place]
            shape = getattr(inner[last].type, "shape", ())
            results.append(_typed(variable, (None, *shape)))
        return results


def _state(variable: Any, buffer: Any) -> Any:
    """A state at one step: an entry of the buffer that holds all steps, or a whole variable."""
    shape = getattr(buffer.type, "shape", ())
    if len(shape) == getattr(variable.type, "ndim", 0) + 1:
        return _typed(variable, shape[1:])
    return variable.type(name=variable.name)


def _index_places(op: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    """The index of each axis, a slice or a variable; None for an operation that does not index."""
    name = type(op).__name__
    if name in ("AdvancedSubtensor1", "AdvancedIncSubtensor1"):  # until PyTensor 3.3
        return [operands[-1]]
    if name in ("Subtensor", "AdvancedSubtensor"):
        return list(indices_from_subtensor(operands[1:], op.idx_list))
    if name in ("IncSubtensor", "AdvancedIncSubtensor"):
        return list(indices_from_subtensor(operands[2:], op.idx_list))
    return None


def _over_all_steps(index: _FoundIndex, steps: Mapping[Any, Any]) -> _FoundIndex:
    """An index inside a scan, for all steps at once."""
    read = {step: whole for step, whole in steps.items() if step in _value_leaves(index.values)}
    if not read:
        return index
    try:
        values = vectorize_graph(index.values, read)
    except Exception:  # an operation that PyTensor cannot do for many steps at once
        return index  # one step has no value outside: it cannot be checked
    return replace(index, values=values)
