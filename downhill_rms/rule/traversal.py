"""Walk through a graph, and name what stands in it."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from pytensor.graph.basic import Constant
from pytensor.graph.traversal import walk
from pytensor.tensor.elemwise import DimShuffle

LABEL = 40  # characters that describe an expression without a name


def variables_in_order(outputs: Sequence[Any]) -> list[Any]:
    """All variables behind ``outputs``, in the order in which a reader meets them."""

    def arguments(variable: Any) -> Any:
        return reversed(variable.owner.inputs) if variable.owner is not None else None

    return list(walk(list(reversed(outputs)), arguments, bfs=False))


def describe(variable: Any) -> str:
    """Name a variable and its type for an error message."""
    name = getattr(variable, "name", None)
    kind = getattr(variable, "type", type(variable).__name__)
    return f"{name!r} ({kind})" if name else f"an unnamed variable ({kind})"


def nodes_in_order(outputs: Sequence[Any]) -> list[Any]:
    """All operations behind ``outputs``, in the order in which a reader meets their results."""
    owners = (variable.owner for variable in variables_in_order(outputs))
    return list(dict.fromkeys(node for node in owners if node is not None))


def warn(text: str) -> None:
    """Issue a UserWarning at the line of the user's own that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def label(variable: Any, depth: int = 2) -> str:
    """A name, or a short expression."""
    variable = without_dimensions(variable)
    if variable.name:
        return str(variable.name)
    if isinstance(variable, Constant):
        return str(variable.data) if np.ndim(variable.data) == 0 else "an array"
    if variable.owner is None or depth == 0:
        return "..." if variable.owner else "unnamed"
    text = ", ".join(label(operand, depth - 1) for operand in variable.owner.inputs)
    return f"{operation_name(variable.owner.op)}({text if len(text) < LABEL else '...'})"


def operation_name(op: Any) -> str:
    """What an operation is called, without its own parameters."""
    op = getattr(op, "core_op", op)
    return re.sub(r"(_rv)?{.*", "", str(op))


def without_dimensions(variable: Any) -> Any:
    """The variable itself, behind the dimensions that broadcasting has added to it."""
    while variable.owner is not None and isinstance(variable.owner.op, DimShuffle):
        variable = variable.owner.inputs[0]
    return variable
