"""Parts of a scan's step that leave the loop, before gradients are taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pytensor.gradient import NullTypeGradError
from pytensor.graph.basic import Constant
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.type import TensorType

from downhill_rms.compiling.internals import (
    CAReduce,
    DimShuffle,
    Dot,
    Elemwise,
    LogSoftmax,
    Softmax,
    SpecifyShape,
)
from downhill_rms.compiling.scangradient import KeepingScan, is_heavy, keep_for_gradient
from downhill_rms.compiling.scanproducts import use_both_layouts
from downhill_rms.compiling.scans import (
    Given,
    Loop,
    Trace,
    dependent,
    in_order,
    is_understood,
    outermost,
    stacked,
)

# Beside products, what takes no longer for all steps at once than for one after the other.
MOVABLE = (Elemwise, DimShuffle, CAReduce, SpecifyShape, Softmax, LogSoftmax)


def prepared(outputs: Sequence[Any]) -> list[Any]:
    """The same expressions, cheaper with their gradients where they hold scans.

    Those that depend on no scan that was rewritten are the same objects as before.
    """
    nodes = in_order(outputs)
    graph = FunctionGraph(outputs=list(outputs), clone=True, copy_inputs=False)
    copies = dict(zip(nodes, in_order(graph.outputs), strict=True))
    changed: set[Any] = set()
    for node, copy in copies.items():
        replacements = _prepared(copy) if is_understood(copy) else {}
        graph.replace_all(list(replacements.items()), import_missing=True, reason="prepare_scans")
        changed.update(node.outputs if replacements else ())
    changed = dependent(changed, nodes)
    pairs = zip(outputs, graph.outputs, strict=True)
    return [new if old in changed else old for old, new in pairs]


def _prepared(node: Any) -> dict[Any, Any]:
    """What replaces the outputs of a scan; nothing if its step has no gradient."""
    loop = Loop.of(node.op, node.inputs, node.outputs)
    move_before(loop)
    late = take_late(loop)
    # What is computed after the loop names variables of the step as they are now.
    names = [(part, part.result) for part in loop.parts]
    try:
        keep_for_gradient(loop)
    except (NotImplementedError, NullTypeGradError, TypeError, ValueError):
        return {}
    use_both_layouts(loop)
    replacements = loop.build(KeepingScan)
    known = loop.stacks()
    known |= {variable: known[part.result] for part, variable in names}
    for trace in late:
        (replacements[trace.output],) = stacked([trace.result], known)
    return replacements


def move_before(loop: Loop) -> None:
    """Compute before the loop what takes no state: of constants, and products of sequences."""
    nodes = loop.nodes()
    of_states = dependent((v for state in loop.states for v in state.inner), nodes)
    of_steps = of_states | dependent((part.inner for part in loop.sequences), nodes)
    outside = {part.inner: part.outer for part in loop.constants}
    outside |= {part.inner: part.outer[: loop.n_steps] for part in loop.sequences}
    ready = _movable(outside, of_steps, nodes)

    def is_moved(variable: Any) -> bool:
        return variable in ready and (variable not in of_steps or is_heavy(variable))

    moved = {}
    for variable in outermost(loop.results, is_moved):
        (outer,) = stacked([variable], outside)
        fixed = variable not in of_steps
        shape = variable.type.shape if fixed else (None, *variable.type.shape)
        outer = TensorType(variable.type.dtype, shape).filter_variable(outer)
        moved[variable] = variable.type()
        (loop.constants if fixed else loop.sequences).append(Given(moved[variable], outer))
    loop.replace(moved)


def take_late(loop: Loop) -> list[Trace]:
    """Take products out of the loop that no state depends on; returns what is left to compute."""
    states = in_order([state.result for state in loop.states], loop.inner)
    early = {*loop.inner, *(v for node in states for v in node.outputs)}
    early |= {state.result for state in loop.states}
    nodes = [node for node in loop.nodes() if early.isdisjoint(node.outputs)]
    of_steps = early - {part.inner for part in loop.constants}
    of_steps = dependent(of_steps, nodes)
    ready = _movable(early, of_steps, nodes)
    late = [
        trace
        for trace in loop.traces
        if trace.result in ready
        and any(isinstance(n.op, Dot) for n in in_order([trace.result], early))
    ]
    loop.traces = [trace for trace in loop.traces if trace not in late]
    for trace in late:
        for node in in_order([trace.result], early):
            for variable in node.inputs:
                if variable in early:
                    loop.trace(variable)
    return late


def _movable(outside: Iterable[Any], of_steps: set[Any], nodes: Iterable[Any]) -> set[Any]:
    """What can be computed for all steps at once from what is known outside."""
    known, movable = set(outside), set()
    for node in nodes:
        if not all(v in known or isinstance(v, Constant) for v in node.inputs):
            continue
        varying = sum(v in of_steps for v in node.inputs)
        if (
            varying == 0
            or isinstance(node.op, MOVABLE)
            or (isinstance(node.op, Dot) and varying == 1)
        ):
            known.update(node.outputs)
            movable.update(node.outputs)
    return movable
