"""Whatever data are, minibatches leave them in one form, with the right samples in them.

The matrix of `matrix(n, axis)` holds different numbers everywhere, and a column of labels beside
it says which of its samples a minibatch should hold.
"""

from itertools import count

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pytensor
import pytensor.sparse
import pytensor.tensor as pt
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from downhill_rms.data.dataset import Dataset
from downhill_rms.data.sources import InputSpec

examples = settings(max_examples=30, deadline=None)
FILES = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


class Sliceable:
    """What a source on disk has at least: a shape, a dtype, and slices of axis 0."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key):
        """Rows, or a block where the samples are not in rows; never indices."""
        keys = key if isinstance(key, tuple) else (key,)
        assert all(isinstance(k, slice) for k in keys)
        return self._array[key]


class RowsOnly(Sliceable):
    """A source that knows ``data[a:b]`` alone, as most hand-written ones do."""

    def __getitem__(self, key):
        assert isinstance(key, slice)
        return self._array[key]


def memmap(array, folder, order="C"):
    """A read-only memory map."""
    path = folder / f"{next(FILES)}.npy"
    np.save(path, np.asarray(array, order=order))
    return np.load(path, mmap_mode="r")


def h5(array, folder):
    file = h5py.File(folder / f"{next(FILES)}.h5", "w")
    return file.create_dataset("data", data=array)


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def unaligned(array):
    buffer = np.zeros(array.nbytes + 1, "int8")
    out = buffer[1:].view(array.dtype).reshape(array.shape)
    out[...] = array
    assert not out.flags.aligned
    return out


ANY = {
    "array": lambda a, _: a,
    "reversed": lambda a, _: np.ascontiguousarray(a[::-1])[::-1],
    "strided": lambda a, _: np.repeat(a, 2, axis=-1)[..., ::2],
    "read-only": lambda a, _: read_only(a),
    "unaligned": lambda a, _: unaligned(a),
    "big-endian": lambda a, _: a.astype(a.dtype.newbyteorder(">")),
    "memmap": memmap,
    "big-endian memmap": lambda a, f: memmap(a.astype(a.dtype.newbyteorder(">")), f),
    "h5py": h5,
    "big-endian h5py": lambda a, f: h5(a.astype(a.dtype.newbyteorder(">")), f),
    "zarr": lambda a, _: pytest.importorskip("zarr").array(a, chunks=7),
    "sliceable": lambda a, _: Sliceable(a),
    "shared": lambda a, _: pytensor.shared(a),
    "nested lists": lambda a, _: a.tolist(),
}
MATRICES = ANY | {
    "Fortran": lambda a, _: np.asfortranarray(a),
    "Fortran memmap": lambda a, f: memmap(a, f, order="F"),
    "csr": lambda a, _: scipy.sparse.csr_matrix(a),
    "csc": lambda a, _: scipy.sparse.csc_matrix(a),
    "csr array": lambda a, _: scipy.sparse.csr_array(a),
    "coo": lambda a, _: scipy.sparse.coo_matrix(a),
    "shared csr": lambda a, _: pytensor.shared(scipy.sparse.csr_matrix(a)),
    "pandas": lambda a, _: pd.DataFrame(a),
    "polars": lambda a, _: pl.DataFrame(a),
}
VECTORS = ANY | {
    "pandas": lambda a, _: pd.Series(a),
    "polars": lambda a, _: pl.Series(a),
    "rows only": lambda a, _: RowsOnly(a),
}


def matrix(n, axis=0):
    rows = 1 + np.arange(n * 3, dtype="float64").reshape(n, 3)
    return rows if axis == 0 else np.ascontiguousarray(rows.T)


def assert_dense(array, dtype, ndim):
    """What Numba compiles once: one type, one layout."""
    assert type(array) is np.ndarray
    assert (array.dtype.str, array.ndim) == (np.dtype(dtype).str, ndim)
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.flags.writeable


def assert_sparse(batch, dtype, kind):
    # PyTensor multiplies with *, which is a matrix product for matrices alone.
    assert isinstance(batch, scipy.sparse.spmatrix)
    assert (batch.format, batch.dtype.str) == (kind, np.dtype(dtype).str)
    batch.check_format(full_check=True)


def assert_every_sample_once(visited, n, batch_size):
    sizes = [len(batch) for batch in visited]
    size = batch_size if 0 < batch_size < n else n
    assert sorted(np.concatenate(visited).tolist()) == list(range(n))
    assert sorted(sizes) == sorted([size] * (n // size) + [n % size] * (n % size > 0))


batch_sizes = st.sampled_from([-1, 0, 1, 100]) | st.integers(2, 40)
shuffles = st.sampled_from(["samples", "batches", None])
floats = st.sampled_from(["float64", "float32"])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("source", MATRICES)
@examples
@given(n=st.integers(1, 80), batch_size=batch_sizes, shuffle=shuffles, dtype=floats)
def test_matrices(folder, source, axis, n, batch_size, shuffle, dtype):
    X = matrix(n, axis)
    labels = np.expand_dims(np.arange(n), 1 - axis)
    data = {"x": MATRICES[source](X, folder), "y": labels}
    dataset = Dataset(data, batch_size=batch_size, axis=axis, shuffle=shuffle)
    bound = dataset.bind([InputSpec("y", "int32", 2), InputSpec("x", dtype, 2)])
    for batches in (bound.epoch(), bound.in_order()):
        visited = []
        for (y, x), samples in batches:
            assert_dense(y, "int32", 2)
            assert_dense(x, dtype, 2)
            visited.append(y.ravel())
            assert samples == len(visited[-1])
            np.testing.assert_array_equal(x, np.take(X, visited[-1], axis=axis))
        assert_every_sample_once(visited, n, batch_size)


@pytest.mark.parametrize("source", VECTORS)
@examples
@given(n=st.integers(1, 80), batch_size=batch_sizes, shuffle=shuffles, dtype=floats)
def test_vectors(folder, source, n, batch_size, shuffle, dtype):
    x = np.arange(n, dtype="float64")
    data = (VECTORS[source](x, folder), matrix(n))
    bound = Dataset(data, batch_size=batch_size, shuffle=shuffle).bind(
        [InputSpec(None, dtype, 1), InputSpec(None, "float64", 2)]
    )
    visited = []
    for (y, X), _ in bound.epoch():
        assert_dense(y, dtype, 1)
        visited.append(y.astype(int))
        np.testing.assert_array_equal(X, matrix(n)[visited[-1]])
    assert_every_sample_once(visited, n, batch_size)


@pytest.mark.parametrize("shuffle", ["samples", None])
@pytest.mark.parametrize("source", ["array", "read-only", "memmap", "h5py", "Fortran", "pandas"])
def test_unbound_data_keep_their_dtype(folder, source, shuffle):
    data = MATRICES[source](matrix(7).astype("int16"), folder)
    batches = [x for (x,) in Dataset(data, batch_size=3, shuffle=shuffle)]
    assert sorted(np.concatenate(batches).ravel().tolist()) == list(range(1, 22))
    for x in batches:
        assert_dense(x, "int16", 2)


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("source", MATRICES)
@pytest.mark.parametrize("shuffle", ["samples", None])
def test_sparse_inputs(folder, source, axis, kind, shuffle):
    X = np.where(matrix(7, axis) % 3 == 0, matrix(7, axis), 0)
    labels = np.expand_dims(np.arange(7), 1 - axis)
    data = [MATRICES[source](X, folder), labels]
    bound = Dataset(data, batch_size=3, axis=axis, shuffle=shuffle).bind(
        [InputSpec("x", "float32", 2, kind), InputSpec("y", "int64", 2)]
    )
    visited = []
    for (x, y), samples in bound.epoch():
        assert_sparse(x, "float32", kind)
        assert samples == y.size
        visited.append(y.ravel())
        np.testing.assert_array_equal(x.toarray(), np.take(X, visited[-1], axis=axis))
    assert_every_sample_once(visited, 7, 3)


def test_h5py_group_is_a_dict(folder):
    with h5py.File(folder / "group.h5", "w") as file:
        file["x"], file["y"] = matrix(20), np.arange(20)
        bound = Dataset(file, batch_size=6).bind(
            [InputSpec("y", "int64", 1), InputSpec("x", "float64", 2)]
        )
        batches = [batch for batch, _ in bound.epoch()]
    assert_every_sample_once([y for y, _ in batches], 20, 6)
    for y, x in batches:
        np.testing.assert_array_equal(x, matrix(20)[y])


def test_what_leaves_is_what_pytensor_takes():
    X = np.asfortranarray(matrix(9))
    dense, sparse = pt.fmatrix("x"), pytensor.sparse.csr_matrix("s", dtype="float32")
    specs = [InputSpec.of(dense), InputSpec.of(sparse)]
    assert specs == [InputSpec("x", "float32", 2), InputSpec("s", "float32", 2, "csr")]
    bound = Dataset([X, scipy.sparse.csc_array(X)], batch_size=4).bind(specs)
    assert len(list(bound.in_order())) == 3
    for (x, s), _ in bound.epoch():
        assert dense.type.filter(x, strict=True) is x
        assert sparse.type.filter(s, strict=True) is s
    with pytest.raises(
        TypeError, match="inputs has rng of type .*: an input is a dense or sparse tensor"
    ):
        InputSpec.of(pt.random.type.random_generator_type("rng"))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("value", [np.asfortranarray, read_only, scipy.sparse.csr_matrix])
def test_ready_batches_are_conformed(axis, value):
    batches = [[value(matrix(n, axis)), np.arange(3)] for n in (4, 2)]
    specs = [InputSpec("x", "float32", 2), InputSpec("y", "int16", 1)]
    for data in (batches, iter(batches).__next__):
        bound = Dataset(data, axis=axis, iteration_size=2).bind(specs)
        for ((x, y), samples), n in zip(bound.epoch(), (4, 2), strict=True):
            assert samples == n
            assert_dense(x, "float32", 2)
            assert_dense(y, "int16", 1)
            np.testing.assert_array_equal(x, matrix(n, axis))


def test_ready_batches_by_name():
    batches = [{"x": matrix(4), "y": np.arange(4)}, {"y": np.arange(2), "x": matrix(2)}]
    bound = Dataset(batches).bind([InputSpec("y", "int64", 1), InputSpec("x", "float64", 2)])
    assert [(y.size, x.shape) for (y, x), _ in bound.epoch()] == [(4, (4, 3)), (2, (2, 3))]


@pytest.mark.parametrize("kind", ["array", "memmap", "h5py", "csr"])
def test_training_does_not_write_to_data_that_are_cast(folder, kind):
    data = MATRICES[kind](matrix(6), folder)
    for (x,), _ in Dataset(data, shuffle=None).bind([InputSpec("x", "float32", 2)]).epoch():
        x[...] = 0
    np.testing.assert_array_equal(data.toarray() if kind == "csr" else data, matrix(6))


# Dtypes and dimensions.

HELD = ["array", "memmap", "h5py", "sliceable", "nested lists"]
CASTS = [
    ("float64", "float32"),
    ("float32", "float64"),
    ("int64", "float32"),
    ("int64", "int8"),
    ("uint8", "int8"),
    ("uint8", "int64"),
    ("bool", "float32"),
    ("bool", "int8"),
    ("float32", "complex64"),
]


def bind(data, *specs):
    return Dataset(data, batch_size=2).bind(specs)


def consume(data, *specs):
    """Bind and read everything, for what shows in a minibatch only."""
    return [batch for batch, _ in bind(data, *specs).epoch()]


@pytest.mark.parametrize(("given", "wanted"), CASTS)
@pytest.mark.parametrize("source", HELD)
def test_casts(folder, source, given, wanted):
    values = np.array([0, 1, 1, 0, 1]).astype(given)
    batches = consume([ANY[source](values, folder)], InputSpec("x", wanted, 1))
    assert np.sort(np.concatenate([x for (x,) in batches])).tolist() == [0, 0, 1, 1, 1]
    for (x,) in batches:
        assert_dense(x, wanted, 1)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.ones(5), "int64"),
        (np.ones(5), "bool"),
        (np.ones(5, "complex128"), "float64"),
        (np.ones(5, "int64"), "bool"),
        (-np.ones(5, "int64"), "uint8"),
        (np.array(["a"] * 5), "float64"),
        (np.array(["2020-01-01"] * 5, "M8[D]"), "float64"),
    ],
)
@pytest.mark.parametrize("source", ["array", "memmap", "sliceable", "nested lists"])
def test_casts_that_lose_are_refused_before_training(folder, source, values, wanted):
    data = [ANY[source](values, folder)]
    with pytest.raises(TypeError, match=f"'images' .1-dimensional {wanted}"):
        bind(data, InputSpec("images", wanted, 1))


@pytest.mark.parametrize("sparse", [None, "csr"])
@pytest.mark.parametrize("values", [np.array([[None], ["a"]]), np.array([["a"], ["b"]])])
def test_objects_and_strings_are_refused(values, sparse):
    with pytest.raises(TypeError, match="'images'"):
        bind(values, InputSpec("images", "float64", 2, sparse))
    with pytest.raises(TypeError, match="'images'"):
        consume([[values]], InputSpec("images", "float64", 2, sparse))


@pytest.mark.parametrize("value", [128, -129, 2**40])
@pytest.mark.parametrize("source", HELD)
def test_integers_that_do_not_fit_are_refused(folder, source, value):
    data = [ANY[source](np.array([0, 1, 2, value]), folder)]
    with pytest.raises(ValueError, match=f"values from .*{value}.* for 'labels'"):
        consume(data, InputSpec("labels", "int8", 1))


def test_integers_that_fit_are_accepted():
    ((labels,),) = consume(np.array([127, -128]), InputSpec("labels", "int8", 1))
    assert labels.tolist() == [127, -128]
    with pytest.raises(ValueError, match="from 3 to 200 for 'labels'"):
        bind(np.array([3, 200], "uint8"), InputSpec("labels", "int8", 1))
    with pytest.raises(ValueError, match="'labels'"):
        bind(scipy.sparse.csr_matrix([[0, 300]]), InputSpec("labels", "int8", 2, "csr"))


@pytest.mark.parametrize("sparse", [None, "csr"])
@pytest.mark.parametrize("source", [*HELD, "shared"])
def test_wrong_dimensions_are_refused_before_training(folder, source, sparse):
    data = [ANY[source](np.ones(5), folder)]
    with pytest.raises(
        ValueError, match=r"array of shape .* is given for 'x' .2-dim.*number of dim"
    ):
        bind(data, InputSpec("x", "float64", 2, sparse))


def test_sparse_data_have_two_dimensions():
    with pytest.raises(ValueError, match="number of dimensions"):
        bind(scipy.sparse.csr_matrix(matrix(4)), InputSpec("x", "float64", 1))


# One array for each input.

X, Y = InputSpec("x", "float64", 2), InputSpec("y", "float64", 1)
UNNAMED = InputSpec(None, "float64", 1)


@pytest.mark.parametrize("data", [[matrix(4)], [matrix(4)] * 3, matrix(4)])
def test_wrong_number_of_arrays(data):
    with pytest.raises(ValueError, match=r"has [13] arrays for 2 inputs \('x' .2-dim.*'y' .1-dim"):
        bind(data, X, Y)
    ready = Dataset(lambda: data).bind([X, Y])
    with pytest.raises(ValueError, match="has [13] arrays for 2 inputs"):
        next(ready.epoch())


def test_data_for_a_loss_without_inputs():
    with pytest.raises(ValueError, match="1 arrays for 0 inputs .the loss has none"):
        bind(matrix(4))


@pytest.mark.parametrize("names", [("x",), ("x", "z"), ("x", "y", "z"), ("X", "Y")])
def test_wrong_names(names):
    with pytest.raises(ValueError, match=r"by the names \[.*\] for inputs \['x', 'y'\]"):
        bind({name: matrix(4) for name in names}, X, Y)


def test_unnamed_inputs_are_not_fed_by_name():
    with pytest.raises(ValueError, match="An input has no name .'x' .*an unnamed input .1-dim"):
        bind({"x": matrix(4), "y": np.ones(4)}, X, UNNAMED)
    assert len(consume([matrix(4), np.ones(4)], X, UNNAMED)) == 2


def test_doubled_names_receive_the_same_data_with_a_warning():
    with pytest.warns(UserWarning, match="y is the name of several inputs"):
        batches = consume({"y": np.arange(4.0)}, Y, Y)
    for a, b in batches:
        np.testing.assert_array_equal(a, b)
