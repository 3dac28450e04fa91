"""Compiling for many devices: the library's JAX linker, with arrays of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

import jax
from pytensor.compile.sharedvalue import SharedVariable

from downhill_rms.compiling.jaxlinker import DonatingLinker

if TYPE_CHECKING:
    from downhill_rms.parallel.placement import MeshPlacement


class SpmdLinker(DonatingLinker):
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

    def jit_compile(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function for all devices, with the flags of several processes beside it."""
        place, storages = self.placement, self._storages
        static, donated = self.scalar_shape_inputs, self.donated()
        updated = dict(self.fgraph.update_mapping or {})  # places of inputs by those of outputs
        state = {
            index: place.copies if isinstance(values[0], dict) else place.of_state(values[0])
            for index, (variable, values) in enumerate(
                zip(self.fgraph.inputs, storages, strict=True)
            )
            if isinstance(variable, SharedVariable) and index not in static
        }
        places = range(len(self.fgraph.outputs))
        layout = tuple(state.get(updated.get(output, -1), place.copies) for output in places)
        computed = next((output for output in places if output not in updated), None)
        flags = place.flags if place.several else None

        if flags is None:
            jitted = jax.jit(
                lambda *inputs: tuple(fn(*inputs)),
                out_shardings=layout,
                static_argnums=static,
                donate_argnums=donated,
            )
        else:
            jitted = jax.jit(
                lambda raised, *inputs: (tuple(fn(*inputs)), raised.sum(axis=0)),
                out_shardings=(layout, place.copies),
                static_argnums=[index + 1 for index in static],
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
            if computed is not None:
                place.called(results[computed])
            return results

        call.jitted = jitted  # type: ignore[attr-defined]  # for who looks at what XLA has made
        return call
