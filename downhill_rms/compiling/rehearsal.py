"""Compute a graph uncompiled, and say which operation fails, of what operands.

PyTensor's own Python code checks every shape and every index, as Numba and JAX do not. It is the
judge of whether data fit a graph; what is read from the graph says only when to ask it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant
from pytensor.graph.op import HasInnerGraph

from downhill_rms.compiling.uncompiled import UncompiledFunction, nothing_compiled
from downhill_rms.rule import Conflict, conflict_at, variables_in_order

# What an operation raises for operands that do not fit, and not for what it cannot do.
MISFITS = (ValueError, IndexError, AssertionError)


def evaluator(inputs: Sequence[Any], outputs: Sequence[Any]) -> UncompiledFunction:
    """A function of a minibatch that runs uncompiled and changes no shared variable."""
    # A variable with a default update stays as it is only if it is assigned to itself.
    still = [(v, v) for v in _shared(outputs) if v.default_update is not None]
    return UncompiledFunction(inputs, outputs, still)


def _shared(outputs: Sequence[Any]) -> list[Any]:
    return [v for v in variables_in_order(outputs) if isinstance(v, SharedVariable)]


def rehearse(
    inputs: Sequence[Any], outputs: Sequence[Any], batch: Sequence[Any], names: Mapping[Any, str]
) -> Conflict | None:
    """Compute outputs of a minibatch uncompiled, without changing anything.

    Parameters
    ----------
    inputs, outputs : sequence of Variable
        As for ``pytensor.function``.
    batch : sequence of array
        One for each input.
    names : mapping of Variable to str
        What inputs and shared variables are called.

    Returns
    -------
    Conflict or None
        The first operation that fails; None if none does, or PyTensor cannot compute the graph
        uncompiled for other reasons.
    """
    try:
        evaluator(inputs, outputs)(*batch)
    except MISFITS as error:
        values = dict(zip(inputs, batch, strict=True))
        values |= {v: v.get_value(borrow=True) for v in _shared(outputs)}
        with nothing_compiled(), suppress(Exception):  # some cannot be computed one by one
            if failure := _first_failure(outputs, values, names):
                return failure
        return _unplaced(error)
    except Exception:  # what Python cannot compute says nothing of the data
        return None
    return None


def _unplaced(error: Exception) -> Conflict:
    """A failure of a graph whose operations succeed one by one, as after a rewrite."""
    reason = str(error).partition("\n")[0].rstrip(".")
    return Conflict("the loss", ("a minibatch",), reason)


def _first_failure(
    outputs: Sequence[Any], values: dict[Any, Any], names: Mapping[Any, str]
) -> Conflict | None:
    """Compute operation after operation, only those that are needed, until one fails."""
    waiting = [variable.owner for variable in reversed(outputs) if variable.owner is not None]
    while waiting:
        node = waiting[-1]
        if all(variable in values for variable in node.outputs):
            waiting.pop()
            continue
        needed = _needed(node, values)
        missing = [v.owner for v in needed if v not in values and not isinstance(v, Constant)]
        waiting += missing
        if missing:
            continue
        waiting.pop()
        operands = [_value(variable, values) for variable in needed]
        try:
            results = _compute(node, operands)
        except MISFITS as error:
            shapes = [getattr(value, "shape", None) for value in operands]
            return conflict_at(node, shapes, str(error), names)
        values.update(zip(node.outputs, results, strict=True))
    return None


def _needed(node: Any, values: Mapping[Any, Any]) -> list[Any]:
    """What an operation is computed from: of a choice, the condition first, then one branch."""
    if not _is_choice(node.op):
        return list(node.inputs)
    condition, branches = node.inputs[0], list(node.inputs[1:])
    if condition not in values and not isinstance(condition, Constant):
        return [condition]
    first: int = node.op.n_outs
    return branches[:first] if _value(condition, values) else branches[first:]


def _is_choice(op: Any) -> bool:
    return type(op).__name__ == "IfElse"  # its module moved with PyTensor 3.3


def _value(variable: Any, values: Mapping[Any, Any]) -> Any:
    return variable.data if isinstance(variable, Constant) else values[variable]


def _compute(node: Any, operands: Sequence[Any]) -> list[Any]:
    if _is_choice(node.op):
        return list(operands)
    if isinstance(node.op, HasInnerGraph):
        inputs = [variable.type() for variable in node.inputs]
        outputs: list[Any] = node.op.make_node(*inputs).outputs
        return UncompiledFunction(inputs, outputs)(*operands)
    storage = {v: [value] for v, value in zip(node.inputs, operands, strict=True)}
    storage |= {v: [None] for v in node.outputs}
    node.op.make_thunk(node, storage, None, [], impl="py")()
    return [storage[variable][0] for variable in node.outputs]
