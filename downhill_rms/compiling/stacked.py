"""One training step turned into many: a loop inside the compiled function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytensor
import pytensor.tensor as pt
from pytensor.graph.replace import clone_replace
from pytensor.tensor.type import DenseTensorType, TensorType

from downhill_rms.rule import Update, describe


def stack_steps(
    inputs: Sequence[Any], outputs: Sequence[Any], updates: Sequence[Update]
) -> tuple[list[Any], list[Any], list[Update]]:
    """Make one function call of many steps, each of which sees the updates of the one before.

    Parameters
    ----------
    inputs : sequence of Variable
        What a minibatch feeds.
    outputs : sequence of Variable
        What a step returns.
    updates : sequence of (SharedVariable, Variable)
        What a step assigns; shared variables that it only reads are left out.

    Returns
    -------
    inputs, outputs : list of Variable
        The same with one more dimension in front, which counts the minibatches. Its length is
        free: a call with another number of minibatches compiles nothing. Without inputs there is
        a vector of integers, whose length alone counts.
    updates : list of (SharedVariable, Variable)
        The same shared variables with their values after the last minibatch.
    """
    inputs = inputs or [pt.lscalar("step")]
    shared = [variable for variable, _ in updates]
    results = [*outputs, *(variable.type.filter_variable(new) for variable, new in updates)]

    # Indexed inside, not given as sequences: of those scan takes transposes out of the loop, and
    # a matrix product of a copy may round differently.
    def step(index: Any, *arguments: Any) -> list[Any]:
        values, stacks = arguments[: len(shared)], arguments[len(shared) :]
        replacements = dict(zip(shared, values, strict=True))
        replacements |= {v: b[index] for v, b in zip(inputs, stacks, strict=True)}
        return [index + 1, *clone_replace(results, replacements, rebuild_strict=False)]

    batches = [_batches(variable) for variable in inputs]
    _, *traces = pytensor.scan(
        step,
        n_steps=batches[0].shape[0],
        non_sequences=batches,
        outputs_info=[pt.constant(0, dtype="int64"), *(None for _ in outputs), *shared],
        return_list=True,
        return_updates=False,
    )
    last = [
        _last(trace, variable)
        for variable, trace in zip(shared, traces[len(outputs) :], strict=True)
    ]
    return batches, traces[: len(outputs)], list(zip(shared, last, strict=True))


def check_stackable(inputs: Sequence[Any]) -> None:
    """Refuse inputs whose minibatches cannot be stacked.

    Raises
    ------
    TypeError
        If one is not a dense tensor.
    """
    for variable in inputs:
        if not isinstance(variable.type, DenseTensorType):
            raise TypeError(
                f"updates_per_call is above 1 for the input {describe(variable)}: minibatches "
                "that go together are dense arrays. Leave updates_per_call at 1."
            )


def _batches(variable: Any) -> Any:
    tensor = TensorType(variable.type.dtype, shape=(None, *variable.type.shape))
    return tensor(name=None if variable.name is None else f"{variable.name}_batches")


def _last(trace: Any, variable: Any) -> Any:
    # Of a random generator scan returns the last state alone, of a tensor all of them.
    return trace[-1] if isinstance(variable.type, TensorType) else trace
