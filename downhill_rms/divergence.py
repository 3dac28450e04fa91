"""Tell what is not finite, and where."""

from __future__ import annotations

from collections.abc import Mapping
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
