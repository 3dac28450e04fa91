"""Parquet files and folders by windows. The whole file, read by pyarrow at once, is the oracle."""

import subprocess
import sys

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import scipy.sparse

from downhill_rms import Checkpoint, Dataset, Trainer
from downhill_rms.data.datafiles import read_data
from downhill_rms.data.parquet import STREAMED, is_streamed
from downhill_rms.data.sources import InputSpec
from tests.data.test_prefetch import Cut

pa = pytest.importorskip("pyarrow")
dataset = pytest.importorskip("pyarrow.dataset")
pq = pytest.importorskip("pyarrow.parquet")

N = 103
X, Y, Z = InputSpec("x", "float64", 2), InputSpec("y", "int64", 1), InputSpec("z", "float32", 1)


def table(n=N, first=0):
    number = np.arange(first, first + n)
    # Not in the order of the numbers, and beside what no input takes.
    return pa.table(
        {
            "x1": number + 0.5,
            "y": number,
            "text": [str(i) for i in number],
            "x0": number.astype("float32"),
            "x10": number % 7,
            "z": number % 2 == 0,
        }
    )


def write(path, content, group=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=group)
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "train.parquet", table())


@pytest.fixture
def folder(tmp_path):
    """Three files of unlike sizes, one of them deeper, and what is none of the data."""
    write(tmp_path / "data" / "b.parquet", table(40, 30), group=7)
    write(tmp_path / "data" / "a.parquet", table(30, 0), group=100)
    write(tmp_path / "data" / "c" / "d.PARQUET", table(N - 70, 70), group=20)
    write(tmp_path / "data" / "_temporary.parquet", table(5))
    write(tmp_path / "data" / ".hidden" / "a.parquet", table(5))
    (tmp_path / "data" / "README").write_text("no data")
    return tmp_path / "data"


def joined(batches):
    return [np.concatenate(arrays) for arrays in zip(*(b for b, _ in batches), strict=True)]


def expected():
    number = np.arange(N)
    return [np.stack([number, number + 0.5, number % 7], axis=1), number, number % 2 == 0]


def check_pass(batches, ordered):
    """A pass has every row once, its columns together, in arrays as PyTensor takes them."""
    for batch, count in batches:
        for array, spec in zip(batch, (X, Y, Z), strict=True):
            assert array.dtype == spec.dtype
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert len(array) == count
    arrays = joined(batches)
    order = slice(None) if ordered else np.argsort(arrays[1])
    for found, wanted in zip(arrays, expected(), strict=True):
        np.testing.assert_array_equal(found[order], wanted)
    return arrays[1].tolist()


