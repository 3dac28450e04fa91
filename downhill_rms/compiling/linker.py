"""From a rewritten graph to functions that Numba compiles, with as little to compile as there is.

PyTensor's linker does this too, and what it gives Numba computes the same. It takes several times
as long, for what has nothing to do with the computation:

- It calls each operation through a function of ``*args``, which is compiled and kept on disk by
  itself. Here the graph's functions call operations directly, and they alone are kept on disk.
- It returns all outputs as one tuple. CPython makes a tuple of more than 30 expressions of a list
  that is appended to, for which Numba concatenates as many tuples: N**2 instructions, each with
  the type of a tuple of N members in it. Here outputs are tuples of at most 16 members, in tuples,
  and a parameter that was updated in place is not returned at all.
- It makes a function for every operation. Here equal operations are one function, which Numba
  compiles once for arguments of the same types.
- It makes one function of a graph, however large. Here a large one is several (`pieces`), and
  equal ones are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import Any

import numpy as np
import pytensor
from pytensor.graph.basic import Constant

from downhill_rms.compiling import nativecode
from downhill_rms.compiling.internals import (
    AbstractFunctionGraph,
    NumbaLinker,
    ScalarType,
    numba_dispatch,
    overwritten_input,
    shared_size,
)
from downhill_rms.compiling.pieces import Piece, cut

GROUP = 16  # members of a tuple, the most: CPython goes another way from 31 on

# Numba's function of each operation, and of each piece, by all that tells them apart.
_functions: dict[Any, Any] = {}
_dispatchers: dict[Any, Any] = {}

# How many numbers the largest shared variable has of the graph that is linked now.
_linking: ContextVar[int | None] = ContextVar("_linking", default=None)


class PiecewiseLinker(NumbaLinker):  # type: ignore[misc]
    """Links a graph to functions that Numba compiles at their first call."""

    def fgraph_convert(self, fgraph: Any, **kwargs: Any) -> Any:
        """The function, before it is compiled."""
        with linking(fgraph):
            return Program(fgraph)

    def jit_compile(self, program: Any) -> Any:
        """The function, parts of which Numba compiles at its first call."""
        return program


class Program:
    """A graph as a Python function that calls compiled ones, one after the other.

    Attributes
    ----------
    dispatchers : list of Dispatcher
        What Numba compiles, in the order of the calls.
    """

    def __init__(self, fgraph: Any) -> None:
        self.names = {variable: f"i{index}" for index, variable in enumerate(fgraph.inputs)}
        self.dispatchers: list[Any] = []
        self.calls: list[tuple[list[str], list[str]]] = []
        self.scope: dict[str, Any] = {}
        self._known: dict[Any, Any] = {}  # the dispatchers of pieces, by their forms
        pieces = cut(fgraph)
        kept = set(fgraph.outputs)
        last = {v: index for index, piece in enumerate(pieces) for v in piece.reads}
        lines = []
        for index, piece in enumerate(pieces):
            lines.append(self._call(index, piece, kept | {v for v in last if last[v] > index}))
            dead = [v for v in piece.reads if last[v] == index and v not in kept]
            lines += [f"del {self.names[v]}" for v in dead if self.names[v].startswith("v")]
        for variable in fgraph.outputs:
            if variable not in self.names:
                self.names[variable] = self._constant(variable.data)
        self.results = [self.names[variable] for variable in fgraph.outputs]
        self.arguments = [self.names[variable] for variable in fgraph.inputs]
        body = "\n    ".join([*lines, f"return {flat(self.results) if self.results else None}"])
        source = f"def run({', '.join(self.arguments)}):\n    {body}\n"
        exec(compile(source, "<linked>", "exec"), self.scope)
        self._run = self.scope["run"]

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled functions."""
        return self._run(*arguments)

    def compile_for(self, arguments: Sequence[Any]) -> None:
        """Compile as a call would, but do not call."""
        if not self.dispatchers:
            return
        typeof = self.dispatchers[0].typeof_pyval
        types = {name: typeof(value) for name, value in self.scope.items() if name[0] == "k"}
        types |= zip(self.arguments, map(typeof, arguments), strict=True)
        for dispatcher, (given, returned) in zip(self.dispatchers, self.calls, strict=True):
            signature = tuple(types[name] for name in given)
            dispatcher.compile(signature)
            result = dispatcher.overloads[signature].signature.return_type
            members = map(_as_given, _members(result, len(returned)))
            types |= zip(returned, members, strict=True)

    def _call(self, index: int, piece: Piece, wanted: set[Any]) -> str:
        arguments = [self.names[variable] for variable in piece.reads]
        arguments += [self._constant(constant.data) for constant in piece.passed]
        given = []
        for variable in piece.made:
            if variable not in wanted:
                continue
            before = self._overwritten(variable)
            if before is None:
                self.names[variable] = f"v{len(self.names)}"
                given.append(variable)
            else:
                self.names[variable] = before
        form = piece.form(given)
        if form not in self._known:
            source = Source(piece.reads, piece.nodes, "numba_funcified_fgraph", piece.passed)
            returned = [source.returned(variable) for variable in given]
            self._known[form] = source.dispatcher(f"return {nested(returned) or None}")
        self.dispatchers.append(self._known[form])
        results = [self.names[variable] for variable in given]
        self.calls.append((arguments, results))
        self.scope[f"f{index}"] = self.dispatchers[-1]
        call = f"f{index}({', '.join(arguments)})"
        return f"{nested(results)} = {call}" if results else call

    def _overwritten(self, variable: Any) -> str | None:
        """What the array is called here that a variable is, if it was in the place of another."""
        while variable is not None:
            variable = overwritten_input(variable)
            if self.names.get(variable, "").startswith("i"):
                return self.names[variable]
        return None

    def _constant(self, value: Any) -> str:
        name = f"k{len(self.scope)}"
        self.scope[name] = freezable(value)
        return name


