"""Orders of which a window is in memory at a time: every sample once a pass, and a place to keep.

Samples are recognised by their values: the data set holds 0, 1, 2, ... The order itself is that of
`WindowSampler`, without any data; sources that follow it are tested beside.
"""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downhill_rms.data.sampler import Sampler, WindowSampler, order_faults

examples = settings(max_examples=200, deadline=None)
block_lists = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)
windows = st.integers(1, 200)
seeds = st.integers(0, 2**32)


def make(blocks, window, batch_size=5, n_batches=None, shuffle="samples", seed=0):
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype("int64")
    return WindowSampler(
        starts, window, batch_size, n_batches, shuffle, np.random.default_rng(seed)
    )


def visited(selections):
    return [[selection[i] for i in range(len(selection))] for selection in selections]


def flat(batches):
    return [sample for batch in batches for sample in batch]


@examples
@given(
    blocks=block_lists,
    window=windows,
    batch_size=st.integers(-1, 60),
    shuffle=st.sampled_from(["samples", None]),
    seed=seeds,
)
def test_every_sample_once_a_pass(blocks, window, batch_size, shuffle, seed):
    n = sum(blocks)
    sampler = make(blocks, window, batch_size, shuffle=shuffle, seed=seed)
    size = batch_size if 0 < batch_size < n else n
    for _ in range(3):
        batches = visited(sampler.epoch())
        assert sorted(flat(batches)) == list(range(n))
        assert [len(batch) for batch in batches] == [size] * (n // size) + [n % size] * (
            n % size > 0
        )
        if shuffle is None:
            assert flat(batches) == list(range(n))


@examples
@given(
    blocks=block_lists,
    window=windows,
    n_batches=st.integers(1, 20),
    cuts=st.lists(st.integers(1, 25), min_size=1, max_size=6),
    seed=seeds,
)
def test_epochs_of_any_length_cut_anywhere_go_on(blocks, window, n_batches, cuts, seed):
    sampler = make(blocks, window, 5, n_batches, seed=seed)
    seen = []
    for cut in cuts:
        seen += visited(s for _, s in zip(range(cut), sampler.epoch(), strict=False))
    n, pass_size = sum(blocks), sampler.pass_size
    for start in range(0, len(seen), pass_size):
        samples = flat(seen[start : start + pass_size])
        assert len(set(samples)) == len(samples)
        if start + pass_size <= len(seen):
            assert set(samples) == set(range(n))


