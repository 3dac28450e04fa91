"""When to stop: patience, and the reasons for which a run ends."""

from __future__ import annotations

import math
from enum import StrEnum


class StopReason(StrEnum):
    """Why the last run ended."""

    PATIENCE = "patience"
    """More than ``patience`` validations in a row brought no improvement."""
    MAX_UPDATES = "max_updates"
    """The update limit was reached."""
    MAX_EPOCHS = "max_epochs"
    """The epoch limit was reached."""
    DIVERGED = "diverged"
    """The loss became NaN or infinite."""
    INTERRUPTED = "interrupted"
    """Ctrl-C."""
    TERMINATED = "terminated"
    """SIGTERM."""
    ABANDONED = "abandoned"
    """The consumer of ``iterate`` left its loop."""
    ERROR = "error"
    """An exception, which went on to the caller."""


class Patience:
    """Count validations that bring no improvement.

    A validation loss is an improvement when ``best - loss > min_improvement * abs(best)``: right
    for negative losses too. The first finite loss always is one; NaN and infinity never are.

    Parameters
    ----------
    patience : float
        Failures in a row that are borne; ``math.inf`` never stops.
    min_improvement : float
        Relative improvement that counts, at least 0.

    Attributes
    ----------
    best_loss : float
        The best loss so far; NaN before the first finite one.
    failures : int
        Validations in a row without improvement.
    """

    def __init__(self, patience: float = 5, min_improvement: float = 0.0) -> None:
        for name, value in (("patience", patience), ("min_improvement", min_improvement)):
            if isinstance(value, bool) or not value >= 0:
                raise ValueError(f"{name} is a number of at least 0: received {value!r}. Give one.")
        self.patience = patience
        self.min_improvement = min_improvement
        self.best_loss = math.nan
        self.failures = 0

    def improves(self, loss: float) -> bool:
        """Take note of a validation loss; True if it is the best so far."""
        best = self.best_loss
        improved = math.isfinite(loss) and (
            math.isnan(best) or best - loss > self.min_improvement * abs(best)
        )
        if improved:
            self.best_loss = loss
            self.failures = 0
        else:
            self.failures += 1
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether more validations in a row have failed than ``patience`` bears."""
        return self.failures > self.patience
