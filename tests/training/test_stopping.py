"""Patience, in plain numbers."""

import math

import pytest

from downhill_rms.training.stopping import Patience


def verdicts(losses, **options):
    patience = Patience(**options)
    return [patience.improves(loss) for loss in losses]


def test_first_finite_loss_is_the_best():
    assert verdicts([5.0, 6.0, 4.0]) == [True, False, True]


def test_nan_and_infinity_never_improve():
    assert verdicts([math.nan, math.inf, 3.0, math.nan, -math.inf, 2.0]) == [
        *[False, False, True, False, False, True]
    ]


def test_negative_losses_improve_downwards():
    """downhill took -10 -> -9.5 for an improvement of 1 %, since it compared with best * 0.01."""
    assert verdicts([-10.0, -9.95, -10.05, -10.2], min_improvement=0.01) == [
        *[True, False, False, True]
    ]


def test_relative_improvement_of_positive_losses():
    assert verdicts([10.0, 9.95, 9.89], min_improvement=0.01) == [True, False, True]


def test_equal_is_no_improvement():
    assert verdicts([0.0, 0.0, -1e-300]) == [True, False, True]


def test_exhausted_after_more_than_patience_failures_in_a_row():
    patience = Patience(2)
    seen = []
    for loss in [3.0, 4.0, 4.0, 2.0, 4.0, 4.0, 4.0]:
        patience.improves(loss)
        seen.append(patience.exhausted)
    assert seen == [False] * 6 + [True]


def test_no_patience_stops_at_the_first_failure():
    patience = Patience(0)
    assert patience.improves(1.0)
    assert not patience.exhausted
    assert not patience.improves(1.0)
    assert patience.exhausted


def test_infinite_patience():
    patience = Patience(math.inf)
    for _ in range(1000):
        patience.improves(1.0)
    assert not patience.exhausted


@pytest.mark.parametrize(
    "options", [{"patience": -1}, {"min_improvement": -0.1}, {"patience": math.nan}]
)
def test_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*: it lies in"):
        Patience(**options)
