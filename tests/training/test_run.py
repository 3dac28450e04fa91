"""Limits of a run, in the order in which they decide."""

import math

import pytest

from downhill_rms.training.run import Run
from downhill_rms.training.stopping import Patience, StopReason


def make(max_updates=None, max_epochs=None, patience=0, **progress):
    return Run(None, None, Patience(patience), max_updates, max_epochs, 10, True, **progress)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (make(), None),
        (make(max_updates=5, updates=4), None),
        (make(max_updates=5, updates=5), StopReason.MAX_UPDATES),
        (make(max_epochs=2, epochs=2), StopReason.MAX_EPOCHS),
        (make(5, 2, updates=5, epochs=2), StopReason.MAX_UPDATES),
    ],
)
def test_limits(run, reason):
    assert run.limit_reached() is reason


def test_after_a_validation():
    run = make(patience=0, latest={"loss": 1.0})
    assert run.after_validation() is None
    run.patience.improves(1.0)
    run.patience.improves(1.0)
    assert run.after_validation() is StopReason.PATIENCE
    run.latest = {"loss": math.nan}
    assert run.after_validation() is StopReason.DIVERGED
    assert str(StopReason.PATIENCE) == "patience"


def test_progress_of_an_epoch():
    run = make()
    run.train = FakeEpoch()
    assert list(run.open_epoch(["loss"])) == [0]
    run.count([3.0], 2)
    assert list(run.open_epoch(["loss"])) == [1]
    run.count([6.0], 1)
    assert run.close_epoch() == {"loss": 4.0}
    assert (run.updates, run.batches, run.epochs, run.means) == (2, 0, 1, None)


class FakeEpoch:
    """Training data that only say how much of their epoch was delivered."""

    def epoch(self, delivered, together, limit):
        return iter([delivered])


def test_seconds_go_forward():
    run = make()
    assert 0 <= run.seconds <= run.seconds
