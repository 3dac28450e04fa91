"""Limits of a run, in the order in which they decide."""

import math

import pytest

from downhill_rms.run import Run
from downhill_rms.stopping import Patience, StopReason


def make(max_updates=None, max_epochs=None, patience=0, **progress):
    return Run(None, None, Patience(patience), max_updates, max_epochs, 10, True, **progress)


@pytest.mark.parametrize(
    ("run", "loss", "reason"),
    [
        (make(), 1.0, None),
        (make(max_updates=5, updates=4), 1.0, None),
        (make(max_updates=5, updates=5), 1.0, StopReason.MAX_UPDATES),
        (make(max_epochs=2, epochs=2), 1.0, StopReason.MAX_EPOCHS),
        (make(5, 2, updates=5, epochs=2), 1.0, StopReason.MAX_UPDATES),
        (make(5, 2, updates=5, epochs=2), math.nan, StopReason.DIVERGED),
        (make(), -math.inf, StopReason.DIVERGED),
    ],
)
def test_after_an_epoch(run, loss, reason):
    assert run.after_epoch(loss) is reason


def test_after_a_validation():
    run = make(patience=0)
    assert run.after_validation(1.0) is None
    run.patience.improves(1.0)
    run.patience.improves(1.0)
    assert run.after_validation(1.0) is StopReason.PATIENCE
    assert run.after_validation(math.nan) is StopReason.DIVERGED
    assert str(StopReason.PATIENCE) == "patience"


def test_seconds_go_forward():
    run = make()
    assert 0 <= run.seconds <= run.seconds
