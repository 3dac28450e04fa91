"""Tell what is not finite, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse


def refuse_infinite_loss(loss: float, arrays: Mapping[str, Any], where: str) -> None:
    """Raise if a loss is NaN or infinite before anything has been learnt.

    Parameters
    ----------
    loss : float
        The loss.
    arrays : mapping of str to array
        What it was computed from, by description.
    where : str
        What it was computed on.

    Raises
    ------
    ValueError
        With the arrays that are not finite.
    """
    if math.isfinite(loss):
        return
    guilty = [describe_infinite(name, array) for name, array in arrays.items()]
    found = ", ".join(filter(None, guilty))
    if found:
        advice = f"{found}: clean the data or change the initial values"
    else:
        advice = (
            "Inputs and parameters are finite: look for a logarithm or division of 0, or an "
            "overflow, in the loss"
        )
    raise ValueError(f"A loss is finite before training starts: it is {loss} on {where}. {advice}.")


def describe_infinite(name: str, array: Any) -> str:
    """Say how many values of an array are NaN or infinite; the empty string for none."""
    values = array.data if scipy.sparse.issparse(array) else np.asarray(array)
    if values.dtype.kind not in "fc":
        return ""
    count = int(values.size - np.isfinite(values).sum())
    return f"{count} of {values.size} values of {name} are not finite" if count else ""