@pytest.mark.parametrize("given", ["file", "folder", "text", "pyarrow"])
@pytest.mark.parametrize("window", [None, 1, 25, 1000])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_every_row_once_a_pass(file, folder, given, window, prefetch):
    source = {
        "file": file,
        "folder": folder,
        "text": str(folder),
        "pyarrow": dataset.dataset([str(file)], format="parquet"),
    }[given]
    data = Dataset(source, batch_size=10, rng=0, window=window, prefetch=prefetch)
    bound = data.bind([X, Y, Z])
    orders = [check_pass(list(bound.epoch()), ordered=False) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    assert [count for _, count in bound.epoch()] == [10] * 10 + [3]
    check_pass(list(bound.in_order()), ordered=True)


@pytest.mark.parametrize("iteration_size", [3, 25])
@pytest.mark.parametrize("together", [1, 4])
def test_epochs_of_other_lengths_than_a_pass(file, iteration_size, together):
    options = {"batch_size": 10, "rng": 0, "window": 30}
    plain = Dataset(file, **options).bind([Y])
    passes = [list(plain.epoch()) for _ in range(7)]
    wanted = [y.tolist() for one in passes for (y,), _ in one]
    bound, found = Dataset(file, iteration_size=iteration_size, **options).bind([Y]), []
    while len(found) < 50:
        for (y,), _ in bound.epoch(together=together):
            found += [y.tolist()] if together == 1 else y.tolist()
    assert found == wanted[: len(found)]


def test_it_is_what_is_read_as_a_whole(file):
    for found, wanted in zip(
        joined(Dataset(file).bind([X, Y, Z]).in_order()),
        read_data(file, [X, Y, Z]),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def test_without_a_shuffle_rows_come_as_they_stand_there(folder):
    bound = Dataset(folder, batch_size=8, window=20, shuffle=None).bind([X, Y, Z])
    for _ in range(2):
        check_pass(list(bound.epoch()), ordered=True)


def test_row_groups_that_are_larger_than_windows_and_smaller(tmp_path):
    groups = [1, 50, 0, 3, 49]
    path = tmp_path / "train.parquet"
    content = table()
    with pq.ParquetWriter(path, content.schema) as writer:
        first = 0
        for size in groups:
            writer.write_table(content.slice(first, size), row_group_size=size or 1)
            first += size
    for window in (5, 20, 60):
        bound = Dataset(path, batch_size=5, rng=0, window=window).bind([X, Y, Z])
        for _ in range(3):
            check_pass(list(bound.epoch()), ordered=False)


def test_parts_that_are_decoded_together_are_cut_where_a_window_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("downhill_rms.data.parquet.PART", 16)
    path = write(tmp_path / "train.parquet", table(), group=70)
    for options in ({"window": 25}, {"window": 25, "shuffle": None}, {"window": 100}):
        bound = Dataset(path, batch_size=5, rng=0, **options).bind([X, Y, Z])
        check_pass(list(bound.epoch()), ordered=False)
        rows = [joined([(bound.source.take(slice(i, i + 9)), 9)])[1].tolist() for i in (0, 30, 90)]
        assert rows == [list(range(i, i + 9)) for i in (0, 30, 90)]


def test_by_hand_all_columns_stand_in_one_matrix(tmp_path):
    content = table().drop_columns(["text"])
    batches = list(Dataset(write(tmp_path / "a.parquet", content), rng=0, batch_size=10))
    assert [batch[0].shape for batch in batches] == [(10, 5)] * 10 + [(3, 5)]
    rows = np.concatenate([matrix for (matrix,) in batches])
    wanted = np.stack([np.asarray(column, "float64") for column in content.columns], axis=1)
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 1])], wanted)
    with pytest.raises(ValueError, match="column 'text' holds string for an array"):
        next(iter(Dataset(write(tmp_path / "b.parquet", table()))))


def test_the_index_of_a_frame_feeds_no_input(tmp_path):
    frame = table().select(["y", "x0"]).to_pandas().iloc[::-1]
    frame.to_parquet(tmp_path / "frame.parquet", engine="pyarrow")
    bound = Dataset(tmp_path / "frame.parquet").bind([InputSpec("all", "float64", 2)])
    (x,) = joined(bound.in_order())
    assert x.shape == (N, 2)


def test_a_sparse_input(file):
    batches = list(Dataset(file).bind([InputSpec("x", "float64", 2, "csr")]).in_order())
    assert all(scipy.sparse.isspmatrix_csr(x) for (x,), _ in batches)
    whole = np.concatenate([x.toarray() for (x,), _ in batches])
    np.testing.assert_array_equal(whole, expected()[0])


def test_nan_is_a_number(tmp_path):
    path = write(tmp_path / "a.parquet", pa.table({"z": [1.0, np.nan, np.inf]}))
    (z,) = joined(Dataset(path).bind([Z]).in_order())
    np.testing.assert_array_equal(z, np.float32([1, np.nan, np.inf]))


def test_whole_numbers_that_are_written_as_fractions(tmp_path):
    path = write(tmp_path / "a.parquet", pa.table({"y": [1.0, 2.0, 3.0]}))
    (y,) = joined(Dataset(path).bind([Y]).in_order())
    assert y.dtype == np.int64
    assert y.tolist() == [1, 2, 3]


SMALL = InputSpec("y", "int8", 1)


