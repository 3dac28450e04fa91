"""What a sweep is to try: lists of values, ranges, and how they are combined."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from downhill_rms.rule import check_count, check_flag, check_number, shown

Settings = dict[str, Any]  # hyperparameters that differ from run to run


@dataclass(frozen=True)
class Range:
    """Numbers of an interval, of which a sweep draws some at random.

    Parameters
    ----------
    low, high : float
        Its ends.
    logarithmic : bool
        Whether the logarithm is uniform, and not the number.
    """

    low: float
    high: float
    logarithmic: bool

    def __post_init__(self) -> None:
        name = "loguniform" if self.logarithmic else "uniform"
        for end in ("low", "high"):
            given = check_number(f"{name}: {end}", getattr(self, end), low=-math.inf)
            object.__setattr__(self, end, given)
        if not self.low < self.high or (self.logarithmic and self.low <= 0):
            rule = "0 < low < high" if self.logarithmic else "low < high"
            raise ValueError(
                f"{self} is given: a range has {rule}. Give two numbers in this order."
            )

    def draw(self, rng: np.random.Generator) -> float:
        """One of the numbers."""
        if self.logarithmic:
            return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return float(rng.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{'log' if self.logarithmic else ''}uniform({self.low:g}, {self.high:g})"


def uniform(low: float, high: float) -> Range:
    """A range for ``sample=`` of a sweep, every number of which is as likely.

    Parameters
    ----------
    low, high : float
        Its ends, ``low < high``.

    Examples
    --------
    >>> print(uniform(0.5, 0.95))
    uniform(0.5, 0.95)
    """
    return Range(low, high, logarithmic=False)


def loguniform(low: float, high: float) -> Range:
    """A range for ``sample=`` of a sweep, every order of magnitude of which is as likely.

    Parameters
    ----------
    low, high : float
        Its ends, ``0 < low < high``.

    Examples
    --------
    >>> print(loguniform(1e-4, 1e-1))
    loguniform(0.0001, 0.1)
    """
    return Range(low, high, logarithmic=True)


def combine(
    given: Mapping[str, Any],
    zipped: bool = False,
    sample: int | None = None,
    rng: np.random.Generator | None = None,
) -> list[Settings]:
    """The settings of each run.

    Parameters
    ----------
    given : mapping of str to list, Range or other value
        Hyperparameters. What is a list, a tuple, an array or a range is tried; the rest is fixed,
        and left out of the result.
    zipped : bool
        Take the first of every list, then the second, and so on, instead of the product.
    sample : int, optional
        Draw so many settings at random.
    rng : Generator, optional
        What draws.

    Raises
    ------
    ValueError
        For an empty list, lists of different lengths that are zipped, or a range without
        ``sample``.
    """
    tried = {name: as_values(name, value) for name, value in given.items() if is_tried(value)}
    check_flag("zipped", zipped)
    if sample is not None:
        if zipped:
            raise ValueError(
                f"zipped=True and sample={sample} are both given: settings are drawn at random or "
                "taken in step. Leave one out."
            )
        return _draw(tried, check_count("sample", sample), rng or np.random.default_rng())
    ranges = [f"{name}={value}" for name, value in tried.items() if isinstance(value, Range)]
    if ranges:
        raise ValueError(
            f"{', '.join(ranges)} is given without sample=: from a range settings are drawn. Give "
            "sample=32, say, or a list."
        )
    lists = {name: value for name, value in tried.items() if not isinstance(value, Range)}
    if zipped:
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(
                f"zipped=True with lists of different lengths: {text}. Lists that are taken in "
                "step are equally long. Give them so, or leave zipped out."
            )
        ways: Any = zip(*lists.values(), strict=True) if lists else [()]
    else:
        ways = itertools.product(*lists.values())
    return [dict(zip(lists, way, strict=True)) for way in ways]


def is_tried(value: Any) -> bool:
    """Whether a value stands for several."""
    return isinstance(value, list | tuple | Range) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    )


def as_values(name: str, value: Any) -> list[Any] | Range:
    """The values of a list, as Python's own."""
    if isinstance(value, Range):
        return value
    values = [v.item() if isinstance(v, np.generic) else v for v in value]
    if not values:
        raise ValueError(f"{name} is empty: a sweep tries one value at least. Give some.")
    for index, one in enumerate(values):
        if any(type(one) is type(other) and one == other for other in values[:index]):
            raise ValueError(
                f"{name} has {shown(one)} twice: each value is tried once. Leave one out."
            )
    return values


def _draw(
    tried: Mapping[str, list[Any] | Range], count: int, rng: np.random.Generator
) -> list[Settings]:
    if not tried:
        raise ValueError(
            f"sample={count} is given, and no range or list to draw from. Give some, as "
            "learning_rate=loguniform(1e-4, 1e-1)."
        )

    def draw(values: list[Any] | Range) -> Any:
        if isinstance(values, Range):
            return values.draw(rng)
        return values[int(rng.integers(len(values)))]

    return [{name: draw(values) for name, values in tried.items()} for _ in range(count)]


def as_seeds(seeds: Any) -> list[int]:
    """The seeds that are asked for: so many from 0, or these."""
    if seeds is None:
        return []
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        return list(range(check_count("seeds", seeds)))
    if not isinstance(seeds, Sequence | np.ndarray | range) or isinstance(seeds, str):
        raise TypeError(f"seeds is {shown(seeds)}: it takes a count or a list of ints. Give one.")
    given = as_values("seeds", list(seeds))
    assert isinstance(given, list)
    for seed in given:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise TypeError(f"seeds has {shown(seed)}: a seed is an int of at least 0. Give one.")
    return given


# What makes the parameters that a seed starts with, or what they are for each seed.
Start = Callable[[np.random.Generator], Any] | Mapping[int, Any]
