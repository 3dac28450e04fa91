"""From a rewritten graph to a function that Numba compiles, with as little to compile as there is.

PyTensor's linker does this too, and what it gives Numba computes the same. It takes several times
as long, for what has nothing to do with the computation:

- It calls each operation through a function of ``*args``, which is compiled and kept on disk by
  itself. Here the graph's function calls operations directly, and it alone is kept on disk.
- It returns all outputs as one tuple. CPython makes a tuple of more than 30 expressions of a list
  that is appended to, for which Numba concatenates as many tuples: N**2 instructions, each with
  the type of a tuple of N members in it. Here outputs are tuples of at most 16 members, in tuples.
- It makes a function for every operation. Here equal operations are one function, which Numba
  compiles once for arguments of the same types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import Any

import pytensor
from pytensor.graph.basic import Constant

from downhill_rms.compiling import nativecode
from downhill_rms.compiling.internals import AbstractFunctionGraph, NumbaLinker, numba_dispatch

GROUP = 16  # members of a tuple, the most: CPython goes another way from 31 on

# Numba's function of each operation, by what PyTensor's on-disk cache tells them apart by.
_functions: dict[Any, Any] = {}

_linking: ContextVar[bool] = ContextVar("_linking", default=False)


class OneFunctionLinker(NumbaLinker):  # type: ignore[misc]
    """Links a graph to one function, compiled by Numba at its first call."""

    def fgraph_convert(self, fgraph: Any, **kwargs: Any) -> Any:
        """The function, before it is compiled."""
        with linking():
            return Source(fgraph, "numba_funcified_fgraph")

    def jit_compile(self, source: Any) -> Any:
        """The function, which Numba compiles at its first call."""
        results = [source.names[variable] for variable in source.fgraph.outputs]
        dispatcher = source.compiled(
            f"return {nested(results) if results else None}",
            final_function=True,
            no_cfunc_wrapper=True,
            pipeline_class=nativecode.compiler(),
        )
        return dispatcher if len(results) <= GROUP else Flattened(dispatcher, len(results))


class Flattened:
    """A compiled function that returns tuples in tuples, as one that returns one tuple.

    Attributes
    ----------
    dispatchers : list of Dispatcher
        What Numba compiles of it.
    """

    def __init__(self, dispatcher: Any, length: int) -> None:
        self.dispatchers = [dispatcher]
        names = [f"o{index}" for index in range(length)]
        source = f"def flatten(nested):\n    {nested(names)} = nested\n    return {flat(names)}\n"
        scope: dict[str, Any] = {}
        exec(source, scope)
        self._flatten = scope["flatten"]

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function."""
        (dispatcher,) = self.dispatchers
        return self._flatten(dispatcher(*arguments))

    def compile_for(self, arguments: Sequence[Any]) -> None:
        """Compile as a call would, but do not call."""
        (dispatcher,) = self.dispatchers
        dispatcher.compile(tuple(map(dispatcher.typeof_pyval, arguments)))


@contextmanager
def linking() -> Iterator[None]:
    """Have the graphs inside operations linked by this module too."""
    token = _linking.set(True)
    try:
        yield
    finally:
        _linking.reset(token)


def is_linking() -> bool:
    """Whether a graph is linked by this module now, and not by PyTensor's own linker."""
    return _linking.get()


class Source:
    """The Python source of a graph.

    Attributes
    ----------
    names : dict
        What each variable is called.
    key : str or None
        What tells its function from all others; None if PyTensor has none for an operation.
    """

    def __init__(self, fgraph: Any, name: str) -> None:
        self.fgraph, self.name = fgraph, name
        self.names = {variable: f"i{index}" for index, variable in enumerate(fgraph.inputs)}
        # Numba's cache asks for an importable module.
        self.scope: dict[str, Any] = {"__name__": __name__}
        self._keys: list[Any] = []
        self.lines = [self._call(node) for node in fgraph.toposort()]
        for variable in fgraph.outputs:
            self._name(variable)

    def _call(self, node: Any) -> str:
        arguments = ", ".join(map(self._name, node.inputs))
        function, key = function_of(node)
        name = f"f{len(self._keys)}"
        self.scope[name] = function
        self._keys.append(key)
        for variable in node.outputs:
            self.names[variable] = f"v{len(self.names)}"
        results = ", ".join(self.names[variable] for variable in node.outputs)
        return f"{results} = {name}({arguments})"

    def _name(self, variable: Any) -> str:
        name = self.names.get(variable)
        if name is None:
            assert isinstance(variable, Constant)
            numba = numba_dispatch()
            name = self.names[variable] = f"c{len(self.names)}"
            self.scope[name] = numba.constant(variable.data, variable=variable)
            self._keys.append((name, numba.constant_key(variable.data)))
        return name

    def compiled(self, end: str, **options: Any) -> Any:
        """Numba's function of it, kept on disk."""
        numba = numba_dispatch()
        function = numba.function_of_source(
            self.text(end), self.name, self.scope, cache_key=self.key(end)
        )
        cached = pytensor.config.numba__cache and self.key(end) is not None
        return numba.njit(function, cache=cached, **options)

    def text(self, end: str) -> str:
        """The source, with this last line."""
        arguments = ", ".join(self.names[variable] for variable in self.fgraph.inputs)
        body = "\n    ".join([*self.lines, end])
        return f"def {self.name}({arguments}):\n    {body}\n"

    def key(self, end: str) -> str | None:
        """What tells the function with this last line from all others."""
        if None in self._keys:
            return None
        fastmath = pytensor.config.numba__fastmath
        return sha256(repr((self.text(end), self._keys, fastmath)).encode()).hexdigest()


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


def nested(names: Sequence[str]) -> str:
    """The source of a tuple, of tuples where it is longer than CPython makes one."""
    if len(names) <= GROUP:
        return flat(names)
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
        source = Source(fgraph, fgraph_name)
        results = [source.names[variable] for variable in fgraph.outputs]
        single = squeeze_output and len(results) == 1
        end = f"return {results[0] if single else flat(results)}"
        function = numba.function_of_source(source.text(end), fgraph_name, source.scope)
        return numba.njit(function), source.key(end)
