"""Scans that Numba compiles as one function, whose steps write where their results belong.

PyTensor compiles a step as a function that allocates everything that it computes, and copies what
is kept into the rows of larger arrays. Of an LSTM with few units that takes longer than to compute.
Here every variable of a step has its place before the first step: in the row of what is returned,
or in an array that all steps use again. Slices and transposes are other indices of the same place.
Loops over elements are functions of whole arrays and of the step's rows, so that a step makes no
views of them, for which Numba would count references.

A scan is left to PyTensor if it is no plain loop over states and traces, or if its step holds an
operation that has no place here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from textwrap import indent
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Constant

from downhill_rms.compiling.copies import Contiguous
from downhill_rms.compiling.internals import (
    EQ,
    Alloc,
    Assert,
    DeepCopyOp,
    DenseTensorType,
    DimShuffle,
    Elemwise,
    IncSubtensor,
    ScalarFromTensor,
    ScalarOp,
    Shape_i,
    SpecifyShape,
    Subtensor,
    TensorFromScalar,
    ViewOp,
    indices_from_subtensor,
    numba_dispatch,
    rewritten_step,
)
from downhill_rms.compiling.products import PlainDot, ThinDot
from downhill_rms.compiling.selfcheck import is_right, is_tested, source_key

SAME = (Contiguous, DeepCopyOp, ScalarFromTensor, SpecifyShape, TensorFromScalar, ViewOp)
PRODUCTS = (PlainDot, ThinDot)


def compiled(op: Any, node: Any, **options: Any) -> tuple[Any, str | None]:
    """Numba's function of a scan, and its key in PyTensor's on-disk cache.

    Raises
    ------
    NotImplementedError
        If the scan, or an operation of its step, is left to PyTensor.
    """
    info = op.info
    if info.as_while or info.mit_mot_in_slices:
        raise NotImplementedError("no plain loop over states and traces")
    kinds = (variable.type for variable in (*op.inner_inputs, *op.inner_outputs))
    if not all(isinstance(kind, DenseTensorType) for kind in kinds):
        raise NotImplementedError("what is no array")
    step = rewritten_step(op)
    if not any(isinstance(inner.op, PRODUCTS) for inner in step.apply_nodes):
        raise NotImplementedError("a scan of another mode, or without products of matrices")
    if not works():
        raise NotImplementedError("another PyTensor than this library knows")
    function, key = write(info, step, node, **options)
    return numba_dispatch().njit(function, boundscheck=False), key


def write(info: Any, step: Any, node: Any, **options: Any) -> tuple[Any, str | None]:
    """The function of a scan before it is compiled, and its key."""
    writer = Writer(info, step, node, options)
    source = writer.source()
    names = known_names() | writer.functions
    key = None
    if all(writer.keys):
        key = sha256(repr((source, writer.keys, source_key())).encode()).hexdigest()
    return numba_dispatch().function_of_source(source, "scan", names), key


@cache
def works() -> bool:
    """Whether a small scan is right."""
    return is_right(
        "written scans",
        make=lambda: write,
        check=_check_on_a_small_scan,
        consequence="Recurrent networks train more slowly.",
        tested=is_tested(),
    )


def _check_on_a_small_scan(write: Any) -> None:
    x, first, u = pt.dtensor3("x"), pt.dmatrix("first"), pt.dmatrix("u")
    product = PlainDot((False, False))

    def step(x: Any, h: Any, u: Any) -> Any:
        return pt.tanh(x[:, 1:] + product(h, u))

    states = pytensor.scan(step, [x], [first], [u], return_updates=False)
    node = states.owner.inputs[0].owner
    function, _ = write(node.op.info, rewritten_step(node.op), node)
    rows, matrix = np.linspace(-1, 1, 12).reshape(2, 2, 3), np.linspace(-1, 1, 4).reshape(2, 2)
    buffer = np.zeros((3, 2, 2))
    got = numba_dispatch().njit(function, final_function=True)(np.array(2), rows, buffer, matrix)
    h = buffer[0]
    for t in range(2):
        h = np.tanh(rows[t, :, 1:] + h @ matrix)
        if not np.allclose(got[t + 1], h, rtol=1e-9, atol=1e-12):
            raise ArithmeticError("a scan has other values")


def known_names() -> dict[str, Any]:
    """What generated code may speak of."""
    from downhill_rms.compiling import layout, thin

    names = ("arguments_are_distinct", "contiguous", "index_of", "part_of")
    found = {name: getattr(layout, name) for name in names}
    return {"np": np, "thin_dot_into": thin.thin_dot_into, **found}


@dataclass(frozen=True)
class Along:
    """An axis of an array along which an axis of a variable goes, from an element on."""

    axis: int
    start: str = "0"
    whole: bool = True


@dataclass(frozen=True)
class Place:
    """Where a variable is kept.

    Attributes
    ----------
    array : str
        The name of an array, or a number if there is no index.
    index : tuple of Along and str
        For each axis of the array the axis of the variable that goes along it, or where it is cut.
    """

    array: str
    index: tuple[Along | str, ...] | None

    @property
    def names(self) -> set[str]:
        """What an element is found by, but for the indices of a loop."""
        if self.index is None:
            return (
                {self.array} if self.array.startswith("n") and self.array[1:].isdigit() else set()
            )
        used = {index if isinstance(index, str) else index.start for index in self.index}
        return {self.array, *(name for name in used if not name.isdigit())}

    def element(self, broadcastable: Sequence[bool]) -> str:
        """An element, in a loop with an index ``i0``, ``i1``, ... for each axis."""
        if self.index is None:
            return self.array
        indices = []
        for index in self.index:
            if isinstance(index, str):
                indices.append(index)
            elif broadcastable[index.axis]:
                indices.append(index.start)
            elif index.start == "0":
                indices.append(f"i{index.axis}")
            else:
                indices.append(f"{index.start} + i{index.axis}")
        # Of an unsigned index Numba does not ask whether it counts from the end.
        return f"{self.array}[{', '.join(f'np.uint64({i})' for i in indices) or '()'}]"

    def matrix(self, dims: Sequence[str]) -> str:
        """A matrix of this shape, of which `numpy.dot` makes no copy."""
        along = [index for index in self.index or () if isinstance(index, Along)]
        axes = [index.axis for index in along]
        if sorted(axes) != [0, 1]:
            raise NotImplementedError("a product of what is no matrix of an array")
        parts = []
        for index in self.index or ():
            if isinstance(index, str):
                parts.append(index)
            elif index.whole:
                parts.append(":")
            else:
                parts.append(f"{index.start}:{index.start} + {dims[index.axis]}")
        while parts and parts[-1] == ":":
            parts.pop()
        text = f"{self.array}[{', '.join(parts)}]" if parts else self.array
        rows_first = not any(isinstance(index, str) for index in (self.index or ())[-2:])
        if not (rows_first and all(index.whole for index in along)):
            text = f"contiguous({text})"
        return text if axes == [0, 1] else f"{text}.T"


@dataclass
class Result:
    """What a step returns.

    Attributes
    ----------
    variable : Variable
        The variable of the step.
    place : Place
        The row that it belongs to.
    name : str
        What the function returns in the end.
    length : str or None
        Of what no step is given, what the scan is told of how many rows are kept.
    """

    variable: Any
    place: Place
    name: str
    length: str | None = None


class Writer:
    """Writes the function of one scan.

    Attributes
    ----------
    functions : dict
        What it calls, by name.
    keys : list
        What PyTensor's on-disk cache knows these by; None for what it does not keep.
    """

    def __init__(self, info: Any, step: Any, node: Any, options: dict[str, Any]) -> None:
        self.info, self.graph, self.node, self.options = info, step, node, options
        self.functions: dict[str, Any] = {}
        self.keys: list[Any] = []
        # The lines before the first step, of a step, and after the last one.
        self.before: list[str] = []
        self.step: list[str] = []
        self.after: list[str] = []
        self.places: dict[Any, Place] = {}
        self.dims: dict[Any, tuple[str, ...]] = {}
        self.varying: set[Any] = set()
        self.rows: dict[Any, Place] = {}  # of results that are computed where they belong
        self.cuts: dict[Any, list[Along | Any]] = {}
        self.parts: dict[Any, tuple[str, ...]] = {}
        self.named: dict[str, str] = {}
        self.count = 0

    def source(self) -> str:
        """The source of the function."""
        names = [f"x{i}" for i in range(len(self.node.inputs))]
        self.before.append("n_steps = np.asarray(x0).item()")
        results = self._take_apart(names)
        nodes = list(dict.fromkeys(self.graph.toposort()))  # each once, as in `linker.Source`
        for node in nodes:
            self._measure(node)
        nodes = _computed(nodes, self.graph.outputs)
        for result in results:
            if result.length is not None:
                self._allocate(result, result.length)
            self._reserve(result)
        for node in nodes:
            self._write(node)
        for result in results:
            if self.places[result.variable] != result.place:
                self._copy(result.variable, result.place)
        returned = [result.name for result in results]
        return "\n".join(
            [
                f"def scan({', '.join(names)}):",
                *(indent(line, " " * 4) for line in self.before),
                "    for t in range(n_steps):",
                *(indent(line, " " * 8) for line in self.step),
                *(indent(line, " " * 4) for line in self.after),
                f"    return {', '.join(returned)}",
                "",
            ]
        )

    # What the scan is given

    def _take_apart(self, names: Sequence[str]) -> list[Result]:
        """Find places for what the step is given; returns what it returns."""
        info, results = self.info, iter(self.graph.outputs)
        inner, outer = iter(self.graph.inputs), iter(names[1:])
        for _ in range(info.n_seqs):
            self._sequence(next(inner), next(outer))
        found = []
        for number, taps in enumerate((*info.mit_sot_in_slices, *info.sit_sot_in_slices)):
            given = [next(inner) for _ in taps]
            owned = number in self.node.op.destroy_map
            found.append(self._state(taps, given, next(outer), owned, next(results)))
        last = [(next(inner), next(outer)) for _ in range(info.n_untraced_sit_sot)]
        for _ in range(info.n_nit_sot):
            variable, name = next(results), next(outer)
            place = self._row(variable, f"trace_{name}", f"row_{name}")
            found.append(Result(variable, place, f"trace_{name}", length=name))
        found += [self._last(variable, name, next(results)) for variable, name in last]
        for variable, name in zip(inner, outer, strict=True):
            self._constant(variable, name)
        return found

    def _sequence(self, variable: Any, name: str) -> None:
        array = f"a_{name}"
        self.before += [
            f"{array} = contiguous({name})",
            f"if {array}.shape[0] < n_steps:",
            '    raise ValueError("A sequence has fewer rows than its scan has steps")',
        ]
        self._is_given(variable, self._row(variable, array, "t"))
        self.varying.add(variable)

    def _constant(self, variable: Any, name: str) -> None:
        self.before.append(f"a_{name} = contiguous({name})")
        self._is_given(variable, Place(f"a_{name}", tuple(map(Along, range(variable.type.ndim)))))

    def _state(
        self, taps: Sequence[int], given: Sequence[Any], name: str, owned: bool, result: Any
    ) -> Result:
        """Keep a state in a ring of rows, one more than a step looks back."""
        array, ring, size, order = f"a_{name}", f"ring_{name}", f"size_{name}", -min(taps)
        self.before += [
            f"{array} = contiguous({name})" if owned else f"{array} = contiguous({name}).copy()",
            f"{ring} = {array}",
            f"if {array}.shape[0] < n_steps + {order}:",
            f"    rows = max({array}.shape[0], {order + 1})",
            f"    {ring} = np.empty((rows,) + {array}.shape[1:], {array}.dtype)",
            f"    {ring}[:{order}] = {array}[:{order}]",
            f"{size} = {ring}.shape[0]",
        ]
        rows = {}
        for back in (*taps, 0):
            rows[back] = self._row(result, ring, f"row_{name}_{-back}")
            self.step.append(f"row_{name}_{-back} = (t + {order + back}) % {size}")
        for tap, variable in zip(taps, given, strict=True):
            self._is_given(variable, rows[tap])
            self.varying.add(variable)
        self.after += [
            f"if {array}.shape[0] < n_steps + {order}:",
            f"    first = n_steps + {order} - {array}.shape[0]",
            f"    for k in range({array}.shape[0]):",
            f"        {array}[k] = {ring}[(first + k) % {size}]",
            "else:",
            f"    {array}[n_steps + {order}:] = 0",
        ]
        return Result(result, rows[0], array)

    def _last(self, variable: Any, name: str, result: Any) -> Result:
        """Keep a state of which only the last value is returned in two rows by turns."""
        ring = f"ring_{name}"
        self.before += [
            f"{ring} = np.empty((2,) + {name}.shape, {name}.dtype)",
            f"{ring}[0] = {name}",
        ]
        self.step += [f"row_{name}_1 = t % 2", f"row_{name}_0 = 1 - row_{name}_1"]
        self._is_given(variable, self._row(variable, ring, f"row_{name}_1"))
        self.varying.add(variable)
        value = f"{ring}[n_steps % 2]"
        copy = f"{value}.copy()" if variable.type.ndim else f"np.asarray({value})"
        self.after.append(f"last_{name} = {copy}")
        return Result(result, self._row(result, ring, f"row_{name}_0"), f"last_{name}")

    def _row(self, variable: Any, array: str, row: str) -> Place:
        return Place(array, (row, *map(Along, range(variable.type.ndim))))

    def _is_given(self, variable: Any, place: Place) -> None:
        """Take the shape of a variable from the array that holds it."""
        self.places[variable] = place
        shift = len(place.index or ()) - variable.type.ndim
        self.dims[variable] = tuple(
            self._length(f"{place.array}.shape[{axis + shift}]", known)
            for axis, known in enumerate(variable.type.shape)
        )

    def _length(self, expression: str, known: int | None = None) -> str:
        """A name of a length that is computed once, or the number that it is known to be."""
        if known is not None:
            return str(known)
        if expression not in self.named:
            self.named[expression] = self._name("n")
            self.before.append(f"{self.named[expression]} = {expression}")
        return self.named[expression]

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def _require_equal(self, first: str, second: str) -> None:
        if first != second:
            self.before += [
                f"if {first} != {second}:",
                '    raise ValueError("Incompatible shapes in the step of a scan")',
            ]

    # Shapes, which are the same in all steps

    def _measure(self, node: Any) -> None:
        """Find the shape of what an operation computes, and the place of what it only cuts."""
        op, result = node.op, node.outputs[0]
        for variable in node.inputs:
            self._measure_constant(variable)
        if isinstance(op, Shape_i):
            self.dims[result] = ()
            self.places[result] = Place(self.dims[node.inputs[0]][op.i], None)
            return
        if any(variable in self.varying for variable in _read(node)):
            self.varying.update(node.outputs)
        if isinstance(op, Elemwise):
            dims = self._broadcast(node)
            self.dims.update((variable, dims) for variable in node.outputs)
        elif isinstance(op, ScalarOp):
            self.dims[result] = ()  # it may be a condition on lengths, and needs no place then
        elif isinstance(op, PRODUCTS):
            x, y = (self.dims[variable] for variable in node.inputs[:2])
            turned = op.transposed if isinstance(op, PlainDot) else (False, False)
            self.dims[result] = (x[turned[0]], y[not turned[1]])
            self._require_equal(x[not turned[0]], y[turned[1]])
        elif isinstance(op, (Assert, *SAME)):
            for condition in node.inputs[1:] if isinstance(op, Assert) else ():
                self._require_equal(*self._equal_lengths(condition))
            self.dims[result] = self.dims[node.inputs[0]]
            if node.inputs[0] in self.places:  # as lengths are
                self.places[result] = self.places[node.inputs[0]]
        elif isinstance(op, DimShuffle):
            dims = self.dims[node.inputs[0]]
            self.dims[result] = tuple("1" if a == "x" else dims[a] for a in op.new_order)
        elif isinstance(op, Subtensor):
            indices = indices_from_subtensor(node.inputs[1:], op.idx_list)
            self.cuts[node], self.dims[result] = self._cuts(node.inputs[0], indices)
        elif isinstance(op, IncSubtensor):
            indices = indices_from_subtensor(node.inputs[2:], op.idx_list)
            self.cuts[node], dims = self._cuts(node.inputs[0], indices)
            if len(dims) != node.inputs[1].type.ndim:
                raise NotImplementedError("a part of an array that is set to less than itself")
            self.dims[result] = self.dims[node.inputs[0]]
            self.parts[node] = dims
            for axis, one in enumerate(node.inputs[1].type.broadcastable):
                if not one:
                    self._require_equal(dims[axis], self.dims[node.inputs[1]][axis])
        elif isinstance(op, Alloc):
            if not all(node.inputs[0].type.broadcastable):
                raise NotImplementedError("copies of an array inside a scan")
            lengths = [self.places.get(variable) for variable in node.inputs[1:]]
            if any(place is None or place.index is not None for place in lengths):
                raise NotImplementedError("an array of a shape that is computed")
            self.dims[result] = tuple(place.array for place in lengths if place)
        else:
            raise NotImplementedError(f"{op} inside a scan")

    def _equal_lengths(self, condition: Any) -> list[str]:
        """The two lengths that a condition compares."""
        node = condition.owner
        while node is not None and isinstance(node.op, SAME):
            node = node.inputs[0].owner
        places = [self.places.get(v) for v in node.inputs] if node else []
        texts = [place.array for place in places if place and place.index is None]
        equal = node and isinstance(getattr(node.op, "scalar_op", node.op), EQ)
        if not equal or len(texts) != 2:
            raise NotImplementedError("a condition that values decide")
        return texts

    def _measure_constant(self, variable: Any) -> None:
        if isinstance(variable, Constant) and variable not in self.places:
            value = np.asarray(variable.data)
            if value.size != 1:
                raise NotImplementedError("an array that is a constant of the graph")
            text = repr(value.item())
            if value.dtype.kind == "f":
                text = f"np.{value.dtype}({value.item()!r})".replace("(inf", "(np.inf")
                text = text.replace("(-inf", "(-np.inf").replace("(nan", "(np.nan")
            self.places[variable] = Place(text, None)
            self.dims[variable] = ("1",) * value.ndim

    def _broadcast(self, node: Any) -> tuple[str, ...]:
        dims = []
        for axis, one in enumerate(node.outputs[0].type.broadcastable):
            lengths = [
                self.dims[variable][axis]
                for variable in node.inputs
                if not variable.type.broadcastable[axis]
            ]
            for length in lengths[1:]:
                self._require_equal(lengths[0], length)
            dims.append("1" if one or not lengths else lengths[0])
        return tuple(dims)

    def _cuts(
        self, variable: Any, indices: Sequence[Any]
    ) -> tuple[list[Along | Any], tuple[str, ...]]:
        """For each axis of a variable what is left of it, or where it is cut; and what is left."""
        found, cuts = list[str](), list[Along | Any]()
        for axis, length in enumerate(self.dims[variable]):
            index = indices[axis] if axis < len(indices) else slice(None)
            if not isinstance(index, slice):
                cuts.append(index)
            elif index == slice(None):
                cuts.append(Along(len(found)))
                found.append(length)
            else:
                start, stop, step = (_integer(v) for v in (index.start, index.stop, index.step))
                if step not in (None, 1):
                    raise NotImplementedError("a slice with a step")
                stop = 2**62 if stop is None else stop
                part = self._length(f"part_of({start or 0}, {stop}, {length})")
                cuts.append(Along(len(found), self._length(f"{part}[0]"), whole=False))
                found.append(self._length(f"{part}[1]"))
        return cuts, tuple(found)

    # Places of what is computed

    def _allocate(self, result: Result, kept: str) -> None:
        """Make room for what no step is given, in a ring of rows if not all are kept."""
        trace, length, size = result.name, f"length_{kept}", f"size_{kept}"
        shape = ", ".join(self.dims[result.variable])
        dtype = _dtype(result.variable)
        self.before += [
            f"{length} = np.asarray({kept}).item()",
            f"{size} = max({length}, 1)",
            f"{trace} = np.empty(({size}, {shape}), {dtype})",
        ]
        self.step.append(f"row_{kept} = t % {size}")
        self.after += [
            f"if {length} > n_steps:",
            f"    {trace}[n_steps:] = 0",
            f"elif n_steps % {size}:",
            f"    first = n_steps % {size}",
            f"    {trace} = np.concatenate(({trace}[first:], {trace}[:first]))",
            f"if {length} == 0:",
            f"    {trace} = np.empty((0, {shape}), {dtype})",
        ]

    def _reserve(self, result: Result) -> None:
        """Have a result computed where it belongs, if it is not by itself somewhere else."""
        variable = result.variable
        if variable.owner is None or not isinstance(variable.owner.op, (Elemwise, *PRODUCTS)):
            return
        for own, other in zip(self.dims[variable], self._dims_of(result.place), strict=True):
            self._require_equal(own, other)
        if variable in self.varying:
            self.rows.setdefault(variable, result.place)

    def _dims_of(self, place: Place) -> list[str]:
        along = [a for a, index in enumerate(place.index or ()) if isinstance(index, Along)]
        return [self._length(f"{place.array}.shape[{axis}]") for axis in along]

    def _place(self, variable: Any) -> Place:
        """Where to compute a variable."""
        if variable in self.rows:
            place = self.rows[variable]
        else:
            place = Place(self._name("v"), tuple(map(Along, range(variable.type.ndim))))
            shape = "".join(f"{length}, " for length in self.dims[variable])
            self.before.append(f"{place.array} = np.empty(({shape}), {_dtype(variable)})")
        self.places[variable] = place
        return place

    # What is computed

    def _write(self, node: Any) -> None:
        """Write what an operation computes, once if it is the same in all steps."""
        op, inputs = node.op, node.inputs
        if isinstance(op, Elemwise):
            places = [self._place(variable) for variable in node.outputs]
            name = self._name("f")
            self.functions[name] = self._function_of(node)
            targets = ", ".join(f"{{{i}}}" for i in range(len(places)))
            given = ", ".join(f"{{{len(places) + i}}}" for i in range(len(inputs)))
            self._loop(f"{targets} = {name}({given})", places, inputs, node.outputs[0], name)
        elif isinstance(op, PlainDot):
            turned = (".T" if t else "" for t in op.transposed)
            x, y = (f"{self._matrix(v)}{t}" for v, t in zip(inputs, turned, strict=True))
            self._line(node, f"np.dot({x}, {y}, {self._target(node)})")
        elif isinstance(op, ThinDot):
            given = ", ".join(map(self._matrix, inputs))
            self._line(node, f"thin_dot_into({given}, {self._target(node)})")
        elif isinstance(op, (Assert, *SAME)):
            self.places[node.outputs[0]] = self.places[inputs[0]]
        elif isinstance(op, DimShuffle):
            axes = {old: new for new, old in enumerate(op.new_order)}
            self.places[node.outputs[0]] = self._moved(inputs[0], axes)
        elif isinstance(op, Subtensor):
            self.places[node.outputs[0]] = self._cut(node, self.places[inputs[0]])
        elif isinstance(op, Alloc):
            self._loop("{0} = {1}", [self._place(node.outputs[0])], inputs[:1], node.outputs[0])
        elif isinstance(op, IncSubtensor):
            self._set_part(node)
        else:
            raise NotImplementedError(f"{op} inside a scan")

    def _copy(self, variable: Any, place: Place) -> None:
        self._loop("{0} = {1}", [place], [variable], variable)

    def _set_part(self, node: Any) -> None:
        """Write a part of an array over the array, or over a copy of it."""
        whole, part, *_ = node.inputs
        (result,) = node.outputs
        if self._is_ours_alone(whole):
            self.places[result] = self.places[whole]
        else:
            self._loop("{0} = {1}", [self._place(result)], [whole], result)
        line = "{0} = {1}" if node.op.set_instead_of_inc else "{0} = {0} + {1}"
        place = self._cut(node, self.places[result])
        self._loop(line, [place], [part], result, dims=self.parts[node])

    def _is_ours_alone(self, variable: Any) -> bool:
        """Whether a variable has an array of its own that nobody asks for any more."""
        return (
            variable.owner is not None
            and variable in self.varying
            and variable not in self.graph.outputs
            and len(self.graph.clients[variable]) == 1
            and isinstance(variable.owner.op, (Elemwise, IncSubtensor, *PRODUCTS))
        )

    def _line(self, node: Any, line: str) -> None:
        (self.step if node.outputs[0] in self.varying else self.before).append(line)

    def _matrix(self, variable: Any) -> str:
        return self.places[variable].matrix(self.dims[variable])

    def _target(self, node: Any) -> str:
        place = self._place(node.outputs[0])
        return place.matrix(self.dims[node.outputs[0]])

    def _moved(self, variable: Any, axes: dict[Any, int]) -> Place:
        """A place of which axes are others; those that are left out have one element."""
        place = self.places[variable]
        if place.index is None:
            return place
        index = [
            i
            if isinstance(i, str)
            else Along(axes[i.axis], i.start, i.whole)
            if i.axis in axes
            else i.start
            for i in place.index
        ]
        return Place(place.array, tuple(index))

    def _cut(self, node: Any, place: Place) -> Place:
        """The place of a part of a variable."""
        variable, cuts = node.inputs[0], self.cuts[node]
        index = list[Along | str]()
        for old in place.index or ():
            if isinstance(old, str):
                index.append(old)
                continue
            new = cuts[old.axis]
            if isinstance(new, Along) and new.whole:
                index.append(Along(new.axis, old.start, old.whole))
            elif isinstance(new, Along):
                index.append(Along(new.axis, self._sum(old.start, new.start), whole=False))
            else:
                at = self._name("at")
                number = self.places[new].element(()) if new in self.places else str(_integer(new))
                self._line(node, f"{at} = index_of({number}, {self.dims[variable][old.axis]})")
                index.append(at if old.start == "0" else f"{at} + {old.start}")
        return Place(place.array, tuple(index))

    def _sum(self, first: str, second: str) -> str:
        return second if first == "0" else self._length(f"{first} + {second}")

    def _function_of(self, node: Any) -> Any:
        """Numba's function of one element of each input."""
        numba = numba_dispatch()
        scalar_node = node.op.make_scalar_node(*node.inputs)
        function, key = numba.funcify(node.op.scalar_op, node=scalar_node, **self.options)
        if getattr(function, "handles_out", False):
            raise NotImplementedError("a function of elements that stores them itself")
        self.keys.append(key)
        source = getattr(function, "py_func", None)
        return function if source is None else numba.njit(source, forceinline=True)

    def _loop(
        self,
        line: str,
        targets: Sequence[Place],
        inputs: Sequence[Any],
        like: Any,
        function: str | None = None,
        dims: Sequence[str] = (),
    ) -> None:
        """Write a loop over the elements of variables, as a function that is called."""
        dims = dims or self.dims[like]
        places = [*targets, *(self.places[variable] for variable in inputs)]
        lone = [[length == "1" for length in dims]] * len(targets)
        lone += [_lone(variable, len(dims)) for variable in inputs]
        elements = [place.element(one) for place, one in zip(places, lone, strict=True)]
        lengths = [(axis, length) for axis, length in enumerate(dims) if length != "1"]
        names = {name for place in places for name in place.names}
        names |= {length for _, length in lengths if not length.isdigit()}
        call = self._name("loop")
        source = [f"def {call}({', '.join(sorted(names))}):", "    arguments_are_distinct()"]
        for depth, (axis, length) in enumerate(lengths, 1):
            source.append(" " * 4 * depth + f"for i{axis} in range({length}):")
        source.append(" " * 4 * (len(lengths) + 1) + line.format(*elements))
        known = known_names() | ({function: self.functions[function]} if function else {})
        loop = numba_dispatch().function_of_source("\n".join(source) + "\n", call, known)
        self.functions[call] = numba_dispatch().njit(loop)
        self.keys.append("\n".join(source))
        step = like in self.varying or any(n == "t" or n.startswith("row_") for n in names)
        (self.step if step else self.before).append(f"{call}({', '.join(sorted(names))})")


def _read(node: Any) -> list[Any]:
    """The inputs of which an operation takes more than the shape."""
    if isinstance(node.op, Shape_i):
        return []
    return list(node.inputs[:1] if isinstance(node.op, Alloc | Assert) else node.inputs)


def _computed(nodes: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """The operations that some results depend on, but for what only their shapes do."""
    wanted, found = set(results), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            found.append(node)
            wanted.update(_read(node))
    return found[::-1]


def _lone(variable: Any, ndim: int) -> list[bool]:
    """Which axes have one element; scalars have none at all."""
    return list(variable.type.broadcastable) or [True] * ndim


def _integer(value: Any) -> int | None:
    """A number that is known before the first step."""
    if value is None or isinstance(value, int):
        return value
    if not isinstance(value, Constant):
        raise NotImplementedError("a slice that another one decides")
    return int(np.asarray(value.data).item())


def _dtype(variable: Any) -> str:
    return "np.bool_" if variable.type.dtype == "bool" else f"np.{variable.type.dtype}"
