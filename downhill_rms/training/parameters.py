"""The values of shared variables, read and written together: a loss's parameters, above all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from downhill_rms.rule import check_list, refuse_unknown, shown

Arrays = dict[str, np.ndarray]  # variable name -> value


class NamedVariables:
    """Named shared variables that hold dense arrays.

    Parameters
    ----------
    variables : sequence of SharedVariable
        The variables.
    names : sequence of str
        Their names, all different.
    host : callable
        Makes an array of this process's memory of any value, which may lie on many devices.

    Attributes
    ----------
    prefix : str
        Of their names in a state.
    """

    prefix = "assigned/"

    def __init__(
        self,
        variables: Sequence[Any],
        names: Sequence[str],
        host: Callable[[Any], Any] = np.asarray,
    ) -> None:
        self.variables = dict(zip(names, variables, strict=True))
        self._host = host
        # Another layout would make Numba compile once for it and once for the updates' results.
        self.put_back(self.copy())

    def copy(self) -> Arrays:
        """Copies of all values, C-contiguous."""
        return {
            name: np.array(self._host(variable.get_value(borrow=True)), order="C")
            for name, variable in self.variables.items()
        }

    def put_back(self, values: Arrays) -> None:
        """Set values that `copy` returned."""
        for name, value in values.items():
            self.variables[name].set_value(value.copy(), borrow=True)

    def state_dict(self) -> Arrays:
        """Copies of all values, named as in a state: ``assigned/count``, or ``param/w``."""
        return {f"{self.prefix}{name}": value for name, value in self.copy().items()}


class Carried(NamedVariables):
    """What one minibatch hands to the next, within a pass over data.

    Every pass begins with the values that the variables had when this was made.
    """

    prefix = "carried/"

    def __init__(
        self,
        variables: Sequence[Any],
        names: Sequence[str],
        host: Callable[[Any], Any] = np.asarray,
    ) -> None:
        super().__init__(variables, names, host)
        self._start = self.copy()

    def begin_pass(self) -> None:
        """Set the values that a pass begins with."""
        self.put_back(self._start)

    @contextmanager
    def pass_of_its_own(self) -> Iterator[None]:
        """Begin another pass for a while; the one that goes on stays where it is."""
        values = {name: v.get_value(borrow=True) for name, v in self.variables.items()}
        self.begin_pass()
        try:
            yield
        finally:
            for name, value in values.items():
                self.variables[name].set_value(value, borrow=True)


class Parameters(NamedVariables):
    """What training adjusts, and a user may set."""

    prefix = "param/"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all values from a state, whatever else is in it.

        Raises
        ------
        ValueError
            If a parameter is missing, unknown, or of another shape or kind. Nothing is set then.
        """
        # Where averages are kept, it is them that a validation found to be the best.
        is_best = "best/update" in state and state["best/update"] == state.get("update_count")
        prefix = f"best/{self.prefix}" if is_best else self.prefix
        found = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        missing = [name for name in self.variables if name not in found]
        unknown = [name for name in found if name not in self.variables]
        if missing or unknown:
            raise ValueError(
                f"The file has parameters {sorted(found)}, and the loss has "
                f"{sorted(self.variables)}. Their names are the same: rename the shared "
                "variables, or take the file of this model."
            )
        self.set(found)

    def set(self, targets: Sequence[Any] | Mapping[str, Any]) -> None:
        """Set values that a user gives: one for each parameter, or some by name.

        Raises
        ------
        TypeError
            For an unknown name.
        ValueError
            If the number, a shape or a dtype does not match. Nothing is set then.
        """
        if not isinstance(targets, Mapping):
            targets = check_list("targets", targets, "arrays")
            if len(targets) != len(self.variables):
                raise ValueError(
                    f"targets has {len(targets)} values for {len(self.variables)} parameters "
                    f"({', '.join(self.variables)}): each has one. Give as many, or a dict by name."
                )
            targets = dict(zip(self.variables, targets, strict=True))
        refuse_unknown(targets, list(self.variables), "parameter")
        self.put_back({name: self._checked(name, value) for name, value in targets.items()})

    def _checked(self, name: str, value: Any) -> np.ndarray:
        current = self.variables[name].get_value(borrow=True)
        try:
            array = np.array(value, order="C")
        except (TypeError, ValueError) as error:  # lists of different lengths, for one
            raise ValueError(
                f"parameter {name!r} is given {shown(value)}: its value is an array ({error}). "
                "Give one."
            ) from error
        if array.shape != current.shape or not np.can_cast(array.dtype, current.dtype, "same_kind"):
            raise ValueError(
                f"parameter {name!r} of {current.shape} {current.dtype} is given {array.shape} "
                f"{array.dtype}: it keeps its shape and kind. Reshape or convert the value."
            )
        return array.astype(current.dtype, copy=False)
