"""One call of ``iterate``: its limits, its progress and its best."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from downhill_rms.dataset import BoundDataset
from downhill_rms.monitors import Values
from downhill_rms.parameters import Arrays
from downhill_rms.stopping import Patience, StopReason

# The keywords of ``iterate`` that are no hyperparameters.
OPTIONS = (
    *("train", "valid", "max_updates", "max_epochs", "validate_every", "patience"),
    *("min_improvement", "restore_best", "batch_size"),
)


@dataclass(frozen=True)
class Best:
    """The best validation of a run.

    Attributes
    ----------
    loss : float
        Its loss.
    epoch, update : int
        The trainer's counts when it was made.
    monitors : dict of str to float
        All its monitors.
    params : dict of str to ndarray
        Copies of the parameters' values, by name.
    """

    loss: float
    epoch: int
    update: int
    monitors: Values
    params: Arrays


@dataclass
class Run:
    """What one call of ``iterate`` was asked for, and how far it has come.

    Attributes
    ----------
    train, valid : BoundDataset
        The data.
    patience : Patience
        Judge of the validations.
    max_updates, max_epochs : int or None
        Limits of this run.
    validate_every : int
        Epochs from one validation to the next.
    restore_best : bool
        Whether the best parameters are left in place.
    updates, epochs : int
        Progress of this run.
    """

    train: BoundDataset
    valid: BoundDataset
    patience: Patience
    max_updates: int | None
    max_epochs: int | None
    validate_every: int
    restore_best: bool
    updates: int = 0
    epochs: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        for name in ("max_updates", "max_epochs", "validate_every"):
            value = getattr(self, name)
            if value is None and name != "validate_every":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name} is an integer of at least 1: received {value!r}. Give one."
                )

    @property
    def seconds(self) -> float:
        """Wall time since the run began."""
        return time.perf_counter() - self.started

    @property
    def out_of_updates(self) -> bool:
        """Whether the update limit is reached."""
        return self.max_updates is not None and self.updates >= self.max_updates

    def after_epoch(self, train_loss: float) -> StopReason | None:
        """Why the run ends with this epoch, as far as that is known without validating."""
        if not math.isfinite(train_loss):
            return StopReason.DIVERGED
        if self.out_of_updates:
            return StopReason.MAX_UPDATES
        if self.max_epochs is not None and self.epochs >= self.max_epochs:
            return StopReason.MAX_EPOCHS
        return None

    def after_validation(self, valid_loss: float) -> StopReason | None:
        """Why the run ends with this validation."""
        if not math.isfinite(valid_loss):
            return StopReason.DIVERGED
        return StopReason.PATIENCE if self.patience.exhausted else None