def _as_given(kind: Any) -> Any:
    """The type that an array has for the next function: of a new one Numba sees its layout."""
    return kind.copy(layout="C") if getattr(kind, "layout", None) == "A" else kind


def _members(result: Any, length: int) -> list[Any]:
    """The types of the members of tuples in tuples."""
    if not length:
        return []
    types = [result]
    while len(types) < length or hasattr(types[0], "types"):
        types = [member for part in types for member in part]
    return types


class Source:
    """The Python source of operations.

    Parameters
    ----------
    inputs : sequence of Variable
        What is given.
    nodes : sequence of Apply
        The operations, in their order.
    name : str
        What the function is called.
    passed : sequence of Constant
        Constants that are given too.

    Attributes
    ----------
    names : dict
        What each variable is called.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        nodes: Sequence[Any],
        name: str,
        passed: Sequence[Any] = (),
    ) -> None:
        self.name = name
        self.names = {variable: f"i{index}" for index, variable in enumerate([*inputs, *passed])}
        self.arguments = list(self.names.values())
        # Numba's cache asks for an importable module.
        self.scope: dict[str, Any] = {"__name__": __name__, "array": np.array}
        self._keys: list[Any] = []
        self._constants: dict[Any, str] = {}
        self._types = [variable.type for variable in inputs]
        self.lines: list[str] = []
        for variable in filter(is_number, inputs):
            name, self.names[variable] = self.names[variable], f"n{len(self.lines)}"
            self.lines.append(f"{self.names[variable]} = {name}[()]")
        # A frozen graph, as of a fused loop or a scan, has one node for equal operations and gives
        # it once for each of them; it must not get a second name.
        self.lines += [self._call(node) for node in dict.fromkeys(nodes)]

    def _call(self, node: Any) -> str:
        arguments = ", ".join(map(self.name_of, node.inputs))
        function, key = function_of(node)
        name = f"f{len(self._keys)}"
        self.scope[name] = function
        self._keys.append(key)
        self._types += [variable.type for variable in (*node.inputs, *node.outputs)]
        made = [f"v{len(self._keys)}_{index}" for index in range(len(node.outputs))]
        self.names |= zip(node.outputs, made, strict=True)
        return f"{', '.join(made)} = {name}({arguments})"

    def name_of(self, variable: Any) -> str:
        """What a variable is called, which may be a constant; equal ones have one name."""
        if variable not in self.names:
            assert isinstance(variable, Constant)
            numba = numba_dispatch()
            key = numba.constant_key(variable.data)
            name = self._constants.setdefault((variable.type, key), f"c{len(self._constants)}")
            self.names[variable] = name
            if name not in self.scope:
                data = numba.constant(variable.data, variable=variable)
                self.scope[name] = freezable(data)
                self._keys.append((name, key))
        return self.names[variable]

    def returned(self, variable: Any) -> str:
        """A variable that another function is given."""
        name = self.names[variable]
        return f"array({name})" if is_number(variable) else name

    def dispatcher(self, end: str) -> Any:
        """Numba's function of it, kept on disk; equal sources have one."""
        numba = numba_dispatch()
        key = self.key(end)
        known = (key, tuple(self._types), pytensor.config.numba__cache)
        if key is not None and known in _dispatchers:
            return _dispatchers[known]
        function = numba.function_of_source(self.text(end), self.name, self.scope, cache_key=key)
        dispatcher = numba.njit(
            function,
            final_function=True,
            no_cfunc_wrapper=True,
            cache=pytensor.config.numba__cache and key is not None,
            pipeline_class=nativecode.compiler(),
        )
        if key is not None:
            _dispatchers[known] = dispatcher
        return dispatcher

    def text(self, end: str) -> str:
        """The source, with this last line."""
        body = "\n    ".join([*self.lines, end])
        return f"def {self.name}({', '.join(self.arguments)}):\n    {body}\n"

    def key(self, end: str) -> str | None:
        """What tells the function from all others for arguments of the same types.

        None if PyTensor has no such thing for one of the operations.
        """
        if None in self._keys:
            return None
        fastmath = pytensor.config.numba__fastmath
        return sha256(repr((self.text(end), self._keys, fastmath)).encode()).hexdigest()


