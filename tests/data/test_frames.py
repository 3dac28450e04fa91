"""Frames of mixed columns, from pandas, polars and Arrow alike."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytensor
import pytensor.tensor as pt
import pytest

from downhill_rms import Dataset, Trainer

COLUMNS = {
    "height": np.array([1.5, 1.75, 2.0]),
    "smokes": np.array([True, False, True]),
    "age": np.array([30, 40, 50]),
    "small": np.array([1, 2, 3], "int8"),
    "single": np.array([0.5, 0.25, 0.125], "float32"),
}
EXPECTED = np.column_stack([column.astype("float64") for column in COLUMNS.values()])
MAKERS = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow": pa.table,
    "arrow batch": lambda columns: pa.RecordBatch.from_pydict(columns),
    "pandas of arrow": lambda columns: pd.DataFrame(columns).convert_dtypes(
        dtype_backend="pyarrow"
    ),
    "nullable": lambda columns: pd.DataFrame(columns).convert_dtypes(),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def read(data, **options):
    (batch,) = Dataset(data, batch_size=0, shuffle=None, **options)
    return batch


def test_mixed_columns_stand_beside_each_other(make):
    (found,) = read(make(COLUMNS))
    np.testing.assert_array_equal(found, EXPECTED)


def test_columns_of_whole_numbers_stay_whole(make):
    whole = {name: COLUMNS[name] for name in ("smokes", "age", "small")}
    (found,) = read(make(whole))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, EXPECTED[:, 1:4])


def test_a_frame_and_a_series_train(mode):
    frame = pd.get_dummies(pd.DataFrame({"city": ["a", "b", "a"], "x": [0.5, 1.0, 1.5]}))
    labels = pd.Series([1, 2, 3], name="y", dtype="Int64")
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    trainer = Trainer(pt.sqr(x @ w - y).mean(), inputs=[x, y], mode=mode)
    assert trainer.evaluate([frame, labels])["loss"] == pytest.approx(14 / 3)


@pytest.mark.parametrize(
    ("make", "column"),
    [
        (pd.DataFrame, ["a", "b", "c"]),
        (pl.DataFrame, ["a", "b", "c"]),
        (pa.table, ["a", "b", "c"]),
        (pd.DataFrame, pd.to_datetime(["2026-01-01"] * 3)),
        (pd.DataFrame, [1.0, "b", None]),
        (pl.DataFrame, [[1], [2], [3]]),
    ],
)
def test_what_is_no_number_is_refused_by_name(make, column):
    with pytest.raises((TypeError, ValueError), match="column 'city'|Column 'city'"):
        read(make({"x": [1.0, 2.0, 3.0], "city": column}))


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"x": [1, 2], "age": pd.array([1, None], dtype="Int64")}),
        pl.DataFrame({"x": [1, 2], "age": [1, None]}),
        pl.DataFrame({"x": [1, 2], "age": [1.5, None]}),
        pa.table({"x": [1, 2], "age": [True, None]}),
        pd.DataFrame({"x": [1, 2], "age": pd.array([1.5, None], dtype="Float64")}),
    ],
)
def test_missing_values_are_refused_by_name(frame):
    with pytest.raises(ValueError, match="1 values are missing in column 'age'"):
        read(frame)


def test_a_series_with_missing_values_is_refused_by_its_name():
    with pytest.raises(ValueError, match="missing in column 'age'"):
        read(pl.Series("age", [1, None]))


def test_two_columns_of_one_name_are_two_columns():
    frame = pd.DataFrame(np.array([[1.0, 2.0], [3.0, 4.0]]), columns=["x", "x"])
    np.testing.assert_array_equal(read(frame)[0], [[1, 2], [3, 4]])


def test_an_arrow_array_is_a_column():
    np.testing.assert_array_equal(read(pa.chunked_array([[1, 2], [3]]))[0], [1, 2, 3])
    np.testing.assert_array_equal(read(pa.array([True, False]))[0], [True, False])
