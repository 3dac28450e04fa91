"""Large graphs as PyTensor's rewrites left them, kept on disk with what Numba compiled of them.

A new process finds native code there, but to know which, PyTensor would rewrite the graph again,
in Python: a second for each layer of a transformer. What is kept is found by all that rewriting
depends on: the graph, its names, the rewrites, PyTensor's settings and the versions of everything.
Graphs with a scan, with large constants or with operations that are neither PyTensor's nor this
library's are rewritten in every process.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pytensor
from pytensor.graph.basic import Apply, Constant, NominalVariable
from pytensor.graph.fg import FunctionGraph

from downhill_rms.compiling import pieces
from downhill_rms.compiling.internals import (
    AlreadyThere,
    DestroyHandler,
    GraphRewriter,
    Mode,
    ReplaceValidate,
    Scan,
)
from downhill_rms.compiling.machine import marker
from downhill_rms.compiling.selfcheck import source_key

log = logging.getLogger(__name__)

KEPT = 32  # graphs on disk, the newest
LARGE = 10**6  # bytes of constants
PACKAGES = {"pytensor", "downhill_rms", "numpy", "scipy", *sys.stdlib_module_names}


class CachingMode(Mode):  # type: ignore[misc]
    """A mode that rewrites a large graph once."""

    @property
    def optimizer(self) -> Any:
        """What rewrites a graph, or finds it rewritten."""
        return RewriteOnce(super().optimizer)


class RewriteOnce(GraphRewriter):  # type: ignore[misc]
    """Rewrites a graph, unless it is on disk as another rewriter leaves it.

    Parameters
    ----------
    rewriter : GraphRewriter
        The other.
    """

    def __init__(self, rewriter: Any) -> None:
        self.rewriter = rewriter

    def add_requirements(self, fgraph: Any) -> None:
        """Have the graph watched as the other needs it."""
        self.rewriter.add_requirements(fgraph)

    def apply(self, fgraph: Any) -> Any:
        """Rewrite the graph."""
        return self.rewriter.apply(fgraph)

    def rewrite(self, fgraph: Any, *args: Any, **kwargs: Any) -> Any:
        """Rewrite the graph, or put what is on disk in its place."""
        path = self._path(fgraph)
        if path is None:
            return self.rewriter.rewrite(fgraph, *args, **kwargs)
        with suppress(OSError):
            content = path.read_bytes()
            try:
                restore(content, fgraph)
            except Exception:  # of a damaged file, any
                log.debug("what is kept in %s cannot be read", path, exc_info=True)
            else:
                return None
        profile = self.rewriter.rewrite(fgraph, *args, **kwargs)
        rewritten = flat(fgraph)
        if rewritten is not None:
            _write(path, rewritten)
            # The order of its operations is that of the graph that the next process finds.
            restore(rewritten, fgraph)
        return profile

    def _path(self, fgraph: Any) -> Path | None:
        """Where a graph is kept; None if it is not."""
        if len(fgraph.apply_nodes) <= pieces.SMALL or not pytensor.config.numba__cache:
            return None
        content = flat(fgraph)
        if content is None:
            return None
        summary = io.StringIO()
        self.rewriter.print_summary(summary)
        rewrites = re.sub(r"id=\d+|0x[0-9a-f]+|_\d{6,}", "", summary.getvalue())
        settings = pytensor.config.get_config_hash()
        given = sha256(content).hexdigest(), sha256(rewrites.encode()).hexdigest()
        updates = sorted((fgraph.update_mapping or {}).items())
        return marker("graph", *given, updates, settings, source_key())


def flat(fgraph: Any) -> bytes | None:
    """A graph without nesting, the same for equal graphs; None if it cannot be kept.

    It is a table of pickled operations, types and constants, and for each variable in their order
    what it is by its places in that table.
    """
    table: dict[bytes, int] = {}
    places = {variable: place for place, variable in enumerate(fgraph.inputs)}
    size = 0

    def place_of(thing: Any) -> int:
        try:
            pickled = _pickled(thing, by_value=True)
        except ValueError:  # it holds itself
            pickled = _pickled(thing, by_value=False)
        return table.setdefault(pickled, len(table))

    known: dict[int, int] = {}

    def known_place(thing: Any) -> int:
        if id(thing) not in known:
            known[id(thing)] = place_of(thing)
        return known[id(thing)]

    def described(variable: Any) -> tuple[int, str | None]:
        return known_place(variable.type), variable.name

    entries: list[Any] = []
    constants: dict[Any, int] = {}
    made = len(places)  # variables so far

    def add_constant(variable: Any) -> None:
        nonlocal made
        entry = (*described(variable), place_of(variable.data))
        if entry not in constants:
            constants[entry] = made
            entries.append(entry)
            made += 1
        places[variable] = constants[entry]

    try:
        given = [(*described(v), getattr(v, "id", None)) for v in fgraph.inputs]
        for node in fgraph.toposort():
            if isinstance(node.op, Scan):
                return None
            for variable in node.inputs:
                if variable not in places and isinstance(variable, Constant):
                    size += getattr(variable.data, "nbytes", 0)
                    add_constant(variable)
            inputs = [places[variable] for variable in node.inputs]
            results = [described(variable) for variable in node.outputs]
            entries.append((known_place(node.op), inputs, results))
            places |= zip(node.outputs, range(made, made + len(results)), strict=True)
            made += len(results)
        for variable in fgraph.outputs:
            if variable not in places:
                add_constant(variable)
    except (pickle.PicklingError, TypeError, ValueError, AttributeError, RecursionError):
        log.debug("a graph is not kept", exc_info=True)
        return None
    if size > LARGE:
        return None
    outputs = [places[variable] for variable in fgraph.outputs]
    return pickle.dumps((given, list(table), entries, outputs))


def restore(content: bytes, fgraph: Any) -> None:
    """Put a flat graph in the place of another one that has the same inputs."""
    _, table, entries, places = pickle.loads(content)
    outputs = _outputs(table, entries, places, list(fgraph.inputs))
    for old, new in zip(list(fgraph.outputs), outputs, strict=True):
        if old is not new:
            fgraph.replace(old, new)
    for feature in (DestroyHandler(), ReplaceValidate()):
        with suppress(AlreadyThere):
            fgraph.attach_feature(feature)


def unflattened(content: bytes) -> Any:
    """A flat graph as a graph of its own."""
    given, table, entries, outputs = pickle.loads(content)
    inputs = []
    for place, name, identity in given:
        kind = pickle.loads(table[place])
        inputs.append(kind(name) if identity is None else NominalVariable(identity, kind))
    made = _outputs(table, entries, outputs, list(inputs))
    return FunctionGraph(inputs, made, clone=False)


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
            return unflattened, (content,)
        return NotImplemented


def _pickled(thing: Any, by_value: bool) -> bytes:
    """The bytes of a thing, the same for equal things if they do not tell what is one object."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.fast = by_value
    pickler.dump(thing)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
        kept = sorted(path.parent.glob("downhill_rms-*.graph"), key=os.path.getmtime)
        for old in kept[:-KEPT]:
            old.unlink()
