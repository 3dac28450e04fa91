"""The state of a trainer's steps as a flat dict of named arrays and plain values, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from downhill_rms.rule import KINDS, STARTED, Hyperparameters, needed_kinds
from downhill_rms.training.steps import Steps

# Hyperparameters that states of release 0.1.0 do not have; they take their defaults.
ADDED = ("average", "average_halflife", "average_start")


def signature(steps: Steps) -> str:
    """What a model is told by: its inputs, parameters and monitors, in order, as JSON."""
    inputs = [[spec.name, spec.dtype, spec.ndim] for spec in steps.specs]
    values = {n: v.get_value(borrow=True) for n, v in steps.parameters.variables.items()}
    params = [[name, list(value.shape), str(value.dtype)] for name, value in values.items()]
    return json.dumps({"inputs": inputs, "params": params, "monitors": steps.names[1:]})


def collect(steps: Steps) -> dict[str, Any]:
    """Copy parameters, accumulators, hyperparameters, generators and the update count."""
    values = dict(steps.hyperparameters)
    if not isinstance(values["learning_rate"], float):
        values["learning_rate"] = None  # an expression, which the program itself holds
    accumulators = {n: v.get_value(borrow=True) for n, v in steps.state.accumulators.items()}
    state: dict[str, Any] = {"signature": signature(steps), "update_count": steps.update_count}
    state |= {f"hyperparameter/{name}": value for name, value in values.items()}
    state |= steps.parameters.state_dict()
    state |= {f"accumulator/{n}": np.array(v, order="C") for n, v in accumulators.items()}
    state |= {f"generator/{name}": text for name, text in steps.generator_states().items()}
    for function, keys in steps.generator_keys().items():
        state |= {f"key/{function}/{index}": key for index, key in enumerate(keys)}
    return state


def check(
    given: Mapping[str, Any], steps: Steps, changes: Mapping[str, Any]
) -> tuple[Hyperparameters | None, list[str]]:
    """Compare a state with a trainer.

    Returns
    -------
    hyperparameters : Hyperparameters or None
        Those of the state with ``changes`` made; None if they are at fault.
    faults : list of str
        Every field that differs.
    """
    arrays: dict[str, Any] = dict(steps.parameters.state_dict())
    required = {*arrays, "signature", "update_count"}
    required |= {f"hyperparameter/{name}" for name in Hyperparameters.names()}
    required -= {f"hyperparameter/{name}" for name in ADDED}
    required |= {f"generator/{name}" for name in steps.generators}
    faults = [f"{name} is missing" for name in required - set(given)]
    faults += _check_signature(given.get("signature"), signature(steps))
    for param, name in steps.state.names.items():
        value = param.get_value(borrow=True)
        arrays |= {f"accumulator/{name}_{kind}": value for kind in KINDS}
    faults += _check_arrays(given, arrays)
    count = given.get("update_count", 0)
    if not isinstance(count, int | np.integer) or count < 0:
        faults.append(f"update_count is {count!r}")
    prefixes = ("param/", "accumulator/", "hyperparameter/", "generator/")
    known = required | set(arrays) | {f"hyperparameter/{name}" for name in ADDED}
    faults += [f"{n} is unknown" for n in given if n.startswith(prefixes) and n not in known]
    hyperparameters = None
    if not any(fault.startswith("hyperparameter/") for fault in faults):
        hyperparameters = _hyperparameters(given, steps, faults)
    if hyperparameters is not None and any(name.startswith("accumulator/") for name in given):
        for name in steps.state.names.values():
            needed = (f"accumulator/{name}_{kind}" for kind in needed_kinds(hyperparameters))
            faults += [f"{field} is missing" for field in needed if field not in given]
    return _change(hyperparameters, changes, faults), faults


def _check_signature(found: Any, wanted: str) -> list[str]:
    try:
        found, expected = json.loads(found), json.loads(wanted)
        return [
            f"{field} are {found[field]} instead of {expected[field]}"
            for field in expected
            if found[field] != expected[field]
        ]
    except (TypeError, ValueError, KeyError):
        return [f"signature is {found!r}"]


def _check_arrays(given: Mapping[str, Any], arrays: Mapping[str, Any]) -> list[str]:
    faults = []
    for name in set(arrays) & set(given):
        found, wanted = np.asarray(given[name]), arrays[name]
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            faults.append(
                f"{name} is {found.shape} {found.dtype} instead of {wanted.shape} {wanted.dtype}"
            )
    return faults


def _hyperparameters(
    given: Mapping[str, Any], steps: Steps, faults: list[str]
) -> Hyperparameters | None:
    fields = {name: f"hyperparameter/{name}" for name in Hyperparameters.names()}
    values = {name: given[field] for name, field in fields.items() if field in given}
    if values["learning_rate"] is None:
        values["learning_rate"] = steps.hyperparameters.learning_rate
    try:
        return Hyperparameters(**values)
    except (TypeError, ValueError) as error:
        faults.append(f"hyperparameters: {error}")
        return None


def _change(
    hyperparameters: Hyperparameters | None, changes: Mapping[str, Any], faults: list[str]
) -> Hyperparameters | None:
    """Numbers may change when a state is taken up; what shapes the graph may not."""
    if hyperparameters is None:
        return None
    changed = hyperparameters.replace(**changes)
    if changed.structure != hyperparameters.structure:
        faults += [
            f"{name} was {hyperparameters[name]!r} and is {changed[name]!r}"
            for name in changes
            if changed[name] != hyperparameters[name]
        ]
    return changed


def restore(given: Mapping[str, Any], steps: Steps, hyperparameters: Hyperparameters) -> None:
    """Set what `check` has found to fit; accumulators that are not given start afresh."""
    steps.parameters.put_back(
        {n: np.array(given[f"param/{n}"]) for n in steps.parameters.variables}
    )
    steps.state.reset()
    for param, name in steps.state.names.items():
        for kind in KINDS:
            value = given.get(f"accumulator/{name}_{kind}")
            if value is not None:
                start = hyperparameters.initial_accumulator if kind in STARTED else 0.0
                accumulator = steps.state.accumulator(param, kind, start)
                accumulator.set_value(np.array(value, order="C"), borrow=True)
    steps.update_count = int(given["update_count"])
    steps.set_generator_states({n: given[f"generator/{n}"] for n in steps.generators})
    steps.use(dict(hyperparameters))
    keys: dict[str, list[np.ndarray]] = {"update": [], "evaluation": []}
    for name in sorted(n for n in given if n.startswith("key/")):
        keys[name.split("/")[1]].append(np.asarray(given[name]))
    steps.set_generator_keys(keys)
