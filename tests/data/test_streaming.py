"""Arrays on disk by windows: memory maps, data sets of h5py and zarr."""

import threading
import tracemalloc

import h5py
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import scipy.sparse

from downhill_rms import Checkpoint, Dataset, Trainer
from downhill_rms.data.sources import InputSpec
from tests.data.test_prefetch import Cut, make, no_thread_is_left
from tests.data.test_sources import Sliceable

N = 103
X = np.arange(4.0 * N).reshape(N, 4)
MATRIX = InputSpec("x", "float64", 2)


def memmap(array, folder):
    np.save(folder / "array.npy", array)
    return np.load(folder / "array.npy", mmap_mode="r")


def h5(array, folder, **options):
    with h5py.File(folder / "array.h5", "w") as file:
        file.create_dataset("x", data=array, **options)
    return h5py.File(folder / "array.h5")["x"]


def chunked(array, folder, size, **options):
    chunks = tuple(min(size, extent) for extent in array.shape)
    return h5(array, folder, chunks=chunks, **options)


def zarr(array, folder):
    return pytest.importorskip("zarr").array(array, chunks=(7,) * array.ndim)


SOURCES = {
    "array": lambda a, _: a,
    "memmap": memmap,
    "h5py": lambda a, f: chunked(a, f, 7),
    "contiguous h5py": h5,
    "compressed h5py": lambda a, f: chunked(a, f, 40, compression="gzip"),
    "zarr": zarr,
    "sliceable": lambda a, _: Sliceable(a),
}
every_source = pytest.mark.parametrize("source", SOURCES)


def epochs(data, count=1, specs=None):
    bound = data.bind(specs)
    return [batch for _ in range(count) for batch, _ in bound.epoch()]


@every_source
@pytest.mark.parametrize("window", [1, 20, 1000])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_every_sample_once_a_pass(tmp_path, source, window, prefetch):
    opened = SOURCES[source](X, tmp_path)
    data = Dataset(opened, batch_size=10, rng=0, window=window, prefetch=prefetch)
    orders = []
    for _ in range(3):
        batches = epochs(data, specs=[InputSpec("x", "float32", 2)])
        assert [len(x) for (x,) in batches] == [10] * 10 + [3]
        rows = np.concatenate([x for (x,) in batches])
        np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], X)
        for (x,) in batches:
            assert x.dtype == np.float32
            assert x.flags.c_contiguous
            assert x.flags.writeable
        orders.append(rows[:, 0].tolist())
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


@every_source
def test_in_its_own_order(tmp_path, source):
    data = Dataset(SOURCES[source](X, tmp_path), batch_size=10, window=20, shuffle=None)
    for batches in (epochs(data), [batch for batch, _ in data.bind([MATRIX]).in_order()]):
        np.testing.assert_array_equal(np.concatenate([x for (x,) in batches]), X)


@pytest.mark.parametrize("source", ["memmap", "h5py", "array"])
@pytest.mark.parametrize("shuffle", ["samples", None])
def test_samples_along_another_axis(tmp_path, source, shuffle):
    opened = SOURCES[source](np.ascontiguousarray(X.T), tmp_path)
    data = Dataset(opened, batch_size=10, rng=0, axis=1, window=30, shuffle=shuffle)
    batches = epochs(data, specs=[MATRIX])
    assert all(x.flags.c_contiguous for (x,) in batches)
    samples = np.concatenate([x for (x,) in batches], axis=1)
    np.testing.assert_array_equal(samples[:, np.argsort(samples[0])], X.T)


def test_several_arrays_stay_together(tmp_path):
    y = memmap(np.arange(N), tmp_path)
    data = Dataset({"y": y, "x": h5(X, tmp_path, chunks=(9, 2))}, rng=0, window=40)
    specs = [MATRIX, InputSpec("y", "int64", 1)]
    for x, labels in epochs(data, 2, specs):
        np.testing.assert_array_equal(x[:, 0], 4 * labels)


