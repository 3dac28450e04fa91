"""Minibatches that are delivered in stacks are those that are delivered one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downhill_rms.data.dataset import Dataset

examples = settings(max_examples=300, deadline=None)
shuffles = st.sampled_from(["samples", "batches", None])


def numbered(n, **options):
    return Dataset([np.arange(n), np.arange(3 * n).reshape(n, 3)], **options).bind(None)


def one_by_one(bound):
    return [([a.tolist() for a in batch], samples) for batch, samples in bound.epoch()]


def unstacked(stacks):
    """The minibatches that are in the stacks, with their numbers of samples."""
    return [
        ([array[index].tolist() for array in batch], samples)
        for batch, samples in stacks
        for index in range(len(batch[0]))
    ]


@examples
@given(
    n=st.integers(1, 60),
    batch_size=st.integers(0, 20),
    iteration_size=st.none() | st.integers(1, 30),
    shuffle=shuffles,
    together=st.integers(2, 70),
    prefetch=st.sampled_from([0, 0, 0, 2]),
)
def test_the_same_minibatches_in_the_same_order(
    n, batch_size, iteration_size, shuffle, together, prefetch
):
    options = {"batch_size": batch_size, "iteration_size": iteration_size, "rng": 0}
    single = numbered(n, shuffle=shuffle, **options)
    many = numbered(n, shuffle=shuffle, prefetch=prefetch, **options)
    for _ in range(3):
        stacks = list(many.epoch(together=together))
        assert unstacked(stacks) == one_by_one(single)
        assert all(len(batch[0]) <= together for batch, _ in stacks)
        assert all(array.flags.c_contiguous for batch, _ in stacks for array in batch)


@examples
@given(n=st.integers(1, 40), shuffle=shuffles, together=st.integers(2, 9), cut=st.integers(1, 9))
def test_the_order_stands_behind_the_stack_in_hand(n, shuffle, together, cut):
    single, many = (numbered(n, batch_size=3, shuffle=shuffle, rng=0) for _ in range(2))
    seen = []
    for _, stack in zip(range(cut), many.epoch(together=together), strict=False):
        seen += unstacked([stack])
    rest = [] if many.sampler.position == 0 else one_by_one(many)
    assert seen + rest == one_by_one(single)


@pytest.mark.parametrize("limit", range(1, 9))
def test_none_are_taken_together_beyond_the_limit(limit):
    sizes = [len(batch[0]) for batch, _ in numbered(32, batch_size=4).epoch(0, 3, limit)]
    assert limit in np.cumsum(sizes)


def test_stacks_are_as_large_as_they_may_be():
    bound = numbered(47, batch_size=5)
    shapes = [batch[1].shape for batch, _ in bound.epoch(together=4)]
    assert shapes == [(4, 5, 3), (4, 5, 3), (1, 5, 3), (1, 2, 3)]


def test_samples_along_another_axis():
    data = np.arange(60).reshape(3, 10, 2)
    stacks = list(Dataset(data, batch_size=4, axis=1, shuffle=None).bind(None).epoch(together=9))
    assert [batch[0].shape for batch, _ in stacks] == [(2, 3, 4, 2), (1, 3, 2, 2)]
    np.testing.assert_array_equal(stacks[0][0][0][1], data[:, 4:8])
    assert stacks[0][0][0].flags.c_contiguous


READY = [[np.full(size, index)] for index, size in enumerate((4, 4, 3, 3, 3, 4))]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_ready_batches_are_stacked_where_their_shapes_agree(prefetch):
    data = Dataset(READY, prefetch=prefetch)
    stacks = list(data.bind(None).epoch(together=4))
    assert [(batch[0].shape, samples) for batch, samples in stacks] == [
        *[((2, 4), 4), ((2, 3), 3), ((1, 3), 3), ((1, 4), 4)],
    ]
    assert unstacked(stacks) == one_by_one(data.bind(None))


def test_no_more_is_asked_of_a_callable_than_the_limit():
    asked = []

    def read():
        asked.append(len(asked))
        return [np.zeros(2)]

    stacks = Dataset(read, iteration_size=20).bind(None).epoch(together=4, limit=6)
    assert [len(next(stacks)[0][0]) for _ in range(2)] == [4, 2]
    assert len(asked) == 6