def freezable(value: Any) -> Any:
    """A constant as one that Numba keeps on disk with a function, if it is an array."""
    if not isinstance(value, np.ndarray) or value.flags.c_contiguous or value.flags.f_contiguous:
        return value
    return np.array(value, order="C")


def is_number(variable: Any) -> bool:
    """Whether one function gives a variable to another as an array without dimensions.

    A number in single precision would be one in double precision after it was a Python object.
    """
    return variable.owner is not None and isinstance(variable.type, ScalarType)


def function_of(node: Any) -> tuple[Any, str | None]:
    """Numba's function of an operation, and PyTensor's key of it."""
    function, key = numba_dispatch().funcify(node.op, node=node)
    if key is None:
        return function, None
    # PyTensor's key is for arguments of the same types, and its setting for fast arithmetic is read
    # when it makes a function.
    types = tuple(variable.type for variable in node.inputs)
    known = (key, types, pytensor.config.numba__fastmath)
    return _functions.setdefault(known, function), key


@contextmanager
def linking(fgraph: Any) -> Iterator[None]:
    """Have the graphs inside a graph's operations linked by this module too."""
    token = _linking.set(max(map(shared_size, fgraph.inputs), default=0))
    try:
        yield
    finally:
        _linking.reset(token)


def is_linking() -> bool:
    """Whether a graph is linked by this module now, and not by PyTensor's own linker."""
    return _linking.get() is not None


def largest_shared_variable() -> int:
    """How many numbers the largest one has now, of those of the graph that is linked."""
    return _linking.get() or 0


def nested(names: Sequence[str]) -> str:
    """The source of a tuple, of tuples where it is longer than CPython makes one."""
    if len(names) <= GROUP:
        return flat(names) if names else ""
    groups = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    return nested([flat(group) for group in groups])


def flat(names: Sequence[str]) -> str:
    """The source of a tuple."""
    return "(" + "".join(f"{name}, " for name in names) + ")"


def register(numba: Any) -> None:
    """Have the graphs inside operations linked as the one around them is."""
    theirs = numba.funcify.dispatch(AbstractFunctionGraph)

    @numba.register(AbstractFunctionGraph)  # type: ignore[untyped-decorator]
    def funcify_graph(
        fgraph: Any,
        node: Any = None,
        fgraph_name: str = "numba_funcified_fgraph",
        squeeze_output: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, str | None]:
        if not is_linking():
            return theirs(  # type: ignore[no-any-return]
                fgraph, node=node, fgraph_name=fgraph_name, squeeze_output=squeeze_output, **kwargs
            )
        source = Source(fgraph.inputs, fgraph.toposort(), fgraph_name)
        results = [source.name_of(variable) for variable in fgraph.outputs]
        single = squeeze_output and len(results) == 1
        end = f"return {results[0] if single else flat(results)}"
        function = numba.function_of_source(source.text(end), fgraph_name, source.scope)
        return numba.njit(function), source.key(end)