@pytest.mark.parametrize(
    ("values", "spec", "parts"),
    [
        ([1, 2, None, 4], Y, ["a.parquet, row 3, column 'y' holds nothing", "a whole number"]),
        ([0.5, 1.5, None], InputSpec("y", "float32", 1), ["row 3, column 'y' holds nothing"]),
        ([1.0, 2.5], Y, ["row 2, column 'y' holds 2.5"]),
        ([1, 300], SMALL, ["row 2, column 'y' holds 300", "'y' (1-dimensional int8)"]),
        ([1.0, 1e300], InputSpec("y", "float32", 1), ["row 2, column 'y' holds 1e+300"]),
        (["a", "b"], Y, ["column 'y' holds string for 'y' (1-dimensional int64)"]),
        ([[1], [2]], Y, ["column 'y' holds list"]),
        (pa.array(["a", "b"]).dictionary_encode(), Y, ["column 'y' holds dictionary"]),
        (pa.array([1, 2], pa.date32()), Y, ["column 'y' holds date32"]),
        ([None, None], Y, ["column 'y' holds null"]),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_wrong_column_says_where(tmp_path, values, spec, parts, prefetch):
    path = write(tmp_path / "a.parquet", pa.table({"y": values}), group=2)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        list(Dataset(path, "train", prefetch=prefetch).bind([spec]).epoch())
    for part in parts:
        assert part in str(error.value)


def test_a_cell_is_found_in_its_file_and_behind_other_windows(folder):
    content = table(40, 30).set_column(1, "y", pa.array([*range(33), None, *range(6)]))
    write(folder / "b.parquet", content, group=7)
    with pytest.raises(ValueError, match=r"b\.parquet, row 34, column 'y' holds nothing"):
        list(Dataset(folder, batch_size=5, window=10, rng=0).bind([Y]).epoch())


def test_the_files_of_a_folder_have_the_same_columns(folder):
    write(folder / "b.parquet", table(40, 30).drop_columns(["x10"]))
    with pytest.raises(ValueError, match=r"b\.parquet has no 'x10', only 'x1', 'y'"):
        list(Dataset(folder).bind([X]).epoch())
    write(folder / "b.parquet", table(40, 30).set_column(1, "y", pa.array(["a"] * 40)))
    with pytest.raises(ValueError, match=r"b\.parquet, column 'y' holds string"):
        list(Dataset(folder).bind([Y]).epoch())


def test_numbers_of_unlike_kinds_in_the_files_of_a_folder(folder):
    content = table(40, 30)
    write(folder / "b.parquet", content.set_column(1, "y", content["y"].cast("float64")))
    check_pass(list(Dataset(folder).bind([X, Y, Z]).epoch()), ordered=False)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([InputSpec("q", "float64", 1)], "has no columns for 'q'"),
        ([InputSpec("x", "float64", 3)], "a table feeds vectors and matrices"),
        ([], "is given for a loss without inputs"),
    ],
)
def test_inputs_that_it_cannot_feed(file, inputs, message):
    with pytest.raises(ValueError, match=f"valid: .*train.parquet .*{message}|{message}"):
        Dataset(file, "valid").bind(inputs)


def test_paths_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no data")
    write(tmp_path / "none.parquet", table(0))
    for name, message in {
        "missing.parquet": "missing.parquet is not there. Give a Parquet file, or a folder",
        "missing": "missing is not there",
        "empty": r"empty has no file whose name ends in \.parquet",
        "text.parquet": r"text\.parquet cannot be read as \.parquet \(Arrow",
        "none.parquet": r"none\.parquet has no rows",
    }.items():
        for given in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(ValueError, match=f"^train: .*{message}"):
                Dataset(given, "train")


