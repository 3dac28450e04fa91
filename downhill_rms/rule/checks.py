"""What single arguments may be: numbers in a range, counts, choices.

Each check returns the value in the one form that the rest of the package meets, or raises an error
that says what the argument is, what it takes and what to give.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np


def check_number(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
    closed_high: bool = False,
) -> float:
    """A real number in ``[low, high)``, as a float.

    Parameters
    ----------
    name : str
        The argument.
    value : object
        What was given.
    low, high : float
        The range.
    open_low, closed_high : bool
        Leave ``low`` out of it; have ``high`` in it.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is out of range, NaN, or no float can hold it.
    """
    number = _as_float(value)
    if number is None:
        raise TypeError(f"{name} is {shown(value)}: it takes a number. Give a float.")
    above = low < number if open_low else low <= number
    below = number <= high if closed_high else number < high
    if not (above and below):
        brackets = "(" if open_low else "[", "]" if closed_high else ")"
        interval = f"{brackets[0]}{low:g}, {high:g}{brackets[1]}"
        raise ValueError(
            f"{name} is {shown(value)}: it lies in {interval}. Give a number in this range."
        )
    return number


def _as_float(value: Any) -> float | None:
    """A number as a float, one too large as infinity; None for what is no number."""
    scalar = isinstance(value, Real) or getattr(value, "ndim", None) == 0
    if not scalar or isinstance(value, bool | np.bool_) or np.iscomplexobj(value):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):  # a symbolic scalar, or an array of text
        return None


def check_count(name: str, value: Any, low: int = 1) -> int:
    """An integer of at least ``low``, as an int.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is too small, or too large to count to.
    """
    try:
        count = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"{name} is {shown(value)}: it takes an integer. Give an int.")
    if not low <= count <= sys.maxsize:
        raise ValueError(
            f"{name} is {shown(value)}: it is at least {low}, and at most {sys.maxsize}. Give an "
            "int in this range."
        )
    return count


def check_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises
    ------
    TypeError
        For anything else, whatever its truth.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {shown(value)}: it takes True or False. Give a bool.")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words.

    Raises
    ------
    ValueError
        For anything else.
    """
    if not isinstance(value, str) or value not in choices:
        known = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise ValueError(f"{name} is {shown(value)}: it takes {known}. Give one of these.")
    return value


def check_list(name: str, value: Any, of: str) -> list[Any]:
    """The elements of a list, a tuple or another iterable that is no text.

    Raises
    ------
    TypeError
        If it is none.
    """
    try:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise TypeError
        return list(value)
    except (TypeError, ValueError):  # PyTensor's variables have an __iter__ that raises them
        raise TypeError(
            f"{name} is {shown(value)}: it takes a list of {of}. Put a single one in a list."
        ) from None


def check_path(name: str, value: Any) -> Path:
    """The path of a file or directory.

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        If no file can have that name.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {shown(value)}: it takes a path. Give a str or a Path.")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{name} is {shown(value)}: no file has that name. Give another.")
    return Path(path)


def shown(value: Any) -> str:
    """A value in an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
