"""Lower the learning rate where validations no longer improve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from downhill_rms.rule import Hyperparameters, check_count, check_number, shown
from downhill_rms.training.stopping import Patience
from downhill_rms.watching import Record


class Adjustable(Protocol):
    """What a learning rate is read from and set in: a `Trainer`."""

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Those in force."""

    def set_hyperparameters(self, *, learning_rate: float) -> None:
        """Change the learning rate."""


def reduce_on_plateau(
    trainer: Adjustable,
    factor: float = 0.1,
    patience: float = 2,
    *,
    min_improvement: float = 1e-4,
    monitor: str = "loss",
    higher_is_better: bool = False,
    cooldown: int = 0,
    min_learning_rate: float = 0.0,
) -> Callable[[Record], None]:
    """Make an observer that lowers the learning rate when validations stop improving.

    Parameters
    ----------
    trainer : Trainer
        The trainer that it is given to: ``iterate(..., observers=[reduce_on_plateau(trainer)])``.
    factor : float
        What the learning rate is multiplied by, between 0 and 1.
    patience : float
        Validations in a row without improvement that are borne. Keep it below that of the run,
        which otherwise ends first.
    min_improvement, monitor, higher_is_better
        What counts as an improvement, as for ``Trainer.iterate``.
    cooldown : int
        Validations after a reduction that are not counted.
    min_learning_rate : float
        What the learning rate does not fall below.

    Returns
    -------
    callable
        An observer. What it has counted is no part of a checkpoint, as the learning rate is: a
        run that is taken up counts anew.

    Raises
    ------
    TypeError
        For what is no number.
    ValueError
        For a number out of its range, or a learning rate that is not a number: a schedule sets
        itself.

    Notes
    -----
    It is torch's ``ReduceLROnPlateau`` with its relative threshold.

    Examples
    --------
    >>> import numpy as np, pytensor, pytensor.tensor as pt
    >>> from downhill_rms import Trainer
    >>> x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    >>> trainer = Trainer(pt.sqr(x - w).mean(), mode="FAST_COMPILE")
    >>> options = {"max_epochs": 40, "patience": 20, "validate_every": 1, "learning_rate": 0.1}
    >>> observers = [reduce_on_plateau(trainer, factor=0.5)]
    >>> _ = trainer.minimize([np.ones(64)], observers=observers, **options)
    >>> trainer.hyperparameters.learning_rate < 0.1
    True
    """
    check_number("factor", factor, 0, 1, open_low=True)
    check_count("cooldown", cooldown, 0)
    check_number("min_learning_rate", min_learning_rate)
    judge = Patience(patience, min_improvement, monitor, higher_is_better)
    left = 0  # of the cooldown

    def observe(record: Record) -> None:
        nonlocal left
        if not record.validated:
            return
        if monitor not in record.valid:
            raise ValueError(
                f"monitor={monitor!r} is none of this trainer's: {', '.join(record.valid)}. Name "
                "one of these."
            )
        judge.improves(record.valid[monitor])
        if left:
            left, judge.failures = left - 1, 0
        if judge.exhausted:
            learning_rate = trainer.hyperparameters.learning_rate
            if not isinstance(learning_rate, float):
                raise ValueError(
                    f"learning_rate is {shown(learning_rate)}: one that is reduced is a number. "
                    "Give one, or leave reduce_on_plateau out."
                )
            trainer.set_hyperparameters(
                learning_rate=max(factor * learning_rate, min_learning_rate)
            )
            left, judge.failures = cooldown, 0

    return observe
