"""Compiling for many devices: PyTensor's JAX linker, with arrays of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

import jax
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.link.jax.linker import JAXLinker

if TYPE_CHECKING:
    from downhill_rms.parallel.placement import MeshPlacement


class SpmdLinker(JAXLinker):  # type: ignore[misc]
    """Functions whose state is laid out over a mesh, and whose other results are on every device.

    Parameters
    ----------
    placement : MeshPlacement
        Where arrays live.
    """

    def __init__(self, placement: MeshPlacement, **options: Any) -> None:
        super().__init__(**options)
        self.placement = placement

    def accept(self, fgraph: Any, *arguments: Any, **options: Any) -> Any:
        """A linker for this graph: PyTensor makes a new one by arguments that it knows."""
        linker = self
        if self.fgraph is not None and self.fgraph is not fgraph:
            linker = copy(self)
            linker.fgraph = None
        return super(SpmdLinker, linker).accept(fgraph, *arguments, **options)

    def create_thunk_inputs(self, storage_map: Any) -> Any:
        """The storages of the inputs, which are kept: what updates keep is placed there."""
        self._storages = super().create_thunk_inputs(storage_map)
        return self._storages

    def jit_compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function on all devices."""
        place, storages = self.placement, self._storages
        static = set(self.scalar_shape_inputs)
        updated = dict(self.fgraph.update_mapping)  # places of inputs by those of outputs
        state = {
            index: place.copies if isinstance(values[0], dict) else place.of_state(values[0])
            for index, (variable, values) in enumerate(
                zip(self.fgraph.inputs, storages, strict=True)
            )
            if isinstance(variable, SharedVariable) and index not in static
        }
        outputs = range(len(self.fgraph.outputs))
        layout = tuple(state.get(updated.get(o, -1), place.copies) for o in outputs)
        donated = sorted(set(updated.values()) - static)
        flags = place.flags if place.several else None

        if flags is None:
            jitted = jax.jit(
                lambda *inputs: tuple(function(*inputs)),
                out_shardings=layout,
                static_argnums=tuple(static),
                donate_argnums=donated,
            )
        else:
            jitted = jax.jit(
                lambda raised, *inputs: (tuple(function(*inputs)), raised.sum(axis=0)),
                out_shardings=(layout, place.copies),
                static_argnums=tuple(index + 1 for index in static),
                donate_argnums=[index + 1 for index in donated],
            )
        known: dict[int, Any] = {}  # what is in place already

        def call(*given: Any) -> Any:
            inputs = list(given)
            for index, sharding in state.items():
                value = inputs[index]
                if value is not known.get(index):
                    value = jax.tree.map(lambda leaf, s=sharding: place.put(leaf, s), value)
                    inputs[index] = storages[index][0] = known[index] = value
            for index in static:
                inputs[index] = int(inputs[index])
            if flags is None:
                results = jitted(*inputs)
            else:
                results, sums = jitted(flags.outgoing(), *inputs)
                flags.incoming(sums)
            for output, index in updated.items():
                known[index] = results[output]
            if results:
                place.called(results[0])
            return results

        call.jitted = jitted  # type: ignore[attr-defined]  # for who looks at what XLA has made
        return call
