"""Keywords that a call does not know, and those that were meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def refuse_unknown(keywords: Iterable[str], known: Sequence[str]) -> None:
    """Raise a TypeError that names the nearest known keyword for the first unknown one."""
    for keyword in keywords:
        if keyword not in known:
            nearest = difflib.get_close_matches(keyword, known, n=1, cutoff=0.5)
            hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Known: {', '.join(known)}."
            raise TypeError(f"Unknown keyword {keyword!r}. {hint}")
