"""The order in which samples are visited, what counts as an epoch, and what is refused.

Samples are recognised by their values: the data set holds 0, 1, 2, ...
"""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downhill_rms.data.dataset import Dataset, as_dataset
from downhill_rms.data.sources import InputSpec

SHUFFLES = ["samples", "batches", None]
VECTOR = InputSpec("x", "float64", 1)

lengths = st.integers(1, 80)
batch_sizes = st.integers(-2, 100)
shuffles = st.sampled_from(SHUFFLES)
seeds = st.integers(0, 2**32)
examples = settings(max_examples=200, deadline=None)


def numbered(n, *args, **kwargs):
    return Dataset(np.arange(n), *args, **kwargs)


def take(bound, count=None):
    """The first minibatches of an epoch, as lists of sample numbers."""
    return [batch[0].tolist() for batch, _ in islice(bound.epoch(), count)]


def flat(batches):
    return [sample for batch in batches for sample in batch]


def expected_sizes(n, batch_size):
    """Sizes of the minibatches of one pass, the short one last."""
    if batch_size <= 0:
        return [n]
    return [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)


@examples
@given(n=lengths, batch_size=batch_sizes, shuffle=shuffles, seed=seeds)
def test_every_sample_once_an_epoch(n, batch_size, shuffle, seed):
    dataset = numbered(n, batch_size=batch_size, rng=seed, shuffle=shuffle)
    bound, sizes = dataset.bind(None), expected_sizes(n, batch_size)
    assert len(dataset) == len(sizes)
    for _ in range(3):
        batches = take(bound)
        assert sorted(flat(batches)) == list(range(n))
        if shuffle == "batches":  # the short one comes where the permutation puts it
            assert sorted(map(len, batches)) == sorted(sizes)
        else:
            assert [len(batch) for batch in batches] == sizes


@examples
@given(
    n=lengths,
    batch_size=batch_sizes,
    iteration_size=st.none() | st.integers(1, 20),
    shuffle=shuffles,
    seed=seeds,
    cuts=st.lists(st.integers(1, 25), min_size=1, max_size=8),
)
def test_epochs_cut_anywhere_go_on(n, batch_size, iteration_size, shuffle, seed, cuts):
    """Whatever an epoch's length and wherever it is left, every pass visits each sample once."""
    dataset = numbered(n, None, batch_size, iteration_size, rng=seed, shuffle=shuffle)
    bound, pass_size = dataset.bind(None), len(expected_sizes(n, batch_size))
    epoch_size = iteration_size or pass_size
    assert len(dataset) == epoch_size
    visited = []
    for cut in cuts:
        left = epoch_size - len(visited) % epoch_size
        batches = take(bound, cut)
        assert len(batches) == min(cut, left)
        visited += batches
    for start in range(0, len(visited), pass_size):
        samples = flat(visited[start : start + pass_size])
        assert len(set(samples)) == len(samples)
        if start + pass_size <= len(visited):
            assert set(samples) == set(range(n))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_two_halves_of_a_pass_are_the_whole(shuffle):
    cut, whole = (numbered(50, batch_size=8, rng=5, shuffle=shuffle) for _ in range(2))
    # What is bound to other inputs shares the order.
    assert take(cut.bind(None), 3) + take(cut.bind([VECTOR])) == take(whole.bind(None))
    assert take(cut.bind(None)) == take(whole.bind([VECTOR]))


@pytest.mark.parametrize("shuffle", ["samples", "batches"])
def test_the_seed_decides_the_order(shuffle):
    def epochs(seed):
        bound = numbered(1000, batch_size=10, rng=seed, shuffle=shuffle).bind(None)
        return [take(bound), take(bound)]

    first, second = epochs(1)
    assert epochs(1) == [first, second] == epochs(np.random.default_rng(1))
    # Chance would make one of these equal once in 100! times at best.
    assert first != second
    assert epochs(2)[0] != first
    assert first != sorted(first)


@pytest.mark.parametrize("shuffle", ["samples", "batches"])
def test_without_a_seed_data_sets_differ(shuffle):
    a, b = (numbered(1000, batch_size=10, shuffle=shuffle).bind(None) for _ in range(2))
    assert take(a) != take(b)


def test_samples_of_a_minibatch_come_from_everywhere():
    batches = take(numbered(1000, batch_size=100, rng=0).bind(None))
    assert all(min(batch) < 500 <= max(batch) for batch in batches)
    assert all(batch != sorted(batch) for batch in batches)


