"""What each of several processes takes of a minibatch: together they take all of it, once."""

import numpy as np
import pytest

from downhill_rms import Dataset
from downhill_rms.data.sources import InputSpec
from tests.data.test_sources import Sliceable

X = np.arange(4.0 * 103).reshape(103, 4)
SPECS = [InputSpec("x", "float64", 2)]


class Half:
    """The feed of one of two processes, whose arrays stay where they are."""

    processes = 2

    def __init__(self, number):
        self.number = number

    def rows(self, samples):
        if samples % 2:
            return slice(0, samples)
        return slice(self.number * samples // 2, (self.number + 1) * samples // 2)

    def place(self, own, samples, axis):
        return own


def epoch(make, feed, together, in_order=False):
    bound = make().bind(SPECS)
    bound.feed = feed
    return list(bound.in_order() if in_order else bound.epoch(0, together))


DATA = {
    "samples": lambda: Dataset(X, batch_size=16, rng=0),
    "batches": lambda: Dataset(X, batch_size=16, rng=0, shuffle="batches"),
    "in order": lambda: Dataset(X, batch_size=16, shuffle=None),
    "prefetched": lambda: Dataset(X, batch_size=16, rng=0, prefetch=3),
    "on disk": lambda: Dataset(Sliceable(X), batch_size=16, rng=0),
    "windows": lambda: Dataset(Sliceable(X), batch_size=16, rng=0, window=48),
    "a list": lambda: Dataset([[X[:16]], [X[16:32]], [X[32:47]]]),
}


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("data", DATA)
def test_the_parts_of_all_processes_are_the_minibatch(data, together):
    whole = epoch(DATA[data], None, together)
    first, second = (epoch(DATA[data], Half(number), together) for number in range(2))
    assert len(whole) == len(first) == len(second)
    axis = int(together > 1)
    for (batch, samples), (one, n), (other, m) in zip(whole, first, second, strict=True):
        assert samples == n == m
        parts = [one[0]] if samples % 2 else [one[0], other[0]]
        np.testing.assert_array_equal(np.concatenate(parts, axis=axis), batch[0])


@pytest.mark.parametrize("data", DATA)
def test_validation_is_divided_alike(data):
    whole = epoch(DATA[data], None, 1, in_order=True)
    first, second = (epoch(DATA[data], Half(number), 1, in_order=True) for number in range(2))
    for (batch, samples), (one, _), (other, _) in zip(whole, first, second, strict=True):
        parts = [one[0]] if samples % 2 else [one[0], other[0]]
        np.testing.assert_array_equal(np.concatenate(parts), batch[0])


def test_parts_of_ones_own_count_for_all_processes():
    bound = Dataset([[X[:8]], [X[8:16]]], local=True).bind(SPECS)
    bound.feed = Half(1)
    (batch, samples), _ = bound.epoch()
    assert samples == 16
    np.testing.assert_array_equal(batch[0], X[:8])
