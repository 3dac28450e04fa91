"""Walk through a graph, and name what stands in it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from pytensor.graph.traversal import walk


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