def test_shuffled_batches_stay_as_they_are():
    batches = take(numbered(995, batch_size=10, rng=0, shuffle="batches").bind(None))
    fixed = [list(range(start, min(start + 10, 995))) for start in range(0, 995, 10)]
    assert sorted(batches) == fixed
    assert batches != fixed


def test_no_shuffling_keeps_the_order():
    bound = numbered(7, batch_size=3, shuffle=None).bind(None)
    for _ in range(2):
        assert take(bound) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("batch_size", [0, -1, 50, 51, 1000])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_one_batch_of_everything_is_not_permuted(shuffle, batch_size):
    bound = numbered(50, batch_size=batch_size, iteration_size=3, rng=0, shuffle=shuffle).bind(None)
    assert take(bound) == [list(range(50))] * 3


@examples
@given(n=lengths, batch_size=batch_sizes, shuffle=shuffles, seed=seeds, cut=st.integers(1, 10))
def test_in_order_leaves_the_training_order(n, batch_size, shuffle, seed, cut):
    seen, undisturbed = (
        numbered(n, batch_size=batch_size, rng=seed, shuffle=shuffle).bind(None) for _ in range(2)
    )
    assert take(seen, cut) == take(undisturbed, cut)
    passed = list(seen.in_order())
    assert flat(batch[0].tolist() for batch, _ in passed) == list(range(n))
    assert [count for _, count in passed] == expected_sizes(n, batch_size)
    assert [take(seen), take(seen)] == [take(undisturbed), take(undisturbed)]


def test_in_order_begins_at_the_start_and_goes_round():
    bound = numbered(5, batch_size=2, iteration_size=4).bind(None)
    for _ in range(2):
        assert [x.tolist() for (x,), _ in bound.in_order()] == [[0, 1], [2, 3], [4], [0, 1]]


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_peeking_does_not_shorten_the_next_epoch(shuffle):
    dataset = numbered(10, batch_size=3, rng=0, shuffle=shuffle)
    for _ in range(3):
        assert len(next(iter(dataset))[0]) <= 3
        assert sorted(flat(take(dataset.bind(None)))) == list(range(10))
        assert sorted(flat(x.tolist() for (x,) in dataset)) == list(range(10))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_an_iterator_kept_alive_takes_nothing_from_training(shuffle):
    dataset = numbered(10, batch_size=3, rng=0, shuffle=shuffle)
    batches = iter(dataset)
    next(batches)
    assert sorted(flat(take(dataset.bind(None)))) == list(range(10))


def test_iterators_of_one_data_set_are_independent():
    dataset = numbered(10, batch_size=3, rng=0)
    pairs = list(zip(dataset, dataset, strict=True))
    for side in (0, 1):
        assert sorted(flat(pair[side][0].tolist() for pair in pairs)) == list(range(10))


@examples
@given(n=lengths, shuffle=shuffles, iteration_size=st.none() | st.integers(1, 9), done=lengths)
def test_another_data_set_goes_on_from_a_state(n, shuffle, iteration_size, done):
    a, b = (numbered(n, None, 7, iteration_size, 0, seed, shuffle) for seed in (1, 2))
    for _ in range(done % 4):
        take(a.bind(None))
    cut = take(a.bind(None), done)
    b.sampler.load_state_dict(a.sampler.state_dict())
    # Restored with the count of what was delivered, a finished epoch does not begin again.
    rest = flat(batch[0].tolist() for batch, _ in b.bind(None).epoch(len(cut)))
    if len(cut) == len(a):
        assert rest == []
    else:
        assert rest == flat(take(a.bind(None)))
    assert take(b.bind(None)) == take(a.bind(None))


# Weights: the means over an epoch count samples, not minibatches.


def counts(dataset):
    return [count for _, count in dataset.bind(None).epoch()]


@pytest.mark.parametrize("shuffle", ["samples", None])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_of_arrays(axis, shuffle):
    X = np.zeros((11, 11))
    assert counts(Dataset([X, X], batch_size=4, axis=axis, shuffle=shuffle)) == [4, 4, 3]


@pytest.mark.parametrize(("axis", "expected"), [(0, [4, 4, 2]), (1, [3, 3, 3])])
def test_weights_of_batches(axis, expected):
    batches = [[np.zeros((n, 3)), np.zeros((n, 3))] for n in (4, 4, 2)]
    assert counts(Dataset(batches, axis=axis)) == expected
    calls = iter(batches)
    assert counts(Dataset(lambda: next(calls), axis=axis, iteration_size=3)) == expected