def test_a_sparse_input():
    spec = InputSpec("x", "float64", 2, "csr")
    batches = epochs(Dataset(X, rng=0, window=40), specs=[spec])
    assert all(scipy.sparse.isspmatrix_csr(x) for (x,) in batches)
    rows = np.concatenate([x.toarray() for (x,) in batches])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], X)


@pytest.mark.parametrize("shuffle", ["samples", None])
def test_a_minibatch_has_memory_of_its_own(shuffle):
    """Windows take turns in the same memory, and none is that of the user's array."""
    given = X.copy()
    data = Dataset(given, batch_size=5, rng=0, window=10, shuffle=shuffle, prefetch=1)
    bound, kept, copies = data.bind([MATRIX]), [], []
    for (x,), _ in bound.epoch():
        kept.append(x)
        copies.append(x.copy())
    for x, copied in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(x, copied)
        x[...] = -1
    np.testing.assert_array_equal(given, X)
    rows = np.concatenate([x for (x,), _ in bound.epoch()])
    np.testing.assert_array_equal(np.sort(rows[:, 0]), X[:, 0])


class Recorded(Sliceable):
    """It tells what was read, and by which thread."""

    def __init__(self, array):
        super().__init__(array)
        self.read, self.threads = [], set()

    def __getitem__(self, key):
        self.read += range(*key.indices(len(self._array)))
        self.threads.add(threading.current_thread().name.partition("_0")[0])
        return super().__getitem__(key)


@pytest.mark.parametrize("iteration_size", [None, 3])
@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_sample_is_read_once_a_pass_however_short_an_epoch_is(iteration_size, prefetch):
    source = Recorded(X)
    options = {"iteration_size": iteration_size, "prefetch": prefetch}
    bound = Dataset(source, batch_size=10, rng=0, window=30, **options).bind([MATRIX])
    source.read.clear()
    batches = 0
    while batches < 11:
        batches += len(list(bound.epoch()))
    counts = np.bincount(source.read, minlength=N)
    # The next pass begins in the last epoch where that is longer than what was left.
    assert counts.min() == 1
    assert counts.sum() <= N + (60 if iteration_size else 0)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_thread_reads_the_next_window_where_one_is_asked_for(prefetch):
    source = Recorded(X)
    bound = Dataset(source, batch_size=10, rng=0, window=30, prefetch=prefetch).bind([MATRIX])
    source.threads.clear()
    assert len(list(bound.epoch())) == 11
    expected = {"MainThread"} | ({"downhill_rms-prefetch"} if prefetch else set())
    assert source.threads == expected
    assert no_thread_is_left()


class Waiting(Sliceable):
    """It tells when anything but the first window is read."""

    def __init__(self, array):
        super().__init__(array)
        self.further = threading.Event()

    def __getitem__(self, key):
        if key.start >= 30:
            self.further.set()
        return super().__getitem__(key)


def test_the_next_window_is_read_while_one_is_in_use():
    source = Waiting(X)
    options = {"batch_size": 10, "window": 30, "shuffle": None}
    next(iter(Dataset(source, **options)))
    assert not source.further.is_set()
    next(iter(Dataset(source, prefetch=1, **options)))
    assert source.further.wait(60)


class Broken(Sliceable):
    """It cannot be read beyond a row."""

    def __getitem__(self, key):
        if key.stop > 60:
            raise OSError("the disk is gone")
        return super().__getitem__(key)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_an_error_comes_where_its_window_would(prefetch):
    options = {"batch_size": 10, "window": 20, "shuffle": None, "prefetch": prefetch}
    bound, seen = Dataset(Broken(X), **options).bind([MATRIX]), []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batch for batch, _ in bound.epoch())
    assert len(seen) == 6


def test_iterators_by_hand_hold_windows_of_their_own():
    data = Dataset(X, batch_size=10, rng=0, window=30)
    pairs = list(zip(data, data, strict=True))
    for side in (0, 1):
        rows = np.concatenate([pair[side][0] for pair in pairs])
        np.testing.assert_array_equal(np.sort(rows[:, 0]), X[:, 0])


