"""The fields of a state, each of which is parsed before anything is set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from downhill_rms.training.parameters import Arrays
from downhill_rms.watching import Values

KINDS = (
    *("param/", "assigned/", "carried/", "accumulator/", "hyperparameter/", "generator/", "key/"),
    *("best/", "run/", "epoch/"),  # and "train/", of which the sampler knows the names
)
LIMIT = 2**62  # of counts, which compiled functions hold as int64


class FieldError(ValueError):
    """A field that does not fit: what it is, to follow its name."""


class Fields:
    """The fields of a state; what is missing, wrong or unknown is noted, not raised.

    Parameters
    ----------
    state : mapping of str to ndarray or plain value
        The state.

    Attributes
    ----------
    faults : list of str
        What was found wrong so far.
    lacking : list of str
        What a state of an older release does not have.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state
        self.faults: list[str] = []
        self.lacking: list[str] = []
        self._read: set[str] = set()

    @cached_property
    def are_of_release_0_1(self) -> bool:
        """Whether they are of the release that did not know assigned variables."""
        try:
            return "assigned" not in json.loads(self.state["signature"])
        except Exception:  # whatever is wrong with it shows where it is read
            return False

    def read(self, name: str, parse: Callable[[Any], Any]) -> Any:
        """What a field is parsed to; None if there is a fault."""
        self._read.add(name)
        if name not in self.state:
            self.faults.append(f"{name} is missing")
            return None
        try:
            return parse(self.state[name])
        except FieldError as error:
            self.faults.append(f"{name} {error}")
        except Exception as error:  # of whatever stands there in place of what was saved
            self.faults.append(f"{name} cannot be read ({type(error).__name__}: {error!s:.80})")
        return None

    def read_arrays(self, prefix: str, like: Mapping[str, np.ndarray]) -> Arrays:
        """Copies of arrays with the shapes and dtypes of others, by name without the prefix."""
        return {name: self.read(f"{prefix}{name}", as_in(array)) for name, array in like.items()}

    def has_any(self, *prefixes: str) -> bool:
        """Whether there is a field whose name begins so."""
        return any(name.startswith(prefixes) for name in self.state)

    def refuse_unknown(self) -> None:
        """Note the fields that are of a kind of ours and that nobody has read."""
        unread = (name for name in self.state if name not in self._read)
        self.faults += [f"{name} is unknown" for name in unread if name.startswith(KINDS)]


def as_in(wanted: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Parse a copy of an array of the same shape and dtype."""

    def parse(value: Any) -> np.ndarray:
        found = np.array(value, order="C")
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise FieldError(
                f"is {found.shape} {found.dtype} instead of {wanted.shape} {wanted.dtype}"
            )
        return found

    return parse


def count(value: Any) -> int:
    """Parse a count."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 0 <= value < LIMIT:
        raise FieldError(f"is {value!r:.80}, no count")
    return int(value)


def number(value: Any) -> float:
    """Parse a real number, NaN and infinities included."""
    known = isinstance(value, int | float | np.integer | np.floating)
    if not known or isinstance(value, bool):
        raise FieldError(f"is {value!r:.80}, no number")
    return float(value)


def finite(value: Any) -> float:
    """Parse a number that is finite."""
    if not math.isfinite(found := number(value)):
        raise FieldError(f"is {found}, not finite")
    return found


def flag(value: Any) -> bool:
    """Parse a truth value."""
    if not isinstance(value, bool | np.bool_):
        raise FieldError(f"is {value!r:.80}, neither True nor False")
    return bool(value)


def monitors(names: Iterable[str]) -> Callable[[Any], Values]:
    """Parse the JSON of a dict of numbers under these names."""

    def parse(text: Any) -> Values:
        found = json.loads(text)
        if not isinstance(found, dict) or set(found) != set(names):
            raise FieldError(f"is {text!r:.80}, not monitors {', '.join(names)}")
        return {name: number(value) for name, value in found.items()}

    return parse


def one_of(names: Iterable[str]) -> Callable[[Any], str]:
    """Parse one of some names."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise FieldError(f"is {value!r:.80}, none of {', '.join(names)}")
        return value

    return parse