@pytest.mark.parametrize(
    "labels", [lambda n: np.zeros(n), lambda n: np.zeros((n, 5)), lambda n: np.zeros((9, n))]
)
@pytest.mark.parametrize("first", [True, False])
def test_time_major_batches_are_weighted_by_their_samples(labels, first):
    sizes = [4, 2]
    batches = [[labels(n), np.zeros((9, n, 3))] for n in sizes]
    data = [batch if first else batch[::-1] for batch in batches]
    assert counts(Dataset(data, axis=1)) == sizes


def test_weights_of_batches_without_a_sample_axis():
    assert counts(Dataset([[np.array(1.0)], [np.array(2.0)]])) == [1, 1]
    assert counts(Dataset([[], []])) == [1, 1]


# Callables and iterables make their own minibatches.


class Loader:
    """What a torch DataLoader is to us: it can be iterated again and has a length."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __iter__(self):
        return ([np.arange(size), np.zeros(size)] for size in self.sizes)

    def __len__(self):
        return len(self.sizes)


class Stream(Loader):
    """A loader that does not know its length."""

    __len__ = None


class Reader:
    """A callable with a length, which returns 0, 1, 2, ... in turn."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return np.array([self.calls - 1])

    def __len__(self):
        return 4


@pytest.mark.parametrize("kind", [Loader, Stream])
def test_loader(kind):
    dataset = Dataset(kind([4, 4, 3]))
    for _ in range(2):
        assert [len(y) for _, y in dataset] == [4, 4, 3]
        assert counts(dataset) == [4, 4, 3]


def test_length():
    assert len(Dataset(Loader([4, 4, 3]))) == 3
    assert len(Dataset(Stream([4]), iteration_size=5)) == 5
    assert len(Dataset(Reader())) == 4
    assert len(Dataset(Reader(), iteration_size=6)) == 6
    assert len(Dataset(lambda: np.zeros(2))) == 100
    assert len(Dataset(None)) == 1
    with pytest.raises(TypeError, match="valid has no length.*Give iteration_size="):
        len(Dataset(Stream([4]), "valid"))


def test_callables_are_called_once_a_batch():
    reader = Reader()
    bound = Dataset(reader).bind([VECTOR])
    assert reader.calls == 0
    assert [take(bound), take(bound)] == [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]
    assert len(take(Dataset(lambda: np.zeros(2)).bind([VECTOR]))) == 100


@pytest.mark.parametrize("kind", [Loader, Stream])
@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_an_epoch_of_iterables_goes_round(kind, size):
    bound = Dataset(kind([4, 5, 6]), iteration_size=size).bind(None)
    assert [count for _, count in bound.epoch()] == [4, 5, 6, 4, 5, 6, 4][:size]


@pytest.mark.parametrize("iteration_size", [None, 1, 3, 4, 7])
@pytest.mark.parametrize("delivered", range(8))
def test_a_restored_epoch_of_an_iterable_is_the_rest_of_it(iteration_size, delivered):
    bound = Dataset(Loader([4, 5, 6]), iteration_size=iteration_size).bind(None)
    whole = [count for _, count in bound.epoch()]
    assert [count for _, count in bound.epoch(delivered)] == whole[delivered:]


def test_a_restored_epoch_of_a_callable_counts_what_was_delivered():
    reader = Reader()
    bound = Dataset(reader).bind(None)
    assert [len(list(bound.epoch(delivered))) for delivered in (1, 3, 4)] == [3, 1, 0]
    assert reader.calls == 4


def test_no_inputs():
    assert list(Dataset(None)) == [[]]
    assert list(Dataset(None, iteration_size=3).bind([]).epoch()) == [([], 1)] * 3


def test_as_dataset():
    dataset = numbered(10, batch_size=4)
    assert as_dataset(dataset, "train") is dataset
    made = as_dataset(np.arange(10), "train", batch_size=4)
    assert (made.name, len(made), len(as_dataset(np.arange(33), "x"))) == ("train", 3, 2)
    assert len(as_dataset(np.arange(10), "train", iteration_size=9)) == 9
    with pytest.raises(ValueError, match="batch_size=4 .* a Dataset that has its own sizes"):
        as_dataset(dataset, "train", batch_size=4)


# What is refused.

