"""Elementwise operations in place, without asking about the whole graph for each of them.

After every single replacement PyTensor asks for each output and each protected input whether it is
overwritten, and as soon as something is, it sorts the whole graph to look for cycles: the time to
rewrite a training step grows with the square of its parameters and layers. Here nothing is asked
while nothing is overwritten. All updates of shared variables begin to work in place together, and
in a large graph so do all other operations, with one look at the graph each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytensor
from pytensor.graph.basic import Constant

from downhill_rms.compiling import pieces
from downhill_rms.compiling.internals import (
    DestroyHandler,
    Elemwise,
    GraphRewriter,
    InconsistencyError,
    InplaceElemwiseOptimizer,
    ReplaceValidate,
    Supervisor,
    attach,
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


class InPlace(GraphRewriter):  # type: ignore[misc]
    """Has elementwise operations work in place."""

    def add_requirements(self, fgraph: Any) -> None:
        """Have the graph watched."""
        attach(fgraph, DestroyHandler(), ReplaceValidate())


class UpdateInPlace(InPlace):
    """Has elementwise updates of shared variables work in place, all of them together."""

    def apply(self, fgraph: Any) -> None:
        """Replace the operations."""
        updated = {
            fgraph.outputs[output]: fgraph.inputs[input]
            for output, input in (fgraph.update_mapping or {}).items()
        }
        protected = protected_inputs(fgraph)
        found = []
        for node in fgraph.toposort():
            if _is_plain(node):
                pattern = _pattern(node, updated, protected)
                if pattern:
                    found.append((node, Elemwise(node.op.scalar_op, pattern), node.inputs))
        replace_together(fgraph, found, "in_place")


class OverwriteLastRead(InPlace):
    """Has elementwise operations overwrite arrays that nothing reads after them.

    PyTensor tries one operation after the other, and finds the most that can be overwritten. In a
    large graph this takes one order of all operations as given, in which what is read for the last
    time is known: all that is found is possible together.
    """

    def apply(self, fgraph: Any) -> None:
        """Replace the operations."""
        if len(fgraph.apply_nodes) <= pieces.SMALL:
            InplaceElemwiseOptimizer().apply(fgraph)
            return
        order = fgraph.toposort()
        owners = _owners(order)
        last = {owners.get(v, v): node for node in order for v in node.inputs}
        kept = {*protected_inputs(fgraph), *fgraph.inputs, *fgraph.outputs}
        kept |= {owners.get(variable, variable) for variable in fgraph.outputs}
        found = []
        for node in order:
            # A number is as quickly made anew.
            if not _is_plain(node) or all(node.outputs[0].type.broadcastable):
                continue
            arrays = [owners.get(variable, variable) for variable in node.inputs]
            free = [
                index
                for index, array in enumerate(arrays)
                if last[array] is node
                and array not in kept
                and arrays.count(array) == 1
                and not isinstance(array, Constant)
            ]
            pattern = _fitting(node, free)
            if pattern:
                found.append((node, Elemwise(node.op.scalar_op, pattern), node.inputs))
        replace_together(fgraph, found, "in_place")


def _is_plain(node: Any) -> bool:
    """Whether this is an elementwise operation that overwrites nothing yet."""
    return type(node.op) is Elemwise and not node.op.destroy_map


def _fitting(node: Any, free: Sequence[int]) -> dict[int, int]:
    """For each output of an operation one of these inputs whose array it fits, if there is one."""
    pattern: dict[int, int] = {}
    for output, variable in enumerate(node.outputs):
        for index in free:
            if index not in pattern.values() and _fits(node.inputs[index], variable):
                pattern[output] = index
                break
    return pattern


def _fits(overwritten: Any, output: Any) -> bool:
    """Whether an output has a place in an input's array.

    Their shapes are equal, and are checked when the operation is computed, but more may be known
    beforehand of one than of the other: PyTensor asks for equal types, and writes the updates of
    all matrices anew for whose gradients it has inferred a length.
    """
    types = overwritten.type, output.type
    return len({(type(t), t.dtype, t.broadcastable) for t in types}) == 1


def _owners(order: Sequence[Any]) -> dict[Any, Any]:
    """The variable whose array a variable is a view of."""
    owners: dict[Any, Any] = {}
    for node in order:
        for output, (viewed, *_) in node.op.view_map.items():
            variable = node.inputs[viewed]
            owners[node.outputs[output]] = owners.get(variable, variable)
    return owners


def protected_inputs(fgraph: Any) -> set[Any]:
    """What PyTensor lets no operation overwrite."""
    return {v for f in fgraph._features if isinstance(f, Supervisor) for v in f.protected}


def _pattern(node: Any, updated: dict[Any, Any], protected: set[Any]) -> dict[int, int]:
    """Which outputs of an operation may overwrite which of its inputs."""
    pattern = {}
    for index, output in enumerate(node.outputs):
        shared = updated.get(output)
        if (
            shared is not None
            and shared not in protected
            and _fits(shared, output)
            and node.inputs.count(shared) == 1
        ):
            pattern[index] = node.inputs.index(shared)
    return pattern


def replace_together(fgraph: Any, found: Sequence[tuple[Any, Any, Any]], reason: str) -> None:
    """Replace operations, or as many of them as the graph allows: if not all, then by halves.

    Parameters
    ----------
    fgraph : FunctionGraph
        The graph, which is watched as `InPlace` has it.
    found : sequence of (Apply, Op, sequence of Variable)
        What is replaced, in the order of the graph; by which operation of which inputs.
    reason : str
        Who replaces it.
    """
    pairs: dict[Any, Any] = {}
    for node, op, inputs in found:
        new = op.make_node(*(pairs.get(variable, variable) for variable in inputs))
        pairs |= zip(node.outputs, new.outputs, strict=True)
    try:
        fgraph.replace_all_validate(list(pairs.items()), reason=reason)
    except InconsistencyError:
        if len(found) > 1:
            half = len(found) // 2
            replace_together(fgraph, found[:half], reason)
            replace_together(fgraph, found[half:], reason)
