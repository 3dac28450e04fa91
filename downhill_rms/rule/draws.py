"""Follow random generators through every draw, inside Ops and scans too, to their last state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pytensor.compile.builders import OpFromGraph
from pytensor.graph.basic import Constant, equal_computations
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import toposort
from pytensor.scan.op import Scan
from pytensor.tensor.random.op import RNGConsumerOp
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.rewriting.ofg import inline_ofg_node

from downhill_rms.rule.traversal import describe, nodes_in_order, warn

Uses = dict[Any, list[tuple[Any, int]]]  # a generator's state -> the nodes it feeds, and where


def next_states(generators: Iterable[Any], outputs: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The states that generators are left in when ``outputs`` are computed.

    Parameters
    ----------
    generators : iterable of SharedVariable
        Those to advance.
    outputs : sequence of Variable
        What is computed.

    Returns
    -------
    list of (SharedVariable, Variable)
        Each generator that is drawn from, and its next state.

    Raises
    ------
    ValueError
        If an Op draws from one and keeps its last state to itself.
    """
    uses, nodes = _uses_of_states(outputs), set(nodes_in_order(outputs))
    found = ((generator, _after_call(generator, uses, nodes)) for generator in generators)
    return [(generator, state) for generator, state in found if state is not None]


def _after_call(generator: Any, uses: Uses, nodes: set[Any]) -> Any:
    """A generator's next state; None if nothing is drawn from it."""
    own = generator.default_update
    # The default update of a graph that clone_replace has copied is computed by the old one.
    if own is not None and (own.owner is None or own.owner in nodes):
        return own
    try:
        last = _last_states(generator, generator, uses)[0]
    except ValueError:
        if own is None:
            raise
        return own
    return own if last is generator else last


def refuse_constant_generators(outputs: Sequence[Any]) -> None:
    """Raise a ValueError for a draw from a constant, which gives the same numbers at every call."""
    for node in nodes_in_order(outputs):
        refuse_constant_generators(getattr(node.op, "inner_outputs", ()))
        if any(isinstance(v, Constant) and isinstance(v.type, RandomType) for v in node.inputs):
            raise ValueError(
                f"{node.op} draws from a constant generator, which gives the same numbers at every "
                "call. A generator advances at every step: make it with pt.random.shared_rng."
            )


def opened(loss: Any, params: Sequence[Any]) -> Any:
    """The same loss, differentiable where ``params`` pass through an Op that draws.

    PyTensor (3.0 to 3.3) cannot differentiate an OpFromGraph that returns a generator's state, so
    what it stands for takes its place. Both draw from the same state, and thus the same numbers.
    """
    while (node := _closed(loss, params)) is not None:
        loss = clone_replace(loss, dict(zip(node.outputs, inline_ofg_node(node), strict=True)))
    return loss


def _closed(loss: Any, params: Sequence[Any]) -> Any:
    """The first such Op between the parameters and the loss."""
    moved = set(params)
    for node in toposort([loss]):
        if moved.isdisjoint(node.inputs):
            continue
        moved.update(node.outputs)
        random = any(isinstance(variable.type, RandomType) for variable in node.outputs)
        if random and isinstance(node.op, OpFromGraph):
            return node
    return None


def _uses_of_states(outputs: Sequence[Any]) -> Uses:
    uses: Uses = {}
    for node in nodes_in_order(outputs):
        for place, variable in enumerate(node.inputs):
            if isinstance(variable.type, RandomType):
                uses.setdefault(variable, []).append((node, place))
    return uses


def _last_states(given: Any, generator: Any, uses: Uses) -> list[Any]:
    """The states after the most draws, itself without any; several where draws were copied."""
    level = [given]
    while level:
        last = level
        level = [after for state in level for after in _draws(state, generator, uses)]
    return last


def _draws(state: Any, generator: Any, uses: Uses) -> list[Any]:
    """The states that draws from a state return."""
    following = [_next_state(node, place, generator) for node, place in uses.get(state, ())]
    drawn = [after for after in following if after is not None]
    # Scan (3.0) copies what computes each of its outputs, so that one draw stands there twice.
    inside = generator not in uses
    different = [s for s in drawn[1:] if not (inside and equal_computations([s], drawn[:1]))]
    if different:
        warn(
            f"A generator should feed one draw: {describe(generator)} feeds {len(different) + 1} "
            "from one state, which gives them the same random numbers. Use a generator for "
            "each, or draw the second from the state that the first returns."
        )
    return drawn


def _next_state(node: Any, place: int, generator: Any) -> Any:
    """What a node returns of the state it is given; None if it draws nothing."""
    op = node.op
    if isinstance(op, RNGConsumerOp):
        found = op.update(node).get(node.inputs[place])
    elif hasattr(op, "inner_outputs"):
        inside, outer = _inside(op, place)
        last = _last_states(inside, generator, _uses_of_states(op.inner_outputs))
        if inside in last:
            return None
        returned = {op.inner_outputs[index]: node.outputs[out] for index, out in outer}
        found = next((returned[state] for state in last if state in returned), None)
    else:
        found = None
    if found is None:
        raise ValueError(
            f"{op} draws from {describe(generator)} and does not return its last state. A "
            "generator advances at every step: make the state after the last draw an output of "
            "that Op, or give the generator's next state in updates=."
        )
    return found


def _inside(op: Any, place: int) -> tuple[Any, list[tuple[int, int]]]:
    """A generator's name in an Op's own graph, and its outputs there that leave the Op, and where.

    A state that a scan returns must be the one it begins the next step with.
    """
    if not isinstance(op, Scan):
        return op.inner_inputs[place], [(index, index) for index in range(len(op.inner_outputs))]
    maps = op.get_oinp_iinp_iout_oout_mappings()
    (inside,) = maps["inner_inp_from_outer_inp"][place]
    outer = maps["outer_out_from_outer_inp"].get(place, -1)
    inner = maps["inner_out_from_outer_inp"].get(place, ())
    return op.inner_inputs[inside], [(index, outer) for index in inner if outer >= 0]