ZEROS = np.zeros((4, 3))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([ZEROS, ZEROS[:3]], ValueError, r"array 1: \(3, 3\).*same number of samples"),
        ({"x": ZEROS, "y": ZEROS[:3]}, ValueError, r"x: \(4, 3\), y: \(3, 3\)"),
        (ZEROS[:0], ValueError, "at least one sample"),
        ({"x": ZEROS[:0]}, ValueError, r"The arrays \(x: \(0, 3\)\) are empty"),
        ([], ValueError, "at least one array or batch"),
        ((), ValueError, "at least one array or batch"),
        ({}, ValueError, "at least one array or batch"),
        (["a.npy", "b.npy"], ValueError, "too few dimensions for axis=0"),
        ([ZEROS, None], ValueError, "too few dimensions for axis=0"),
        (iter([ZEROS]), TypeError, "an iterator .*, which is used up"),
        ((batch for batch in [ZEROS]), TypeError, "an iterator .generator."),
        ("train.csv", TypeError, "The data are of type str"),
        (b"train", TypeError, "The data are of type bytes"),
        (object(), TypeError, "The data are of type object"),
        (Loader([]), ValueError, "dataset has length 0: a data set holds"),
    ],
)
def test_refused_inputs(inputs, error, message):
    with pytest.raises(error, match=message):
        Dataset(inputs)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"shuffle": "sample"}, ValueError, "shuffle is 'sample': it takes"),
        ({"shuffle": True}, ValueError, "shuffle is True: it takes"),
        ({"batch_size": 2.0}, TypeError, "batch_size is 2.0: it takes an integer"),
        ({"batch_size": None}, TypeError, "batch_size is .*: it takes an integer"),
        ({"batch_size": True}, TypeError, "batch_size is .*: it takes an integer"),
        ({"axis": -1}, ValueError, "axis is -1: it is at least 0"),
        ({"axis": "rows"}, TypeError, "axis is 'rows': it takes an integer"),
        ({"axis": 2}, ValueError, r"array 0: \(4, 3\)\) have too few dimensions for axis=2"),
        ({"iteration_size": 0}, ValueError, "iteration_size is 0: it is at least 1"),
        ({"rng": "a"}, TypeError, "rng is 'a'"),
        ({"rng": -1}, ValueError, "rng is -1"),
        ({"rng": 1.5}, TypeError, "rng is 1.5"),
        ({"name": 3}, TypeError, "name is 3"),
        ({"iteration_size": 1.5}, TypeError, "iteration_size is 1.5: it takes an integer"),
    ],
)
def test_refused_arguments(keywords, error, message):
    with pytest.raises(error, match=message):
        Dataset(ZEROS, **keywords)


@pytest.mark.parametrize("inputs", [lambda: ZEROS[:0], [[ZEROS], [ZEROS[:0]]]])
@pytest.mark.parametrize("specs", [None, [InputSpec("x", "float64", 2)]])
def test_an_empty_batch_is_refused(inputs, specs):
    bound = Dataset(inputs, "valid").bind(specs)
    with pytest.raises(ValueError, match=r"valid gave a batch of shape \(0, 3\): a batch holds"):
        list(bound.epoch())


class Nothing(Iterable):
    """An iterable without batches, which does not say so."""

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("iteration_size", [None, 5])
def test_an_iterable_that_yields_nothing_is_refused(iteration_size):
    with pytest.raises(ValueError, match="valid gave no batch: a data set holds"):
        list(Dataset(Nothing(), "valid", iteration_size=iteration_size))


@pytest.mark.parametrize("shuffle", ["samples", "batches", None])
def test_epochs_by_hand_go_on_where_the_last_ended(shuffle):
    """Restarting from the front would never show the second half of each pass."""
    data = Dataset(np.arange(12), batch_size=2, iteration_size=3, shuffle=shuffle, rng=0)
    passes = [np.concatenate([b for (b,) in [*data, *data]]) for _ in range(3)]
    for seen in passes:
        assert sorted(seen) == list(range(12))
    if shuffle:
        assert len({tuple(seen) for seen in passes}) == 3


def test_a_look_by_hand_leaves_the_order_of_training():
    def orders(look):
        data = Dataset(np.arange(12), batch_size=2, rng=0)
        bound = data.bind(None)
        seen = []
        for _ in range(3):
            if look:
                next(iter(data))
            seen += [batch[0].tolist() for batch, _ in bound.epoch()]
        return seen

    assert orders(True) == orders(False)
