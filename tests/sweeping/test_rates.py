"""The test of a learning rate's range leaves no trace."""

import numpy as np
import pytest
from downhill_rms.schedules import cosine

from downhill_rms.sweeping import find_rate
from tests.sweeping.models import TRAIN, assert_same_state, regression


def test_the_suggestion_is_below_where_the_loss_rises_and_nothing_stays():
    trainer = regression(dropout=True)
    trainer.minimize(TRAIN, learning_rate=1e-3, max_epochs=1, seed=0)
    before = trainer.state_dict()
    found = find_rate(trainer, TRAIN, low=1e-5, high=1e3, updates=80, seed=0)
    assert_same_state(trainer.state_dict(), before)
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 80
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(1e8) / 79)
    assert found.suggestion == pytest.approx(found.rates[found.smoothed.argmin()] / 10)
    assert 1e-3 < found.suggestion < 1


def test_a_schedule_is_in_force_again():
    trainer = regression()
    schedule = cosine(0.1, 50)
    trainer.set_hyperparameters(learning_rate=schedule)
    find_rate(trainer, TRAIN, updates=10)
    assert trainer.hyperparameters.learning_rate == schedule


@pytest.mark.parametrize("given", [{"low": 0}, {"low": 1, "high": 0.1}, {"updates": 3}, {"mom": 1}])
def test_no_range(given):
    with pytest.raises((TypeError, ValueError)):
        find_rate(regression(), TRAIN, **given)
