"""How a JAX function is compiled and called: what an update assigns is computed in place.

PyTensor's linker has XLA write every new value beside the old one. `DonatingLinker` hands the old
ones over ("donates" them), so that the new ones may take their memory. An array that somebody else
looks at through NumPy is copied by JAX instead; one that was read by ``get_value(borrow=True)`` is
deleted with the next update, and says so when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from downhill_rms.compiling.internals import (
    Composite,
    DenseTensorType,
    Elemwise,
    HasInnerGraph,
    JAXLinker,
    jax_dispatch,
)
from downhill_rms.compiling.lengths import nodes_of


class UnknownOperationError(NotImplementedError):
    """There is an operation that PyTensor cannot tell JAX of."""


class DonatingLinker(JAXLinker):  # type: ignore[misc]
    """PyTensor's JAX linker, with donated buffers and 64-bit numbers.

    A subclass changes how a function is compiled by `jit_options`.
    """

    def donated(self) -> list[int]:
        """Which inputs an update assigns, other than generators and static arguments."""
        assigned = set((self.fgraph.update_mapping or {}).values()) - set(self.scalar_shape_inputs)
        inputs = self.fgraph.inputs
        return sorted(i for i in assigned if isinstance(inputs[i].type, DenseTensorType))

    def jit_options(self) -> dict[str, Any]:
        """What ``jax.jit`` is given beside the function."""
        static = tuple(self.scalar_shape_inputs)
        return {"static_argnums": static, "donate_argnums": tuple(self.donated())}

    def fgraph_convert(self, fgraph: Any, *arguments: Any, **keywords: Any) -> Any:
        """Make a function of the graph for JAX to compile.

        Raises
        ------
        UnknownOperationError
            If an operation cannot be told; the text names it.
        """
        try:
            return super().fgraph_convert(fgraph, *arguments, **keywords)
        except (NotImplementedError, AttributeError) as error:
            if name := unknown_operation(fgraph.outputs):
                raise UnknownOperationError(name) from error
            raise

    def jit_compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function; the compiling itself takes place in its first call."""
        import jax

        jitted: Callable[..., Any] = jax.jit(fn, **self.jit_options())
        static = frozenset(self.scalar_shape_inputs)
        if not static:
            return jitted

        def call(*arguments: Any) -> Any:
            return jitted(*(int(a) if i in static else a for i, a in enumerate(arguments)))

        return call

    def create_jitable_thunk(self, *arguments: Any, **keywords: Any) -> Any:
        """Convert the graph, and have every call of it compute with 64-bit numbers.

        A graph of single precision has lengths, labels and counts of 64 bits, too.
        """
        import jax

        with jax.enable_x64(True):
            thunks, nodes, jitted = super().create_jitable_thunk(*arguments, **keywords)
        (inner,) = thunks

        def call() -> Any:
            with jax.enable_x64(True):
                return inner()

        thunk: Any = call
        thunk.inputs, thunk.outputs, thunk.lazy = inner.inputs, inner.outputs, False
        return [thunk], nodes, jitted


def unknown_operation(outputs: Iterable[Any]) -> str | None:
    """The name of an operation behind some variables that PyTensor cannot tell JAX of, if any."""
    for node in nodes_of(list(outputs)):
        scalar_op = node.op.scalar_op if isinstance(node.op, Elemwise) else None
        parts = scalar_op.fgraph.apply_nodes if isinstance(scalar_op, Composite) else [node]
        for part in parts:
            if isinstance(part.op, HasInnerGraph):  # whose operations are among the nodes
                continue
            try:
                jax_dispatch()(part.op, node=part, storage_map={})
            except (NotImplementedError, AttributeError):
                return str(getattr(part.op, "scalar_op", part.op))
            except Exception:  # what is wrong here is no lack of an operation
                continue
    return None


@contextmanager
def setting_kept() -> Iterator[None]:
    """Leave JAX's setting for 64-bit numbers as it is, which PyTensor sets for all of the process.

    It does so when it is first told of JAX. Other code of the user's that computes by JAX would
    compute in double precision from then on. The functions of a `DonatingLinker` need no setting.
    """
    before = _config().jax_enable_x64
    try:
        yield
    finally:
        _config().update("jax_enable_x64", before)


def set_precision(variables: Iterable[Any]) -> None:
    """Set JAX to 64-bit numbers if some of these variables have double precision.

    Their values are then JAX's arrays in the user's hands, whose own computations are to keep them.
    """
    if any(getattr(v.type, "dtype", None) in ("float64", "complex128") for v in variables):
        _config().update("jax_enable_x64", True)


def _config() -> Any:
    import jax  # by nobody who has not chosen JAX mode

    return jax.config
