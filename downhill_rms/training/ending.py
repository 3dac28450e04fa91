"""The end of a run: each part of it is done, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def do_each(*actions: Callable[[], Any]) -> None:
    """Do one after the other, those after one that fails too.

    Raises
    ------
    BaseException
        The first that was raised, when all is done; the others are in its notes.
    """
    errors: list[BaseException] = []
    for act in actions:
        try:
            act()
        except BaseException as error:
            errors.append(error)
    if errors:
        first, *others = errors
        for other in others:
            first.add_note(f"Then failed, too: {type(other).__name__}: {other}")
        raise first