def test_a_file_that_was_cut_short(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read as \.parquet"):
        Dataset(file)


def test_a_damaged_row_group_is_told_with_its_file(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"z": rng.normal(size=20_000)}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[20_000:60_000] = bytes(40_000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as \.parquet"):
        list(Dataset(path).bind([InputSpec("z", "float64", 1)]).epoch())


def test_what_no_windows_are_read_from(tmp_path, file):
    filtered = dataset.dataset(str(file)).filter(dataset.field("y") > 5)
    with pytest.raises(ValueError, match=r"filtered"):
        Dataset(filtered)
    table().to_pandas().to_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="it is read if its files are Parquet"):
        Dataset(dataset.dataset(str(tmp_path / "a.csv"), format="csv"))
    with pytest.raises(ValueError, match="axis is 1 for Parquet files"):
        Dataset(file, axis=1)
    with pytest.raises(ValueError, match="shuffle is 'batches'"):
        Dataset(file, shuffle="batches")


def test_without_pyarrow_it_says_what_to_install(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'Run pip install "downhill_rms\[parquet\]"'):
        Dataset(file)


def test_pyarrow_is_imported_only_where_it_is_used():
    program = "import downhill_rms, sys; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_window_takes_32_mebibytes_by_default(tmp_path, file):
    content = pa.table({"a": np.zeros(10), "b": np.zeros(10, "float32"), "c": ["text"] * 10})
    path = write(tmp_path / "a.parquet", content)
    assert Dataset(path).source.window == 2**25 // 12
    assert Dataset(file, window=50, batch_size=8).sampler.window == 56


# Training: the same bits as from arrays in memory, and from where a run was cut off.


def fit(data, mode, path=None, epochs=4, **options):
    x, y = pt.matrix("x"), pt.vector("y")
    w = pytensor.shared(np.zeros(3), name="w")
    trainer = Trainer(pt.sqr(x @ w - y).mean(), inputs=[x, y], mode=mode)
    options |= {"learning_rate": 0.01, "checkpoint": path}
    trainer.minimize(data, max_epochs=epochs, validate_every=1, **options)
    return trainer, w.get_value()


@pytest.mark.parametrize("prefetch", [0, 1])
def test_training_is_that_on_the_same_minibatches(file, mode, prefetch):
    options = {"batch_size": 10, "rng": 2, "window": 30}
    bound = Dataset(file, **options).bind([X, InputSpec("y", "float64", 1)])
    copies = [[[a.copy() for a in b] for b, _ in bound.epoch()] for _ in range(4)]
    everything = [batch for epoch in copies for batch in epoch]
    calls = iter(everything)
    ready = Dataset(lambda: next(calls), iteration_size=11)
    valid = Dataset([expected()[0], expected()[1].astype("float64")], batch_size=10)
    _, wanted = fit(ready, mode, valid=valid)
    _, found = fit(Dataset(file, prefetch=prefetch, **options), mode)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_a_run_resumes_bit_for_bit(folder, tmp_path, mode, prefetch):
    def data():
        return Dataset(folder, batch_size=4, rng=3, window=30, prefetch=prefetch)

    _, wanted = fit(data(), mode)
    run = tmp_path / "run"
    for saves in (40, 3):  # in the middle of a window of the second pass
        with pytest.raises(RuntimeError, match="cut off"):
            fit(data(), mode, Cut(run, saves), resume=True)
    trainer, found = fit(data(), mode, Checkpoint(run), resume=True)
    assert trainer.update_count == 4 * 26
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("content", "group", "fault"),
    [
        (table(N + 1), 10, "n_samples is 104 instead of 103"),
        (table(), 20, "the blocks that samples are read in, such as row groups, are others"),
    ],
)
def test_a_file_that_changed_is_refused(file, tmp_path, mode, content, group, fault):
    options = {"batch_size": 10, "rng": 0, "window": 30}
    fit(Dataset(file, **options), mode, tmp_path / "run", epochs=1)
    write(file, content, group)
    with pytest.raises(ValueError, match=f"train is not what the run began with: .*{fault}"):
        fit(Dataset(file, **options), mode, tmp_path / "run", resume=True)


def test_predictions_come_in_the_order_of_the_rows(folder, mode):
    x, w = pt.matrix("x"), pytensor.shared(np.ones(3), name="w")
    trainer = Trainer(pt.sqr(x @ w).mean(), inputs=[x], mode=mode)
    found = trainer.predict(x @ w, folder)
    np.testing.assert_allclose(found, expected()[0].sum(axis=1))


def test_large_files_and_folders_are_streamed(tmp_path, folder, file, monkeypatch):
    assert is_streamed(folder)
    assert not is_streamed(file)
    assert not is_streamed(tmp_path / "missing.parquet")
    large = tmp_path / "large.parquet"
    with open(large, "wb") as sparse:
        sparse.truncate(STREAMED + 1)
    assert is_streamed(large)
    assert not is_streamed(large.rename(tmp_path / "large.npy"))
