"""When to stop: patience, and the reasons for which a run ends."""

from __future__ import annotations

import math
from enum import StrEnum

from downhill_rms.rule import check_flag, check_number


class StopReason(StrEnum):
    """Why the last run ended.

    Examples
    --------
    >>> StopReason.PATIENCE == "patience"
    True
    """

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
    OBSERVER = "observer"
    """An observer returned this reason."""
    HALVED = "halved"
    """In a sweep that keeps the better half of its runs, this one was in the other."""
    ABANDONED = "abandoned"
    """The consumer of ``iterate`` left its loop."""
    ERROR = "error"
    """An exception, which went on to the caller."""


class Patience:
    """Count validations that bring no improvement.

    A validation is an improvement when ``best - value > min_improvement * abs(best)``, or
    ``value - best`` where higher is better: right for negative values too. The first finite value
    always is one; NaN and infinity never are.

    Parameters
    ----------
    patience : float
        Failures in a row that are borne; ``math.inf`` never stops.
    min_improvement : float
        Relative improvement that counts, at least 0.
    monitor : str
        The monitor whose value is judged.
    higher_is_better : bool
        Whether it is to rise, as an accuracy is.

    Attributes
    ----------
    best_value : float
        The best value so far; NaN before the first finite one.
    failures : int
        Validations in a row without improvement.
    """

    def __init__(
        self,
        patience: float = 5,
        min_improvement: float = 0.0,
        monitor: str = "loss",
        higher_is_better: bool = False,
    ) -> None:
        self.patience = check_number("patience", patience, closed_high=True)
        self.min_improvement = check_number("min_improvement", min_improvement)
        self.monitor = monitor
        self.higher_is_better = check_flag("higher_is_better", higher_is_better)
        self.best_value = math.nan
        self.failures = 0

    def improves(self, value: float) -> bool:
        """Take note of a validation; True if it is the best so far."""
        best = self.best_value
        gain = value - best if self.higher_is_better else best - value
        improved = math.isfinite(value) and (
            math.isnan(best) or gain > self.min_improvement * abs(best)
        )
        if improved:
            self.best_value = value
            self.failures = 0
        else:
            self.failures += 1
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether more validations in a row have failed than ``patience`` bears."""
        return self.failures > self.patience
