"""Updates of shared variables in place, without asking about the whole graph for each of them.

After every single replacement PyTensor asks for each output and each protected input whether it is
overwritten, and as soon as something is, it sorts the whole graph to look for cycles: the time to
rewrite a training step grows with the square of its parameters. Here nothing is asked while nothing
is overwritten, and all updates begin to work in place together, with one look at the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytensor

from downhill_rms.compiling.internals import (
    AlreadyThere,
    DestroyHandler,
    Elemwise,
    GraphRewriter,
    InconsistencyError,
    ReplaceValidate,
    Supervisor,
)


class QuickSupervisor(Supervisor):  # type: ignore[misc]
    """Refuses what PyTensor's refuses: a graph that overwrites its outputs or protected inputs."""

    def on_validate(self, fgraph: Any) -> Any:
        """Raise an error if the graph is one of those."""
        handler = getattr(fgraph, "destroy_handler", None)
        if handler is None or pytensor.config.cycle_detection == "fast":
            return super().on_validate(fgraph)
        roots, _, destroyers = handler.refresh_droot_impact()
        if not destroyers:
            return True
        for variable in (*self.protected, *fgraph.outputs):
            if roots.get(variable) in destroyers:
                raise InconsistencyError(f"a protected variable is overwritten: {variable}")
        return True


class SuperviseQuickly(GraphRewriter):  # type: ignore[misc]
    """Has a graph watched by a `QuickSupervisor`; it runs before all other rewriters."""

    def apply(self, fgraph: Any) -> None:
        """Replace the supervisor."""
        for feature in fgraph._features:
            if type(feature) is Supervisor:
                feature.__class__ = QuickSupervisor


class UpdateInPlace(GraphRewriter):  # type: ignore[misc]
    """Has elementwise updates of shared variables work in place, all of them together.

    It runs just before the rewriter of PyTensor's that does this one by one, which finds little
    left to do.
    """

    def add_requirements(self, fgraph: Any) -> None:
        """Have the graph watched."""
        for feature in (DestroyHandler(), ReplaceValidate()):
            with suppress(AlreadyThere):
                fgraph.attach_feature(feature)

    def apply(self, fgraph: Any) -> None:
        """Replace the operations."""
        updated = {
            fgraph.outputs[output]: fgraph.inputs[input]
            for output, input in (fgraph.update_mapping or {}).items()
        }
        protected = {v for f in fgraph._features if isinstance(f, Supervisor) for v in f.protected}
        found = []
        for node in fgraph.toposort():
            if type(node.op) is Elemwise and not node.op.destroy_map:
                pattern = _pattern(node, updated, protected)
                if pattern:
                    found.append((node, Elemwise(node.op.scalar_op, pattern)))
        _replace(fgraph, found)


def _pattern(node: Any, updated: dict[Any, Any], protected: set[Any]) -> dict[int, int]:
    """Which outputs of an operation may overwrite which of its inputs."""
    pattern = {}
    for index, output in enumerate(node.outputs):
        shared = updated.get(output)
        if (
            shared is not None
            and shared not in protected
            and shared.type == output.type
            and node.inputs.count(shared) == 1
        ):
            pattern[index] = node.inputs.index(shared)
    return pattern


def _replace(fgraph: Any, found: Sequence[tuple[Any, Any]]) -> None:
    """Replace operations, or as many of them as the graph allows: if not all, then by halves."""
    pairs: dict[Any, Any] = {}
    for node, op in found:
        inputs = [pairs.get(variable, variable) for variable in node.inputs]
        pairs |= zip(node.outputs, op.make_node(*inputs).outputs, strict=True)
    try:
        fgraph.replace_all_validate(list(pairs.items()), reason="update_in_place")
    except InconsistencyError:
        if len(found) > 1:
            half = len(found) // 2
            _replace(fgraph, found[:half])
            _replace(fgraph, found[half:])
