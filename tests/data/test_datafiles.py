"""Data files: what was written is what the inputs get, and each fault is one clear line."""

import csv
import re
import sys
from itertools import count

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from downhill_rms.data.datafiles import DataFileError, read_data
from downhill_rms.data.dataset import Dataset
from downhill_rms.data.sources import InputSpec

X = InputSpec("x", "float64", 2)
Y = InputSpec("y", "float64", 1)
LABELS = InputSpec("y", "int32", 1)

examples = settings(max_examples=20, deadline=None)
FILES = count()

features = st.tuples(st.integers(1, 5), st.integers(1, 4)).flatmap(
    lambda shape: hnp.arrays("float64", shape, elements=st.floats(allow_infinity=False))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(params=["pyarrow", "polars"])
def engine(request, monkeypatch):
    """The package that reads Parquet; what is None in sys.modules cannot be imported."""
    if request.param == "polars":
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    return request.param


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def fault(path, specs, *parts):
    """The message of the one line that a file is refused with, which names the file."""
    with pytest.raises(DataFileError) as caught:
        read_data(path, specs)
    message = str(caught.value)
    assert "\n" not in message
    for part in (path.name, *parts):
        assert part in message, message


# Round trips through other writers


def write_csv(path, names, columns):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*[c.tolist() for c in columns], strict=True))


def write_numpy(path, names, columns):
    # %s of each number on its own: a common dtype would make labels floats.
    rows = np.column_stack([np.array(list(map(repr, c.tolist()))) for c in columns])
    np.savetxt(path, rows, fmt="%s", delimiter="\t", header="\t".join(names), comments="")


def frame(names, columns):
    return dict(zip(names, columns, strict=True))


def write_pandas(path, names, columns):
    pd.DataFrame(frame(names, columns)).to_csv(path, na_rep="nan")  # the index too


def write_polars(path, names, columns):
    pl.DataFrame(frame(names, columns)).write_csv(path)


def write_polars_parquet(path, names, columns):
    pl.DataFrame(frame(names, columns)).write_parquet(path)


WRITERS = [
    (write_csv, ".csv"),
    (write_numpy, ".tsv"),
    (write_pandas, ".csv"),
    (write_polars, ".csv"),
    (write_polars_parquet, ".parquet"),
]


@pytest.mark.parametrize(("write", "ending"), WRITERS)
@examples
@given(data=features, name=st.sampled_from(["x{}", "x_{}", "x.{}", "x[{}]"]), seed=st.integers(0))
def test_tables_come_back_bit_for_bit(folder, write, ending, data, name, seed):
    labels = np.random.default_rng(seed).integers(-(2**31), 2**31, len(data))
    names = [name.format(i) for i in range(data.shape[1])]
    path = folder / f"{next(FILES)}{ending}"
    write(path, ["y", *names[::-1]], [labels, *data.T[::-1]])  # out of order
    x, y = read_data(path, [X, LABELS])
    np.testing.assert_array_equal(x, data)
    np.testing.assert_array_equal(y, labels)
    assert (x.dtype, y.dtype) == ("float64", "int32")


@examples
@given(
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint32", "int64", "uint64"]),
    data=st.data(),
)
def test_no_whole_number_is_lost(folder, dtype, data):
    """Beyond 2**53 too, and also where one cell is written as a decimal fraction."""
    values = data.draw(hnp.arrays(dtype, st.integers(1, 4)))
    path = folder / f"{next(FILES)}.csv"
    for ending in ("", ".0"):
        write_csv(path, ["y"], [np.array([f"{v}{ending}" for v in values])])
        (y,) = read_data(path, [InputSpec("y", dtype, 1)])
        np.testing.assert_array_equal(y, values)
        assert y.dtype == dtype


def test_parquet_by_either_package(tmp_path, engine):
    path = tmp_path / "a[1]*.parquet"  # a name, not a pattern
    columns = {"y": [3, 1, 2], "x1": [0.5, np.nan, 2.5], "x0": [True, False, True]}
    pl.DataFrame(columns).write_parquet(path)
    x, y = read_data(path, [X, LABELS])
    np.testing.assert_array_equal(x, [[1, 0.5], [0, np.nan], [1, 2.5]])
    np.testing.assert_array_equal(y, np.array([3, 1, 2], "int32"))


