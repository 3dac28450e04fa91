"""The test of a learning rate's range: the loss while the rate rises from update to update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.data import as_dataset
from downhill_rms.rule import check_count, check_number
from downhill_rms.training import uninterrupted

if TYPE_CHECKING:
    from downhill_rms.trainer import Trainer

WORSE = 4.0  # times the fall so far, above the least loss: then the rate is too high
SMOOTHING = 0.9  # weight of what was, in the running mean of the loss
SAFETY = 10.0  # the suggestion is so many times below the rate of the least loss


@dataclass(frozen=True)
class RateTest:
    """What a test of the learning rate's range found.

    Attributes
    ----------
    rates : ndarray, shape (n,)
        The learning rate of each update.
    losses : ndarray, shape (n,)
        The loss of each update's minibatch, before it.
    smoothed : ndarray, shape (n,)
        Its running mean, without the bias of its start.
    suggestion : float
        A tenth of the rate at which the running mean was least, as the literature has it; NaN if
        the loss never fell.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float


def find_rate(
    trainer: Trainer,
    train: Any = None,
    *,
    low: float = 1e-7,
    high: float = 10.0,
    updates: int = 100,
    batch_size: int | None = None,
    seed: int | np.random.Generator | None = None,
    **hyperparameters: Any,
) -> RateTest:
    """Make updates with a learning rate that rises geometrically, and take everything back.

    It ends early where the loss is not finite, or far above its least.

    Parameters
    ----------
    trainer : Trainer
        The model; its state is afterwards what it was.
    train : Dataset or whatever it accepts
        The data.
    low, high : float
        The first and the last learning rate.
    updates : int
        How many, at least 10.
    batch_size, seed
        As for `Trainer.iterate`.
    **hyperparameters
        The others.

    Returns
    -------
    RateTest

    Raises
    ------
    ValueError
        If the range or the number of updates is none.

    Notes
    -----
    Leslie N. Smith, Cyclical learning rates for training neural networks, 2017, section 3.3.

    Examples
    --------
    >>> import numpy as np, pytensor, pytensor.tensor as pt
    >>> from downhill_rms import Trainer
    >>> x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    >>> trainer = Trainer(((x - w) ** 2).mean(), mode="FAST_COMPILE")
    >>> test = find_rate(trainer, np.ones(64), low=1e-5, high=10, updates=50, seed=0)
    >>> 1e-5 < test.suggestion < 1
    True
    """
    low = check_number("low", low, 0, open_low=True)
    high = check_number("high", high, low, open_low=True)
    if check_count("updates", updates) < 10:
        raise ValueError(f"updates is {updates}: a range has 10 at least. Give more.")
    trainer.steps.changed({**hyperparameters, "learning_rate": low})  # a typo shows at once
    data = as_dataset(train, "train", batch_size, seed=seed)
    bound = trainer.steps.bind(data, train=True, finite=True)
    rates = np.geomspace(low, high, updates)
    before, former = trainer.state_dict(), trainer.hyperparameters
    losses: list[float] = []
    means: list[float] = []
    try:
        batches = _batches(bound, trainer.epoch_count)
        for rate in rates:
            trainer.steps.use({**hyperparameters, "learning_rate": float(rate)}, 1)
            loss = float(uninterrupted(trainer.steps.update, next(batches))[0])
            if not math.isfinite(loss):
                break
            losses.append(loss)
            weights = SMOOTHING ** np.arange(len(losses))[::-1]
            means.append(float(weights @ losses / weights.sum()))
            if means[-1] > min(means) + WORSE * max(means[0] - min(means), abs(means[0]) / 4):
                break
    finally:
        trainer.steps.use(dict(former))  # a schedule, which a state does not hold, among them
        trainer.loop.load_state_dict(before)
    count = len(losses)
    lowest = int(np.argmin(means))
    fell = means[lowest] < means[0]
    suggestion = float(rates[lowest] / SAFETY) if fell else math.nan
    return RateTest(rates[:count], np.array(losses), np.array(means), suggestion)


def _batches(bound: Any, epoch: int) -> Any:
    while True:
        bound.begin_epoch(epoch)
        for batch, _ in bound.epoch():
            yield batch