def test_validation_in_between_leaves_the_order():
    plain, looked_at = (Dataset(X, batch_size=10, rng=0, window=30) for _ in range(2))
    bound, found = looked_at.bind([MATRIX]), []
    for (x,), _ in bound.epoch():
        found.append(x)
        if len(found) % 4 == 0:
            assert sum(count for _, count in bound.in_order()) == N
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(epochs(plain), axis=1)[0])


def test_no_more_than_windows_is_in_memory(tmp_path):
    large = memmap(np.ones((200_000, 20)), tmp_path)  # 32 MB
    bound = Dataset(large, batch_size=100, rng=0, window=5000).bind([MATRIX])
    tracemalloc.start()
    try:
        assert sum(count for _, count in bound.epoch()) == 200_000
        assert sum(count for _, count in bound.in_order()) == 200_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6  # a window is 0.8 MB, and what is gathered together 1 MB


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("updates_per_call", [1, 3])
def test_a_run_resumes_bit_for_bit_in_the_middle_of_a_window(
    tmp_path, mode, prefetch, updates_per_call
):
    values = np.random.default_rng(0).normal(size=(50, 2))

    def data():
        source = memmap(values, tmp_path)
        return Dataset(source, batch_size=4, rng=3, window=12, prefetch=prefetch)

    options = {"max_epochs": 4, "learning_rate": 0.1, "updates_per_call": updates_per_call}
    whole, expected = make(mode)
    whole.minimize(data(), [values], **options)
    run = tmp_path / "run"
    for saves in (5, 6):
        trainer, _ = make(mode)
        with pytest.raises(RuntimeError, match="cut off"):
            trainer.minimize(data(), [values], checkpoint=Cut(run, saves), resume=True, **options)
    trainer, w = make(mode)
    trainer.minimize(data(), [values], checkpoint=Checkpoint(run), resume=True, **options)
    assert trainer.update_count == whole.update_count == 52
    assert w.get_value().tobytes() == expected.get_value().tobytes()


def test_a_run_with_another_window_is_refused(tmp_path, mode):
    values = np.ones((50, 2))
    make(mode)[0].minimize(
        Dataset(values, batch_size=4, window=12), max_epochs=2, checkpoint=tmp_path
    )
    options = {"max_epochs": 3, "checkpoint": tmp_path, "resume": True}
    with pytest.raises(ValueError, match="train is not what the run began .*: window is 16 inst"):
        make(mode)[0].minimize(Dataset(values, batch_size=4, window=16), **options)
    with pytest.raises(ValueError, match="window is None instead of 12"):
        make(mode)[0].minimize(Dataset(values, batch_size=4), **options)


def test_an_index_that_is_out_of_range_is_told_with_its_row(tmp_path, mode):
    labels = np.zeros(60, "int64")
    labels[41] = 9
    i = pt.lvector("i")
    w = pytensor.shared(np.zeros(3), name="w")
    trainer = Trainer((w[i] ** 2).mean(), mode=mode)
    data = Dataset(memmap(labels, tmp_path), "train", batch_size=7, rng=0, window=20)
    with pytest.raises(ValueError, match="train, row 41: input 'i' is 9"):
        trainer.minimize(data, np.zeros(3, "int64"), max_epochs=1)


def test_the_window_shows():
    assert "window=32" in repr(Dataset(X, window=5))
    assert "window" not in repr(Dataset(X))


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        (X, {"window": 0}, "window is 0: it is at least 1"),
        (X, {"window": -5}, "window is -5: it is at least 1"),
        (X, {"window": 5, "shuffle": "batches"}, "shuffle is 'batches' for data that are read by"),
        (scipy.sparse.csr_matrix(X), {"window": 5}, "window is given with a sparse matrix"),
        ([[X]], {"window": 5}, "window is 5 for batches that come ready"),
        (lambda: X, {"window": 5}, "window is 5 for batches that come ready"),
    ],
)
def test_refused_windows(inputs, keywords, message):
    with pytest.raises(ValueError, match=message):
        Dataset(inputs, **keywords)


@pytest.mark.parametrize("window", [2.5, True, "all"])
def test_a_window_is_a_count(window):
    with pytest.raises(TypeError, match="window is .*: it takes an integer"):
        Dataset(X, window=window)