def test_the_index_of_a_frame_in_parquet_is_no_feature(tmp_path, engine):
    path = tmp_path / "a.parquet"
    data = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=["p", "q"])
    pq.write_table(pa.Table.from_pandas(data), path)
    (x,) = read_data(path, [X])
    np.testing.assert_array_equal(x, [[1, 3], [2, 4]])


def test_what_pandas_calls_missing_is_missing(tmp_path, engine):
    data = pd.DataFrame({"y": [1.0, np.nan]})
    pq.write_table(pa.Table.from_pandas(data), tmp_path / "a.parquet")
    fault(tmp_path / "a.parquet", [Y], "row 2, column 'y' holds nothing")
    data.to_csv(tmp_path / "a.csv")
    fault(tmp_path / "a.csv", [Y], "line 3, column 'y' holds nothing")


def test_parquet_without_a_package_for_it_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"y": [1.0]}).write_parquet(path)
    for module in ("pyarrow.parquet", "polars"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "downhill_rms\[parquet\]"'):
        read_data(path, [Y])


# Which columns an input takes


@pytest.mark.parametrize("names", ["x10,x9,x2", "x_10,x_9,x_2", "x.10,x.9,x.2", "x[10],x[9],x[2]"])
def test_a_matrix_takes_its_columns_in_the_order_of_their_numbers(tmp_path, names):
    (x,) = read_data(table(tmp_path / "a.csv", f"{names}\n1,2,3\n4,5,6\n"), [X])
    np.testing.assert_array_equal(x, [[3, 2, 1], [6, 5, 4]])


def test_one_matrix_takes_what_no_other_input_takes(tmp_path):
    path = table(tmp_path / "a.csv", "width,y,height\n1,2,3\n4,5,6\n")
    y, x = read_data(path, [Y, X])
    np.testing.assert_array_equal(x, [[1, 3], [4, 6]])
    np.testing.assert_array_equal(y, [2, 5])
    (unnamed,) = read_data(path, [InputSpec(None, "float64", 2)])
    np.testing.assert_array_equal(unnamed, [[1, 2, 3], [4, 5, 6]])


def test_columns_that_nobody_needs_may_hold_anything(tmp_path):
    path = table(tmp_path / "a.csv", "id,x0,y\nfirst,1,2\n,3,4\n")
    x, y = read_data(path, [X, Y])
    np.testing.assert_array_equal(x, [[1], [3]])
    np.testing.assert_array_equal(y, [2, 4])


def test_inputs_whose_names_begin_alike_share_nothing(tmp_path):
    """x1 is a matrix's second column, unless an input is called so; x11 is x1's before x's."""
    path = table(tmp_path / "a.csv", "x0,x1,x2\n1,2,3\n")
    x, x1 = read_data(path, [X, InputSpec("x1", "float64", 1)])
    np.testing.assert_array_equal(x, [[1, 3]])
    np.testing.assert_array_equal(x1, [2])
    path = table(tmp_path / "b.csv", "x0,x10,x11,x2\n1,2,3,4\n")
    x, x1 = read_data(path, [X, InputSpec("x1", "float64", 2)])
    np.testing.assert_array_equal(x, [[1, 4]])
    np.testing.assert_array_equal(x1, [[2, 3]])


def test_a_name_is_no_regular_expression(tmp_path):
    path = table(tmp_path / "a.csv", "a+b0,aab0\n1,2\n")
    (array,) = read_data(path, [InputSpec("a+b", "float64", 2)])
    np.testing.assert_array_equal(array, [[1]])


def test_pandas_numbers_its_columns_where_they_have_no_names(tmp_path):
    pd.DataFrame([[1.5, 2.5], [3.5, 4.5]]).to_csv(tmp_path / "a.csv", index=False)
    (x,) = read_data(tmp_path / "a.csv", [X])
    np.testing.assert_array_equal(x, [[1.5, 2.5], [3.5, 4.5]])


def test_text_as_other_programs_write_it(tmp_path):
    """A byte order mark, Windows' line ends, quotes, spaces, blank lines, upper case."""
    path = tmp_path / "a.CSV"
    path.write_bytes(b'\xef\xbb\xbf"x0", "y"\r\n "1e0", +2\r\n\r\n-.5 , 3\r\n\r\n')
    x, y = read_data(str(path), [X, LABELS])
    np.testing.assert_array_equal(x, [[1], [-0.5]])
    np.testing.assert_array_equal(y, [2, 3])


def test_fractions_are_rounded_to_the_inputs_precision(tmp_path):
    (y,) = read_data(table(tmp_path / "a.csv", "y\n0.1\n-inf\n"), [InputSpec("y", "float32", 1)])
    assert y.dtype == "float32"
    assert y.tolist() == [np.float32(0.1), -np.inf]


def test_truth_values(tmp_path):
    spec = InputSpec("y", "bool", 1)
    (y,) = read_data(table(tmp_path / "a.csv", "y\n0\n1.0\n"), [spec])
    assert y.dtype == "bool"
    assert y.tolist() == [False, True]
    fault(table(tmp_path / "b.csv", "y\n1\n2\n"), [spec], "line 3", "'2'")


# Wrong tables


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["first line names the columns", "nothing"]),
        ("\n1,2\n", ["first line names the columns", "nothing"]),
        ("1.5,2\n3,4\n", ["first line names the columns", "'1.5', '2'"]),
        ("x0,y\n", ["one at least", "0 for 'x'"]),
        ("x0,x0,y\n1,2,3\n", ["different names", "'x0'"]),
        ("x0,x_0,y\n1,2,3\n", ["different numbers", "'x0' and 'x_0'"]),
        ("x0,z\n1,2\n", ["no columns for 'y' (1-dimensional", "only 'x0', 'z'"]),
        ("a,b\n1,2\n", ["no columns for 'y' (1-dimensional", "only 'a', 'b'"]),
        ("x0;y\n1;2\n", ["no columns for 'y'", "'x0;y'"]),
        ("y\n1\n", ["no columns for 'x' (2-dimensional"]),
        (",y\n1,2\n", ["no columns for 'x' (2-dimensional"]),
        ("x0,y\n1,2\n3\n", ["line 3", "1 cells for 2 columns"]),
        ("x0,y\n1,2\n\n3,4,5\n", ["line 4", "3 cells for 2 columns"]),
        ("x0,y\n1,2\n3,abc\n", ["line 3", "column 'y'", "'abc'", "whole number"]),
        ("x0,y\n1,2\n\nabc,3\n", ["line 4", "column 'x0'", "'abc'", "a number"]),
        ("x0,y\n1,2\n3,\n", ["line 3", "column 'y'", "holds nothing"]),
        ("x0,y\n1,2\n ,3\n", ["line 3", "column 'x0'", "holds nothing"]),
        ('x0,y\n"1\n2",3\n', ["line 3", "column 'x0'"]),
        ("x0,y\n1,2\n3,1.5\n", ["line 3", "column 'y'", "'1.5'", "int32"]),
        ("x0,y\n1,2\n3,nan\n", ["line 3", "column 'y'", "'nan'"]),
        ("x0,y\n1,2\n3,inf\n", ["line 3", "column 'y'", "'inf'"]),
        ("x0,y\n1,2\n3,2147483648\n", ["line 3", "column 'y'", "'2147483648'", "int32"]),
        ("x0,y\n1,2\n3,-2147483649.0\n", ["line 3", "column 'y'", "'-2147483649.0'"]),
        ("x0,y\n1,2\n3,1e999999999\n", ["line 3", "column 'y'", "'1e999999999'"]),
        ('x0,y\n1,2\n"3"x,4\n', ["cannot be read as .csv"]),
    ],
)
def test_a_wrong_table_says_where(tmp_path, text, parts):
    fault(table(tmp_path / "a.csv", text), [X, LABELS], *parts)


