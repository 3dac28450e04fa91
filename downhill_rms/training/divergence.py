"""Tell what is not finite, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse


def explain_infinite(arrays: Mapping[str, Any]) -> str:
    """Say why an expression may be NaN or infinite, and what to do.

    Parameters
    ----------
    arrays : mapping of str to array
        What it is computed from, by description.

    Returns
    -------
    str
        A sentence without its full stop.
    """
    guilty = [describe_infinite(name, array) for name, array in arrays.items()]
    if found := ", ".join(filter(None, guilty)):
        return f"{found}: clean the data or change the initial values"
    return (
        "Inputs and parameters are finite: look for a logarithm or division of 0, or an "
        "overflow, in the loss"
    )


def describe_infinite(name: str, array: Any) -> str:
    """Say how many values of an array are NaN or infinite; the empty string for none."""
    values = array.data if scipy.sparse.issparse(array) else np.asarray(array)
    if values.dtype.kind not in "fc":
        return ""
    count = int(values.size - np.isfinite(values).sum())
    return f"{count} of {values.size} values of {name} are not finite" if count else ""


@dataclass(frozen=True)
class Divergence:
    """What was not finite when a run diverged.

    Attributes
    ----------
    update : int
        The trainer's update count: the update that saw it, 1 for the first.
    found : tuple of str
        Descriptions with numbers of values: monitors of the minibatch (before the update), inputs,
        then accumulators, parameters and assigned variables (after it).
    batch : int or None
        The place of its minibatch in the epoch, from 0; None where the loss was not looked at for
        each.
    """

    update: int
    found: tuple[str, ...]
    batch: int | None = None

    def __str__(self) -> str:
        place = "" if self.batch is None else f", batch {self.batch} of its epoch"
        return f"training diverged at update {self.update}{place}: {'; '.join(self.found)}"


class DivergenceError(ValueError):
    """Training diverged, and ``on_divergence="raise"`` was asked for."""


def find_infinite(values: Mapping[str, float], arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """Describe which monitors and which arrays are not finite, in their order."""
    monitors = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    described = (describe_infinite(name, array) for name, array in arrays.items())
    return tuple(monitors + [text for text in described if text])
