"""Streams of a long series: what comes where, what is left over, and what is refused."""

import logging

import numpy as np
import pandas as pd
import pytensor
import pytensor.tensor as pt
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from downhill_rms import Trainer, sequences


@given(
    steps=st.integers(2, 60),
    length=st.integers(1, 20),
    rows=st.integers(1, 5),
    axis=st.integers(0, 1),
    width=st.sampled_from([(), (2,)]),
)
def test_each_row_reads_its_part_of_the_series_in_order(steps, length, rows, axis, width):
    series = np.arange(steps * int(np.prod(width))).reshape(steps, *width)
    share = (steps - 1) // rows
    if not share:
        with pytest.raises(ValueError, match=f"{steps - 1} steps"):
            sequences(series, length, rows, axis=axis)
        return
    data = sequences(series, length, rows, axis=axis)
    batches = [[np.moveaxis(array, axis, 0) for array in batch] for batch in data]
    sizes = [len(x) for x, _ in batches]
    assert sizes[:-1] == [length] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= length
    assert len(data) == len(batches)
    for place, offset in ((0, 0), (1, 1)):
        streams = np.concatenate([batch[place] for batch in batches])
        assert streams.shape == (share, rows, *width)
        for row in range(rows):
            first = row * share + offset
            np.testing.assert_array_equal(streams[:, row], series[first : first + share])


def test_several_series_are_aligned_and_not_shifted():
    x, y = np.arange(12.0), np.arange(24).reshape(12, 2)
    for series in ([x, y], (x, y), {"x": x, "y": y}):
        data = sequences(series, 4, 2)
        shapes = [[array.shape for array in batch] for batch in data]
        assert shapes == [[(4, 2), (4, 2, 2)], [(2, 2), (2, 2, 2)]]
        for a, b in data:
            np.testing.assert_array_equal(2 * a, b[..., 0])


def test_a_dict_feeds_inputs_by_name(mode):
    x, y = pt.matrix("x"), pt.matrix("y")
    w = pytensor.shared(0.0, name="w")
    trainer = Trainer((w * x + y).mean(), inputs=[x, y], mode=mode)
    assert trainer.evaluate(sequences({"y": np.full(9, 5.0), "x": np.ones(9)}, 2, 3))["loss"] == 5


def test_a_text_is_its_code_points_and_bytes_are_numbers():
    text = "naïve 🐍 text"
    ((x, y),) = sequences(text, 99, 1)
    assert "".join(map(chr, x[:, 0])) == text[:-1]
    assert "".join(map(chr, y[:, 0])) == text[1:]
    ((x, _),) = sequences(text.encode(), 99, 1)
    assert bytes(x[:, 0].tolist()) == text.encode()[:-1]


def test_what_is_left_over_is_said(caplog):
    caplog.set_level(logging.INFO, "downhill_rms")
    sequences(np.arange(13), 2, 4, name="text")
    assert caplog.text == ""
    sequences(np.arange(16), 2, 4, name="text")
    assert "text: the last 3 of 15 steps are left out" in caplog.text


@pytest.mark.parametrize("axis", [0, 1])
def test_a_memory_map_is_read_by_the_minibatch(axis, tmp_path):
    np.save(tmp_path / "series.npy", np.arange(50, dtype="float32"))
    on_disk = np.load(tmp_path / "series.npy", mmap_mode="r")
    data = sequences(on_disk, 4, 5, axis=axis)
    x, y = pt.matrix("x"), pt.matrix("y")
    specs = Trainer((x - y).sum() * pytensor.shared(1.0), inputs=[x, y]).steps.specs
    bound = data.bind(specs)
    assert not bound.source.in_memory
    assert all(np.shares_memory(column.array, on_disk) for column in bound.source.columns)
    for (mapped, n), (held, m) in zip(
        bound.in_order(),
        sequences(np.arange(50.0), 4, 5, axis=axis).bind(specs).in_order(),
        strict=True,
    ):
        assert n == m
        for a, b in zip(mapped, held, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.flags.c_contiguous
            assert a.flags.writeable
            assert a.dtype == "float64"


def test_series_in_memory_are_not_copied_before_they_are_bound():
    series = np.arange(1000.0)
    for column in sequences(series, 4, 5).source.columns:
        assert np.shares_memory(column.array, series)


def test_a_mean_over_a_pass_is_that_of_all_steps(mode):
    """Also where the last minibatch is shorter."""
    x, y = pt.matrix("x"), pt.matrix("y")
    w = pytensor.shared(1.0, name="w")
    trainer = Trainer(pt.sqr(w * x - y).mean(), inputs=[x, y], mode=mode)
    series = np.random.default_rng(0).normal(size=72)
    mean = np.mean((series[:69] - series[1:70]) ** 2)  # 71 have a target: 3 rows of 23
    for length in (1, 5, 23, 99):
        found = trainer.evaluate(sequences(series, length, 3))["loss"]
        np.testing.assert_allclose(found, mean, rtol=1e-12)


def test_the_order_never_changes():
    data = sequences(np.arange(101), 4, 5)
    first, second = ([x.tolist() for x, _ in data] for _ in range(2))
    assert first == second
    assert data.sampler.shuffle is None


def test_frames_and_shared_variables_are_series_too():
    frame = pd.DataFrame({"a": np.arange(9.0), "b": np.ones(9)})
    shared = pytensor.shared(np.arange(9.0))
    for series, shape in ((frame, (4, 2, 2)), (frame["a"], (4, 2)), (shared, (4, 2))):
        ((x, y),) = sequences(series, 4, 2)
        assert x.shape == y.shape == shape


@pytest.mark.parametrize(
    ("series", "options", "error", "message"),
    [
        (np.arange(4), {}, ValueError, "text: The series has 3 steps .* batch_size=4"),
        ([np.arange(9), np.arange(8)], {}, ValueError, r"text: .*\(9,\).*different lengths"),
        ([], {}, ValueError, "text: There is no series"),
        (3.0, {}, ValueError, "text: A series is one number"),
        (None, {}, TypeError, "text: A series is of type NoneType"),
        (iter("abc"), {}, TypeError, "text: A series is of type str_.*iterator|str_ascii_iterator"),
        (np.array(list("abcdefgh")), {}, TypeError, "text: A series is of type ndarray"),
        (scipy.sparse.eye(9, format="csr"), {}, TypeError, "text: A series is of type csr"),
        (pt.vector("x"), {}, TypeError, "text: An array is x"),
        (np.ma.masked_less(np.arange(40.0), 3), {}, ValueError, "3 of .* are masked"),
        (np.arange(99), {"length": 0}, ValueError, "length is 0"),
        (np.arange(99), {"length": 2.5}, TypeError, "length is 2.5"),
        (np.arange(99), {"batch_size": True}, TypeError, "batch_size is True"),
        (np.arange(99), {"batch_size": -1}, ValueError, "batch_size is -1"),
        (np.arange(99), {"axis": 2}, ValueError, "axis is 2"),
        (np.arange(99), {"prefetch": -1}, ValueError, "prefetch is -1"),
        (np.arange(99), {"name": 3}, TypeError, "name is 3"),
    ],
)
def test_what_cannot_be_cut_is_refused(series, options, error, message):
    given = {"length": 3, "batch_size": 4, "name": "text", **options}
    with pytest.raises(error, match=message):
        next(iter(sequences(series, **given)))


def test_data_sets_on_disk_that_can_only_be_sliced_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "series.h5", "w") as file:
        dataset = file.create_dataset("series", data=np.arange(99))
        with pytest.raises(TypeError, match="A series is of type Dataset"):
            sequences(dataset, 3, 4)