def test_many_columns_are_not_all_listed(tmp_path):
    header = ",".join(f"a{i}" for i in range(500))
    fault(table(tmp_path / "a.csv", header + "\n"), [Y], "'a11', 488 more")


def test_a_number_beyond_the_inputs_range(tmp_path):
    path = table(tmp_path / "a.csv", "y\n1\n1e39\n")
    fault(path, [InputSpec("y", "float32", 1)], "line 3", "'1e39'", "float32")


def test_two_matrices_cannot_share_what_is_left(tmp_path):
    specs = [X, InputSpec("z", "float32", 2)]
    path = table(tmp_path / "a.csv", "a,b\n1,2\n")
    fault(path, specs, "'x' (2-dimensional float64), 'z' (2-dimensional float32)")


@pytest.mark.parametrize("ndim", [0, 3])
def test_a_table_feeds_vectors_and_matrices_alone(tmp_path, ndim):
    path = table(tmp_path / "a.csv", "y\n1\n")
    fault(path, [InputSpec("y", "float64", ndim)], f"'y' ({ndim}-dimensional", ".npz")


def test_two_inputs_of_one_name(tmp_path):
    fault(table(tmp_path / "a.csv", "y\n1\n"), [Y, LABELS], "different names", "int32")


def test_text_that_is_not_utf_8(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x0,größe\n1,2\n", encoding="utf-16")
    fault(path, [X], "cannot be read as .csv", "UnicodeDecodeError")


@pytest.mark.parametrize(
    ("values", "spec", "parts"),
    [
        ([1.0, None], Y, ["row 2", "column 'y'", "nothing"]),
        ([1, None], LABELS, ["row 2", "column 'y'", "nothing"]),
        ([1.0, 2.5], LABELS, ["row 2", "column 'y'", "2.5", "whole number"]),
        ([1.0, float("nan")], LABELS, ["row 2", "nan", "whole number"]),
        ([1, 2**31], LABELS, ["row 2", "2147483648", "int32"]),
        ([0.0, 2.0**63], InputSpec("y", "int64", 1), ["row 2", "9.22", "int64"]),
        (["a", "b"], Y, ["column 'y'", "it takes numbers"]),
        ([None, None], Y, ["'y'"]),
        ([[1.0], [2.0]], Y, ["column 'y'", "it takes numbers"]),
    ],
)
def test_a_wrong_parquet_column_says_where(tmp_path, engine, values, spec, parts):
    pq.write_table(pa.table({"y": values}), tmp_path / "a.parquet")
    fault(tmp_path / "a.parquet", [spec], *parts)


def test_a_parquet_file_without_rows(tmp_path, engine):
    pl.DataFrame({"y": [1.0]}).clear().write_parquet(tmp_path / "a.parquet")
    fault(tmp_path / "a.parquet", [Y], "0 for 'y'")


# Arrays


def test_npz_by_name(tmp_path):
    data = {"y": np.arange(3), "x": np.ones((3, 2), "float32"), "left": np.ones(7)}
    np.savez_compressed(tmp_path / "a.npz", **data)
    x, y = read_data(tmp_path / "a.npz", [X, LABELS])
    assert (x.dtype, y.dtype) == ("float64", "int32")
    np.testing.assert_array_equal(x, data["x"])
    np.testing.assert_array_equal(y, data["y"])


def test_npz_without_names(tmp_path):
    np.savez(tmp_path / "a.npz", np.ones((3, 2)), np.arange(3))
    x, y = read_data(tmp_path / "a.npz", [X, LABELS])
    assert x.shape == (3, 2)
    assert y.tolist() == [0, 1, 2]
    np.savez(tmp_path / "b.npz", np.arange(3.0))
    (z,) = read_data(tmp_path / "b.npz", [InputSpec(None, "float64", 1)])
    assert z.tolist() == [0, 1, 2]


def test_npy_stays_on_disk(tmp_path):
    array = np.random.default_rng(0).normal(size=(10, 3))
    np.save(tmp_path / "a.npy", array)
    (x,) = read_data(tmp_path / "a.npy", [X])
    assert isinstance(x, np.memmap)
    assert not x.flags.writeable
    np.testing.assert_array_equal(x, array)


@pytest.mark.parametrize("ending", [".npz", ".npy", ".csv", ".parquet"])
def test_a_data_set_takes_what_is_read(tmp_path, ending):
    array = np.arange(30.0).reshape(10, 3)
    path = tmp_path / f"a{ending}"
    writers = {
        ".npz": lambda: np.savez(path, x=array),
        ".npy": lambda: np.save(path, array),
        ".csv": lambda: pd.DataFrame(array).to_csv(path),
        ".parquet": lambda: pl.DataFrame(array).write_parquet(path),
    }
    writers[ending]()
    spec = InputSpec("x", "float32", 2)
    bound = Dataset(read_data(path, [spec]), batch_size=4, shuffle=None).bind([spec])
    batches = [batch[0] for batch, _ in bound.epoch()]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert all(b.dtype == "float32" and b.flags.carray for b in batches)
    np.testing.assert_array_equal(np.concatenate(batches), array)


def test_a_sparse_input_is_fed_from_a_table(tmp_path):
    spec = InputSpec("x", "float64", 2, "csr")
    path = table(tmp_path / "a.csv", "x0,x1\n0,1\n2,0\n")
    bound = Dataset(read_data(path, [spec])).bind([spec])
    ((batch, samples),) = bound.in_order()
    assert scipy.sparse.issparse(batch[0])
    assert samples == 2
    np.testing.assert_array_equal(batch[0].toarray(), [[0, 1], [2, 0]])


@pytest.mark.parametrize(
    ("arrays", "specs", "parts"),
    [
        ({"x": np.ones((3, 2))}, [X, Y], ["no array for 'y'", "only 'x'"]),
        ({"arr_0": np.ones(3), "arr_1": np.ones(3)}, [Y], ["no array for 'y'", "'arr_0', 'arr_1'"]),
        ({"y": np.ones((3, 1))}, [Y], ["'y'", "(3, 1)", "1-dimensional"]),
        ({"y": np.ones(3)}, [LABELS], ["'y'", "float64", "int32"]),
        ({"y": np.array([0, 2**40])}, [LABELS], ["'y'", str(2**40), "int32"]),
        ({"y": np.array(["a", "b"])}, [Y], ["'y'", "float64"]),
        ({"y": np.array([None, 1.0])}, [Y], ["cannot be read as .npz", "allow_pickle=False"]),
        ({"x": np.ones((3, 2)), "y": np.ones(2)}, [X, Y], ["3 for 'x'", "2 for 'y'"]),
        ({"y": np.ones(0)}, [Y], ["one at least", "0 for 'y'"]),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, specs, parts):
    np.savez(tmp_path / "a.npz", **arrays)
    fault(tmp_path / "a.npz", specs, *parts)


@pytest.mark.parametrize(
    ("array", "specs", "parts"),
    [
        (np.ones(3), [X, Y], ["the array of one", "cannot feed 2 inputs", ".npz"]),
        (np.ones(3), [X], ["(3,)", "2-dimensional"]),
        (np.ones(3), [LABELS], ["float64", "int32"]),
        (np.array([None, 1.0]), [Y], ["cannot be read as .npy", "Python objects"]),
        (np.ones(0), [Y], ["0 for 'y'"]),
    ],
)
def test_a_wrong_array_is_named(tmp_path, array, specs, parts):
    np.save(tmp_path / "a.npy", array)
    fault(tmp_path / "a.npy", specs, *parts)


# Wrong files


@pytest.mark.parametrize("ending", [".npz", ".npy", ".csv", ".tsv", ".parquet"])
def test_a_file_that_is_not_there(tmp_path, ending):
    fault(tmp_path / f"a{ending}", [X], "is not there. Give the path")
    (tmp_path / f"b{ending}").mkdir()
    fault(tmp_path / f"b{ending}", [X], "is a directory")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.csv.gz"])
def test_an_unknown_ending_lists_the_known(tmp_path, name):
    path = table(tmp_path / name, "y\n1\n")
    fault(path, [Y], ".npz, .npy, .csv, .tsv, .parquet")


@pytest.mark.parametrize("ending", [".npz", ".npy", ".parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"x0,x1\n1,2\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00"]
)
def test_a_file_of_another_kind(tmp_path, ending, content, engine):
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    fault(path, [X], f"cannot be read as {ending}")


@pytest.mark.parametrize("ending", [".npz", ".npy", ".parquet"])
def test_a_file_that_was_cut_short(tmp_path, ending, engine):
    path = tmp_path / f"a{ending}"
    array = np.random.default_rng(0).normal(size=(50, 3))
    if ending == ".parquet":
        pl.DataFrame(array).write_parquet(path)
    else:
        (np.save if ending == ".npy" else np.savez)(path, array)
    path.write_bytes(path.read_bytes()[:-40])
    fault(path, [X], f"cannot be read as {ending}")


def test_a_flipped_bit_in_an_archive(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((50, 3)))
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    fault(path, [X], "cannot be read as .npz", "CRC")


def test_a_loss_without_inputs_takes_no_file(tmp_path):
    fault(table(tmp_path / "a.csv", "y\n1\n"), [], "a loss without inputs")


def test_messages_say_what_to_do(tmp_path):
    """The three parts in one example: the fact, the rule, what to do."""
    path = table(tmp_path / "a.csv", "y\n1\nabc\n")
    with pytest.raises(DataFileError) as caught:
        read_data(path, [LABELS])
    assert str(caught.value) == (
        f"{path}, line 3, column 'y' holds 'abc': its input, 'y' (1-dimensional int32), takes a "
        "whole number that it can hold. Mend it, or leave out the row or the column."
    )
    assert re.fullmatch(r"[^:]+: .+\. .+\.", str(caught.value))
