"""The state of a trainer's steps as a flat dict of named arrays and plain values, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from downhill_rms.data import set_generator_state
from downhill_rms.rule import (
    KINDS,
    STARTED,
    Hyperparameters,
    fingerprint_difference,
    needed_kinds,
)
from downhill_rms.training.fields import FieldError, Fields, as_in, count
from downhill_rms.training.parameters import Arrays, NamedVariables
from downhill_rms.training.steps import Steps

# Hyperparameters that states of release 0.1.0 do not have; they take their defaults.
ADDED = ("average", "average_halflife", "average_start")
JAX_KEY = np.zeros(2, dtype="uint32")


def signature(steps: Steps) -> dict[str, Any]:
    """What a model is told by: its inputs, parameters, monitors, assigned and carried variables."""
    carried = sorted(_shapes(steps.carried))
    return {
        "inputs": [[spec.name, spec.dtype, spec.ndim] for spec in steps.specs],
        "params": _shapes(steps.parameters),
        "monitors": steps.names[1:],
        "assigned": sorted(_shapes(steps.assigned)),
        **({"carried": carried} if carried else {}),
    }


def _shapes(variables: NamedVariables) -> list[list[Any]]:
    values = {n: v.get_value(borrow=True) for n, v in variables.variables.items()}
    return [[name, list(value.shape), str(value.dtype)] for name, value in values.items()]


def collect(steps: Steps) -> dict[str, Any]:
    """Copy everything that updates change, hyperparameters and counts."""
    values = dict(steps.hyperparameters)
    if not isinstance(values["learning_rate"], float):
        values["learning_rate"] = None  # an expression, which the program itself holds
    host = steps.placement.host
    accumulators = {n: host(v.get_value(borrow=True)) for n, v in steps.state.accumulators.items()}
    text = json.dumps(signature(steps))
    state: dict[str, Any] = {"signature": text, "fingerprint": steps.fingerprint}
    state["update_count"] = steps.update_count
    state |= {f"hyperparameter/{name}": value for name, value in values.items()}
    state |= steps.parameters.state_dict()
    state |= steps.assigned.state_dict()
    state |= steps.carried.state_dict()
    state |= {f"accumulator/{n}": np.array(v, order="C") for n, v in accumulators.items()}
    state |= {f"generator/{name}": text for name, text in steps.generator_states().items()}
    for function, keys in steps.generator_keys().items():
        state |= {f"key/{function}/{index}": key for index, key in enumerate(keys)}
    return state


@dataclass(frozen=True)
class StepsState:
    """A state of a trainer's steps that fits them, parsed.

    Attributes
    ----------
    parameters, assigned, carried : dict of str to ndarray
        Values by name; of assigned variables those that the state has.
    accumulators : dict of (SharedVariable, str) to ndarray
        Values by parameter and kind.
    hyperparameters : Hyperparameters
        Those of the state, with what is to be changed.
    update_count : int
        Updates made.
    generators : dict of str to Generator
        Random generators by name.
    keys : dict of str to list of ndarray
        States that the update in JAX mode keeps.
    """

    parameters: Arrays
    assigned: Arrays
    carried: Arrays
    accumulators: dict[tuple[Any, str], np.ndarray]
    hyperparameters: Hyperparameters
    update_count: int
    generators: dict[str, np.random.Generator]
    keys: dict[str, list[np.ndarray]]


def read(
    fields: Fields, steps: Steps, changes: Mapping[str, Any], changed: bool = False
) -> StepsState | None:
    """Parse what `collect` returned, with some hyperparameters changed.

    With ``changed`` it may be of another loss with the same parameters; of assigned variables and
    generators what both have is taken, and nothing of what is carried: its pass is not taken up.

    Returns
    -------
    StepsState or None
        None if there are faults, which `fields` has.
    """
    if not changed:
        _compare_signatures(fields, signature(steps))
        _compare_losses(fields, steps)
    parameters = fields.read_arrays("param/", steps.parameters.copy())
    assigned: Arrays = {}
    if fields.are_of_release_0_1:
        fields.lacking += sorted(steps.assigned.state_dict())
    else:
        values = steps.assigned.copy()
        names = [name for name in values if not changed or f"assigned/{name}" in fields.state]
        assigned = fields.read_arrays("assigned/", {name: values[name] for name in names})
    carried = {} if changed else fields.read_arrays("carried/", steps.carried.copy())
    generators = {
        name: fields.read(f"generator/{name}", _generator_like(variable))
        for name, variable in steps.generators.items()
        if not changed or f"generator/{name}" in fields.state
    }
    hyperparameters = _hyperparameters(fields, steps)
    accumulators = _accumulators(fields, steps, hyperparameters)
    update_count = fields.read("update_count", count)
    drawn = {variable for variable, _ in steps.graph.evaluation_updates}
    numbers = {
        "update": len(generators),
        # Earlier versions kept these; every evaluation now begins with the same ones.
        "evaluation": sum(variable in drawn for variable in steps.generators.values()),
    }
    if changed:
        numbers = {}
    keys: dict[str, list[np.ndarray]] = {"update": []}
    keys |= {name: _keys(fields, name, number) for name, number in numbers.items()}
    if hyperparameters is not None:
        faults = [] if changed else fields.faults
        hyperparameters = _change(hyperparameters, changes, steps, faults)
    if fields.faults or hyperparameters is None:
        return None
    rest = (accumulators, hyperparameters, update_count, generators, keys)
    return StepsState(parameters, assigned, carried, *rest)


def _compare_signatures(fields: Fields, wanted: dict[str, Any]) -> None:
    def compare(text: Any) -> None:
        found = json.loads(text)
        if not isinstance(found, dict) or not found.keys() >= wanted.keys() - {
            "assigned",
            "carried",
        }:
            raise FieldError(f"is {text!r:.80}")
        # Release 0.1.0 knew no assigned variables; nothing is carried where nothing is said.
        found = {"assigned": wanted["assigned"], "carried": []} | found
        now = {"carried": []} | wanted
        fields.faults += [
            f"{name} are {found[name]} instead of {now[name]}"
            for name in now
            if found[name] != now[name]
        ]

    fields.read("signature", compare)


def _compare_losses(fields: Fields, steps: Steps) -> None:
    def compare(text: Any) -> None:
        if difference := fingerprint_difference(text, steps.fingerprint):
            raise FieldError(f"is of another loss: {difference}")

    if fields.are_of_release_0_1:
        fields.lacking.append("fingerprint")
    else:
        fields.read("fingerprint", compare)


def _generator_like(variable: Any) -> Any:
    def parse(text: Any) -> np.random.Generator:
        generator: np.random.Generator = variable.get_value(borrow=False)
        set_generator_state(generator, text)
        return generator

    return parse


def _hyperparameters(fields: Fields, steps: Steps) -> Hyperparameters | None:
    before = len(fields.faults)
    names = Hyperparameters.names()
    if fields.are_of_release_0_1:
        names = [n for n in names if n not in ADDED or f"hyperparameter/{n}" in fields.state]
    values = {name: fields.read(f"hyperparameter/{name}", _plain) for name in names}
    if len(fields.faults) > before:
        return None
    if values["learning_rate"] is None:
        values["learning_rate"] = steps.hyperparameters.learning_rate
    try:
        found = Hyperparameters(**values)
        steps.state.values(found)
    except (TypeError, ValueError, OverflowError) as error:
        fields.faults.append(f"hyperparameters: {error}")
        return None
    # A default in the place of a value was not in force.
    changed = [name for name in names if found[name] != values[name]]
    fields.faults += [f"hyperparameter/{name} is {values[name]}" for name in changed]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float | str | None):
        raise FieldError(f"is {value!r:.80}, no plain value")
    return value


def _accumulators(
    fields: Fields, steps: Steps, hyperparameters: Hyperparameters | None
) -> dict[tuple[Any, str], np.ndarray]:
    """Those in the state; a state without any is of a trainer that made no update."""
    needed = KINDS if hyperparameters is None else needed_kinds(hyperparameters)
    some = fields.has_any("accumulator/")
    return {
        (param, kind): fields.read(f"accumulator/{name}_{kind}", as_in(value))
        for param, name in steps.state.names.items()
        for value in [param.get_value(borrow=True)]
        for kind in KINDS
        if f"accumulator/{name}_{kind}" in fields.state or (some and kind in needed)
    }


def _keys(fields: Fields, function: str, generators: int) -> list[np.ndarray]:
    """None, or one for each generator."""
    if not fields.has_any(f"key/{function}/"):
        return []
    names: Sequence[str] = [f"key/{function}/{index}" for index in range(generators)]
    return [fields.read(name, as_in(JAX_KEY)) for name in names]


def _change(
    hyperparameters: Hyperparameters, changes: Mapping[str, Any], steps: Steps, faults: list[str]
) -> Hyperparameters:
    """Numbers may change when a state is taken up; what shapes the graph may not."""
    changed = hyperparameters.replace(**changes)
    steps.state.values(changed)
    if changed.structure != hyperparameters.structure:
        faults += [
            f"{name} was {hyperparameters[name]!r} and is {changed[name]!r}"
            for name in changes
            if changed[name] != hyperparameters[name]
        ]
    return changed


def restore(given: StepsState, steps: Steps) -> None:
    """Set what `read` has found to fit; accumulators that are not given start afresh."""
    steps.put_back(given.parameters, given.assigned)
    steps.carried.put_back(given.carried)
    steps.state.reset()
    for (param, kind), value in given.accumulators.items():
        start = given.hyperparameters.initial_accumulator if kind in STARTED else 0.0
        steps.state.accumulator(param, kind, start).set_value(value, borrow=True)
    steps.update_count = given.update_count
    steps.set_generators(given.generators)
    steps.use(dict(given.hyperparameters))
    steps.set_generator_keys(given.keys)