@examples
@given(blocks=block_lists, window=windows, seed=seeds)
def test_a_window_is_made_of_blocks_that_follow_one_another(blocks, window, seed):
    """What a window holds is told from the samples alone: a few whole blocks, and two in part."""
    sampler = make(blocks, window, 5, seed=seed)
    order = flat(visited(sampler.epoch()))
    block_of = np.repeat(np.arange(len(blocks)), blocks)
    size = sampler.window
    batch_size = min(5, len(order))
    assert size == min(-(-window // batch_size), -(-len(order) // batch_size)) * batch_size
    seen = [set(block_of[order[i : i + size]]) for i in range(0, len(order), size)]
    for block, length in enumerate(blocks):
        places = [number for number, found in enumerate(seen) if block in found]
        if length:
            assert places == list(range(places[0], places[-1] + 1))
            assert len(places) <= -(-length // size) + 1
    for found, following in itertools.pairwise(seen):
        assert len(found & following) <= 1  # the one that is cut


def test_blocks_and_samples_are_both_shuffled():
    orders = []
    for seed in (1, 1, 2):
        sampler = make([100] * 50, 1000, 10, seed=seed)
        orders += [flat(visited(sampler.epoch())), flat(visited(sampler.epoch()))]
    assert orders[:2] == orders[2:4]
    assert orders[0] != orders[1]
    assert orders[0] != orders[4]
    order = np.array(orders[0])
    first = order[:1000]
    blocks = first // 100
    assert len(set(blocks)) == 10
    assert max(blocks) - min(blocks) > 20  # ten in a row of fifty would span nine
    # Within a window, neighbours come from anywhere in it.
    assert len(set(blocks[:10])) > 3
    assert len(set(blocks)) == len(set(first // 100))


def test_a_sample_comes_to_any_place_of_a_pass():
    """Over many passes, a sample's place is spread evenly, as its mean and deviation show."""
    sampler = make([10] * 20, 40, 5)
    places = [flat(visited(sampler.epoch())).index(7) for _ in range(600)]
    assert np.mean(places) == pytest.approx(99.5, abs=4 * 57.7 / np.sqrt(600))
    assert np.std(places) == pytest.approx(57.7, rel=0.1)


@examples
@given(blocks=block_lists, window=windows, together=st.integers(2, 9), seed=seeds)
def test_minibatches_together_are_those_one_by_one(blocks, window, together, seed):
    single, many = (make(blocks, window, 5, 7, seed=seed) for _ in range(2))
    for _ in range(4):
        stacks = visited(many.epoch(together))
        assert flat(stacks) == flat(visited(single.epoch()))
        assert all(len(stack) <= 5 * together for stack in stacks)
        assert all(len(stack) % 5 == 0 or len(stack) < 5 for stack in stacks)


@examples
@given(blocks=block_lists, window=windows, n_batches=st.integers(1, 30), cut=st.integers(0, 9))
def test_in_order_leaves_the_training_order(blocks, window, n_batches, cut):
    seen, undisturbed = (make(blocks, window, 5, n_batches) for _ in range(2))
    for sampler in (seen, undisturbed):
        visited(s for _, s in zip(range(cut), sampler.epoch(), strict=False))
    n = sum(blocks)
    expected = [list(range(i, min(i + 5, n))) for i in range(0, n, 5)]
    found = visited(seen.in_order())
    assert found == [expected[i % len(expected)] for i in range(n_batches)]
    assert visited(seen.epoch()) == visited(undisturbed.epoch())


@examples
@given(
    blocks=block_lists,
    window=windows,
    n_batches=st.none() | st.integers(1, 9),
    shuffle=st.sampled_from(["samples", None]),
    done=st.integers(0, 30),
)
def test_another_order_goes_on_from_a_state(blocks, window, n_batches, shuffle, done):
    a, b = (make(blocks, window, 5, n_batches, shuffle, seed) for seed in (1, 2))
    left = done
    while left > 0:
        left -= len(visited(s for _, s in zip(range(left), a.epoch(), strict=False)))
    state = json.loads(json.dumps(a.state_dict()))  # plain values
    assert order_faults(state) == []
    assert b.check(state) == []
    b.load_state_dict(state)
    for _ in range(2):
        assert visited(a.epoch()) == visited(b.epoch())


def test_a_state_does_not_grow_with_the_data():
    small, large = make([100], 50, 5), make([1000] * 10_000, 500_000, 100)
    for sampler in (small, large):
        next(sampler.epoch())
    sizes = [len(json.dumps(sampler.state_dict())) for sampler in (small, large)]
    assert max(sizes) < 1000


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (make([10, 20, 30], 20), "window is 20 instead of 30"),
        (make([10, 20, 30], 30, 6), "batch_size is 6 instead of 5"),
        (make([10, 20, 31], 30), "n_samples is 61 instead of 60"),
        (make([20, 10, 30], 30), "the blocks that samples are read in, such as row groups"),
        (make([10, 20, 30], 30, shuffle=None), "shuffle is None instead of samples"),
        (Sampler(60, 5, None, "samples", np.random.default_rng(0)), "window is None instead of 30"),
    ],
)
def test_a_state_of_other_data_is_refused(other, fault):
    sampler = make([10, 20, 30], 30)
    next(sampler.epoch())
    assert sampler.check(sampler.state_dict()) == []
    assert [found for found in other.check(sampler.state_dict()) if fault in found]


def test_a_state_without_windows_is_refused():
    plain = Sampler(60, 5, None, "samples", np.random.default_rng(0))
    next(plain.epoch())
    faults = make([10, 20, 30], 30).check(plain.state_dict())
    assert faults[0] == "window is 30 instead of None"


def test_another_shuffling_of_numpy_is_told():
    sampler = make([10, 20, 30], 30)
    next(sampler.epoch())
    state = {**sampler.state_dict(), "order": 1}
    assert sampler.check(state) == ["NumPy shuffles otherwise than the NumPy of then"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"window": 7}, "window is 7"),
        ({"window": 0}, "window is 0"),
        ({"window": 65}, "window is 65"),
        ({"window": "30"}, "window is '30'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**62}, f"seed is {2**62}"),
        ({"order": None}, "order is None"),
        ({"blocks": 1.5}, "blocks is 1.5"),
        ({"shuffle": "batches"}, "window is 30"),
        ({"cursor": 12}, "cursor is 12 of 12"),
        ({"permutation": np.arange(60)}, "permutation is unknown"),
    ],
)
def test_a_damaged_state_is_told(change, fault):
    sampler = make([10, 20, 30], 30)
    next(sampler.epoch())
    assert fault in order_faults({**sampler.state_dict(), **change})


@pytest.mark.parametrize("name", ["blocks", "seed", "order"])
def test_a_state_that_lacks_something_is_told(name):
    state = make([10, 20, 30], 30).state_dict()
    del state[name]
    assert order_faults(state) == [f"{name} is missing"]
