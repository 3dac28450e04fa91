"""A graph as bytes without nesting, and back.

``pickle`` follows a graph from operation to operation, deeper than Python's stack, and what it
writes tells of equal things which are one object. Here a graph is a table of pickled operations,
types and constants, and a list of what each variable is by its places in that table: the same bytes
for graphs that are built alike in another process.
"""

from __future__ import annotations

import io
import logging
import pickle
import sys
from types import BuiltinFunctionType, FunctionType
from typing import Any

from pytensor.graph.basic import Apply, Constant, NominalVariable
from pytensor.graph.fg import FunctionGraph

from downhill_rms.compiling.internals import (
    DestroyHandler,
    ReplaceValidate,
    Scan,
    attach,
    frozendict,
)

log = logging.getLogger(__name__)

LARGE = 10**6  # bytes of constants
PACKAGES = {"pytensor", "downhill_rms", "numpy", "scipy", *sys.stdlib_module_names}


def flat(fgraph: Any) -> bytes | None:
    """A graph without nesting, or None.

    None for a graph with a scan, with large constants, or with operations that another package
    defines.
    """
    if any(isinstance(node.op, Scan) for node in fgraph.apply_nodes):
        return None
    try:
        form = _Form(fgraph)
    except (pickle.PicklingError, TypeError, ValueError, AttributeError, RecursionError):
        log.debug("a graph is not kept", exc_info=True)
        return None
    if form.constant_bytes > LARGE:
        return None
    return pickle.dumps((form.inputs, list(form.table), form.entries, form.outputs))


def restore(content: bytes, fgraph: Any) -> None:
    """Put a flat graph in the place of another one that has the same inputs."""
    _, table, entries, places = pickle.loads(content)
    outputs = _outputs(table, entries, places, list(fgraph.inputs))
    for old, new in zip(list(fgraph.outputs), outputs, strict=True):
        if old is not new:
            fgraph.replace(old, new)
    attach(fgraph, DestroyHandler(), ReplaceValidate())


class _Form:
    """What a flat graph is made of.

    Attributes
    ----------
    table : dict of bytes to int
        Pickled things, and the place of each.
    inputs : list of tuple
        Type, name, and what else tells a nominal variable.
    entries : list of tuple
        In the order of the variables that they make: a constant's type, name and value, or an
        operation, its inputs, and types and names of its outputs.
    outputs : list of int
        Places among all variables, of which the inputs are the first.
    constant_bytes : int
        How large all constants are.
    """

    def __init__(self, fgraph: Any) -> None:
        self.table: dict[bytes, int] = {}
        self.entries: list[tuple[Any, ...]] = []
        self.constant_bytes = 0
        self._places = {variable: place for place, variable in enumerate(fgraph.inputs)}
        self._made = len(self._places)
        self._constants: dict[tuple[Any, ...], int] = {}
        self._known: dict[int, int] = {}  # by identity: an operation is pickled once
        self.inputs = [(*self._described(v), getattr(v, "id", None)) for v in fgraph.inputs]
        for node in fgraph.toposort():
            inputs = [self._place(variable) for variable in node.inputs]
            outputs = [self._described(variable) for variable in node.outputs]
            self.entries.append((self._known_thing(node.op), inputs, outputs))
            for variable in node.outputs:
                self._places[variable] = self._made
                self._made += 1
        self.outputs = [self._place(variable) for variable in fgraph.outputs]

    def _place(self, variable: Any) -> int:
        """The place of a variable, which may be a constant; equal constants are one."""
        if variable not in self._places:
            assert isinstance(variable, Constant)
            self.constant_bytes += getattr(variable.data, "nbytes", 0)
            entry = (*self._described(variable), self._thing(variable.data))
            if entry not in self._constants:
                self._constants[entry] = self._made
                self.entries.append(entry)
                self._made += 1
            self._places[variable] = self._constants[entry]
        return self._places[variable]

    def _described(self, variable: Any) -> tuple[int, str | None]:
        return self._known_thing(variable.type), variable.name

    def _known_thing(self, thing: Any) -> int:
        if id(thing) not in self._known:
            self._known[id(thing)] = self._thing(thing)
        return self._known[id(thing)]

    def _thing(self, thing: Any) -> int:
        try:
            pickled = _pickled(thing, by_value=True)
        except ValueError:  # it holds itself
            pickled = _pickled(thing, by_value=False)
        return self.table.setdefault(pickled, len(self.table))


def _outputs(table: list[bytes], entries: list[Any], outputs: list[int], variables: Any) -> Any:
    """The outputs of a flat graph, for these inputs."""
    things = [pickle.loads(thing) for thing in table]
    for entry in entries:
        if isinstance(entry[1], list):
            op, inputs, made = entry
            new = [things[kind](name) for kind, name in made]
            variables += Apply(things[op], [variables[i] for i in inputs], new).outputs
        else:
            kind, name, data = entry
            variables.append(things[kind].constant_type(things[kind], things[data], name=name))
    return [variables[place] for place in outputs]


def _unflattened(content: bytes) -> Any:
    """A flat graph as a graph of its own."""
    given, table, entries, outputs = pickle.loads(content)
    inputs = []
    for place, name, identity in given:
        kind = pickle.loads(table[place])
        inputs.append(kind(name) if identity is None else NominalVariable(identity, kind))
    made = _outputs(table, entries, outputs, list(inputs))
    return FunctionGraph(inputs, made, clone=False)


def _pickled(thing: Any, by_value: bool) -> bytes:
    """The bytes of a thing, the same for equal things if they do not tell what is one object."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.fast = by_value
    pickler.dump(thing)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Refuses what other packages define, which may be another thing tomorrow."""

    def reducer_override(self, thing: Any) -> Any:
        """Pickle as ever."""
        if isinstance(thing, type | FunctionType | BuiltinFunctionType):
            package = (thing.__module__ or "").partition(".")[0]
            if package not in PACKAGES:
                raise pickle.PicklingError(f"{thing} is of another package")
        if type(thing) is FunctionGraph:  # inside an operation, with the time that it took so far
            content = flat(thing)
            if content is None:
                raise pickle.PicklingError(f"{thing} is not kept")
            return _unflattened, (content,)
        if type(thing) is frozendict:  # with its hash, if it was asked for it
            return frozendict, (dict(thing),)
        return NotImplemented
