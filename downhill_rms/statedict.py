"""A trainer's state as a flat dict of named arrays and plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from downhill_rms.hyperparameters import Hyperparameters
from downhill_rms.parameters import Parameters
from downhill_rms.rmsprop import KINDS, STARTED, State

COUNTS = ("update_count", "epoch_count")


def collect(
    parameters: Parameters,
    state: State,
    hyperparameters: Hyperparameters,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Copy everything into one flat dict."""
    values = dict(hyperparameters)
    if not isinstance(values["learning_rate"], float):
        values["learning_rate"] = None  # an expression, which the program itself holds
    arrays = {f"accumulator/{n}": v.get_value(borrow=True) for n, v in state.accumulators.items()}
    return {
        **counts,
        **{f"hyperparameter/{name}": value for name, value in values.items()},
        **{f"param/{name}": value for name, value in parameters.copy().items()},
        **{name: np.array(value, order="C") for name, value in arrays.items()},
    }


def check(
    given: Mapping[str, Any],
    parameters: Parameters,
    state: State,
    hyperparameters: Hyperparameters,
) -> Hyperparameters:
    """Compare a state with a trainer's and return its hyperparameters.

    Raises
    ------
    ValueError
        With every field that differs.
    """
    arrays = {f"param/{name}": value for name, value in parameters.copy().items()}
    required = {*arrays, *COUNTS, *(f"hyperparameter/{n}" for n in Hyperparameters.names())}
    for param, name in state.names.items():
        for kind in KINDS:
            arrays[f"accumulator/{name}_{kind}"] = param.get_value(borrow=True)
    faults = [f"{name} is missing" for name in sorted(required - set(given))]
    faults += [f"{name} is unknown" for name in given if name not in required | set(arrays)]
    for name in set(arrays) & set(given):
        found, wanted = np.asarray(given[name]), arrays[name]
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            faults.append(
                f"{name} is {found.shape} {found.dtype} instead of {wanted.shape} {wanted.dtype}"
            )
    for name in set(COUNTS) & set(given):
        if not isinstance(given[name], int | np.integer) or given[name] < 0:
            faults.append(f"{name} is {given[name]!r} instead of a count")
    if faults:
        raise ValueError(
            f"A state fits the trainer that it was taken from: {'; '.join(sorted(faults))}. "
            "Build the same loss with the same names, shapes and dtypes."
        )
    values = {name: given[f"hyperparameter/{name}"] for name in Hyperparameters.names()}
    if values["learning_rate"] is None:
        values["learning_rate"] = hyperparameters.learning_rate
    return Hyperparameters(**values)


def restore(
    given: Mapping[str, Any],
    parameters: Parameters,
    state: State,
    hyperparameters: Hyperparameters,
) -> None:
    """Set what `check` has found to fit; accumulators that are not given start afresh."""
    parameters.set({name: given[f"param/{name}"] for name in parameters.variables})
    state.reset()
    for param, name in state.names.items():
        for kind in KINDS:
            value = given.get(f"accumulator/{name}_{kind}")
            if value is not None:
                start = hyperparameters.initial_accumulator if kind in STARTED else 0.0
                accumulator = state.accumulator(param, kind, start)
                accumulator.set_value(np.array(value, order="C"), borrow=True)
