"""Records of what happened: exact in every form, and whole whatever kills the writer."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downhill_rms.watching.history import History, HistoryError, HistoryFile, Record


def record(epoch, loss=1.0, **keywords):
    return Record(epoch, 10 * epoch, 0.5 * epoch, {"loss": loss}, {"loss": 2.0}, **keywords)


def history(n):
    return History([record(epoch) for epoch in range(1, n + 1)])


floats = st.floats(allow_nan=True)
names = st.text(st.characters(codec="utf-8"), max_size=8)


counts = st.integers(0, 2**62)
values = st.dictionaries(names, floats, max_size=3)
flags = st.booleans()
records = st.builds(Record, counts, counts, floats, values, values, flags, flags, floats)
histories = st.lists(records, max_size=3).map(History)


def same(one, other):
    """Equality that holds for NaN too: a float's text is exact. Monitors may change their order."""
    texts = (json.dumps(json.loads(each.to_json()), sort_keys=True) for each in (one, other))
    return next(texts) == next(texts)


# Every form gives back what was put in


@settings(max_examples=50, deadline=None)
@given(histories)
def test_json_round_trip(written):
    assert same(History.from_json(written.to_json()), written)


@settings(max_examples=50, deadline=None)
@given(histories)
def test_jsonl_round_trip(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("history") / "history.jsonl"
    written.to_jsonl(path)
    assert same(History.from_jsonl(path), written)


@settings(max_examples=50, deadline=None)
@given(histories)
@example(History([Record(1, 2, 0.5, dict.fromkeys(["a,b", '"', "\r", "\n", "θ", ""], 0.1), {})]))
def test_csv_round_trip(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("history") / "history.csv"
    written.to_csv(path)
    assert same(History.from_csv(path), written)


def test_json_lines_are_strict_json(tmp_path):
    path = tmp_path / "history.jsonl"
    values = [math.nan, math.inf, -math.inf]
    History([record(i, value) for i, value in enumerate(values)]).to_jsonl(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [line["train"]["loss"] for line in lines] == ["NaN", "Infinity", "-Infinity"]


def test_an_empty_table_is_an_empty_history(tmp_path):
    History().to_csv(tmp_path / "history.csv")
    assert len(History.from_csv(tmp_path / "history.csv")) == 0


def test_a_spreadsheet_may_write_truth_in_capitals(tmp_path):
    path = tmp_path / "history.csv"
    written = History([record(1, validated=True, best=True), record(2)])
    written.to_csv(path)
    path.write_text(path.read_text().replace("True", "TRUE").replace("False", "FALSE"))
    assert same(History.from_csv(path), written)


def test_a_state_from_before_the_learning_rate_is_read():
    text = json.dumps([{"epoch": 1, "updates": 2, "seconds": 0.1, "train": {}, "valid": {}}])
    assert math.isnan(History.from_json(text)[0].learning_rate)


# Columns


def test_columns_have_a_row_for_each_record():
    columns = history(3).to_dict()
    np.testing.assert_array_equal(columns["epoch"], [1, 2, 3])
    np.testing.assert_array_equal(columns["updates"], [10, 20, 30])
    np.testing.assert_array_equal(columns["seconds"], [0.5, 1.0, 1.5])
    np.testing.assert_array_equal(columns["valid_loss"], [2.0, 2.0, 2.0])


def test_a_monitor_that_was_not_there_is_nan():
    first = record(1)
    second = Record(2, 20, 1.0, {"loss": 1.0, "error": 0.5}, {"loss": 2.0})
    np.testing.assert_array_equal(History([first, second]).to_dict()["train_error"], [np.nan, 0.5])


def test_columns_of_nothing_have_their_types():
    columns = History().to_dict()
    kinds = [(name, column.dtype.kind) for name, column in columns.items()]
    assert kinds == [
        *[("epoch", "i"), ("updates", "i"), ("seconds", "f"), ("learning_rate", "f")],
        *[("validated", "b"), ("best", "b")],
    ]


def test_pandas_gets_the_columns_by_epoch():
    frame = history(3).to_pandas()
    assert frame.loc[2, "updates"] == 20
    assert list(frame["train_loss"]) == [1.0, 1.0, 1.0]


def test_without_pandas_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas, or use to_dict\(\)"):
        history(1).to_pandas()


def test_a_record_is_a_line_or_two():
    assert str(record(3, 0.25)) == "epoch    3  update     30  train loss=0.25"
    lines = str(record(3, 0.25, validated=True, best=True)).splitlines()
    assert lines[1].split() == ["best", "valid", "loss=2"]


# Files that are damaged


def test_a_file_cut_anywhere_in_its_last_line_keeps_the_others(tmp_path, caplog):
    path = tmp_path / "history.jsonl"
    history(3).to_jsonl(path)
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        caplog.clear()
        assert same(History.from_jsonl(path), history(2))
        assert ("cut by a crash" in caplog.text) == (end > start)


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "1", "null", "{}", '{"epoch": 1}', "\x00", "é\x80"),
        '{"epoch": 1, "updates": 2, "seconds": 0, "train": [], "valid": {}}',
        '{"epoch": 1, "updates": 2, "seconds": "soon", "train": {}, "valid": {}}',
        '{"epoch": null, "updates": 2, "seconds": 0, "train": {}, "valid": {}}',
        '{"epoch": 1.5, "updates": 2, "seconds": 0, "train": {}, "valid": {}}',
        '{"epoch": 1, "updates": true, "seconds": 0, "train": {}, "valid": {}}',
        '{"epoch": 1, "updates": 2, "seconds": 0, "train": {"loss": null}, "valid": {}}',
        '{"epoch": 1, "updates": 2, "seconds": 0, "train": {"\xff": 1}, "valid": {}}',
        '{"epoch": 1, "updates": 2, "seconds": 1' + 400 * "0" + ', "train": {}, "valid": {}}',
        '{"epoch": 1, "updates": 2, "seconds": 0, "train": {}, "valid": {}, "best": 1}',
        '{"epoch": 1, "updates": 2, "seconds": 0, "train": {}, "valid": {}, "more": 1}',
    ],
)
def test_another_line_that_is_no_record_is_named(line, tmp_path):
    path = tmp_path / "history.jsonl"
    text = f"{record(1).to_json()}\n{line}\n{record(3).to_json()}\n"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(
        HistoryError, match=r"history\.jsonl line 2 is no record (?!.*line \d).+\. Remove"
    ):
        History.from_jsonl(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HistoryError, match=r"absent\.jsonl cannot be read"):
        History.from_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(HistoryError, match=r"absent\.csv"):
        History.from_csv(tmp_path / "absent.csv")


HEADER = "epoch,updates,seconds,learning_rate,validated,best,train_loss\n"
FULL = HEADER + "1,2,0.5,0.1,perhaps,False,1.0\n"
PART = HEADER + "1,2,0.5,0.1,True,False\n"


@pytest.mark.parametrize("text", ["", "a,b\n", "epoch,updates\n1,2\n", 'epoch\n"1', FULL, PART])
def test_another_table_is_refused(text, tmp_path):
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(HistoryError, match=r"other\.csv is no history in CSV"):
        History.from_csv(path)


# Appending


def epochs(path):
    return [one.epoch for one in History.from_jsonl(path)]


def test_records_are_appended(tmp_path):
    path = tmp_path / "history.jsonl"
    with HistoryFile(path) as write:
        for one in history(3):
            write(one)
    assert same(History.from_jsonl(path), history(3))


def test_every_record_is_there_at_once(tmp_path):
    path = tmp_path / "history.jsonl"
    with HistoryFile(path) as write:
        for epoch in (1, 2, 3):
            write(record(epoch))
            assert epochs(path)[-1] == epoch


def test_a_resumed_run_has_each_epoch_once(tmp_path):
    path = tmp_path / "history.jsonl"
    history(5).to_jsonl(path)
    with HistoryFile(path) as write:
        write(record(4, 0.5))
        write(record(5, 0.5))
    assert epochs(path) == [1, 2, 3, 4, 5]
    assert [one.train["loss"] for one in History.from_jsonl(path)] == [1, 1, 1, 0.5, 0.5]


def test_a_rolled_back_run_has_each_epoch_once(tmp_path):
    path = tmp_path / "history.jsonl"
    with HistoryFile(path) as write:
        for epoch in (1, 2, 3, 2, 3, 4):
            write(record(epoch))
    assert epochs(path) == [1, 2, 3, 4]


def test_appending_after_a_cut_line_leaves_it_out(tmp_path):
    path = tmp_path / "history.jsonl"
    line = record(3).to_json()
    for end in range(1, len(line.encode()) + 1):
        history(2).to_jsonl(path)
        with open(path, "ab") as file:
            file.write(line.encode()[:end])
        with HistoryFile(path) as write:
            write(record(3, 0.5))
        assert epochs(path) == [1, 2, 3]


def test_a_damaged_file_is_refused_before_training(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text("notes of mine\n")
    with pytest.raises(HistoryError, match="line 1"):
        HistoryFile(path)
    assert path.read_text() == "notes of mine\n"


def test_a_file_that_was_closed_goes_on(tmp_path):
    write = HistoryFile(tmp_path / "history.jsonl")
    for one in history(3):
        write(one)
        write.close()
    assert same(History.from_jsonl(write.path), history(3))


# Files that cannot be written


def test_a_missing_directory_is_named(tmp_path):
    path = tmp_path / "absent" / "history"
    with pytest.raises(HistoryError, match=r"absent.history cannot be written \(No such file"):
        HistoryFile(path)(record(1))
    for save in (history(1).to_jsonl, history(1).to_csv):
        with pytest.raises(HistoryError, match=r"absent.history cannot be written \(No such file"):
            save(path)


@contextmanager
def room(size):
    """No file of this process may be larger; what is beyond the size is not written."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_the_disk_has_no_room_for_is_told_and_dropped(tmp_path):
    path = tmp_path / "history.jsonl"
    with HistoryFile(path) as write:
        write(record(1))
        size = path.stat().st_size
        with room(size + 20), pytest.raises(HistoryError, match="Make room"):
            write(record(2))
        assert path.stat().st_size == size + 20  # the line was cut indeed
        write(record(3))
    assert epochs(path) == [1, 3]


@pytest.mark.parametrize("form", ["to_jsonl", "to_csv"])
def test_a_file_is_replaced_whole_or_not_at_all(form, tmp_path):
    path = tmp_path / "history"
    path.write_text("what was there")
    with room(100), pytest.raises(HistoryError, match="Make room"):
        getattr(history(20), form)(path)
    assert path.read_text() == "what was there"
    with open(path) as before:
        getattr(history(20), form)(path)
        assert before.read() == "what was there"
    assert os.listdir(tmp_path) == ["history"]


# Writers that are killed

WRITER = """
import sys
from downhill_rms.watching.history import HistoryFile, Record
epoch, back = int(sys.argv[2]), int(sys.argv[3])
with HistoryFile(sys.argv[1]) as write:
    while True:
        for one in range(epoch, epoch + 10):
            write(Record(one, one, 0.5, {"loss": 1.0}, {"loss": 2.0}))
        epoch = one + 1 - back
"""


@pytest.mark.parametrize("back", [0, 5], ids=["appending", "rolling back"])
def test_a_writer_that_is_killed_leaves_every_epoch_once(back, tmp_path):
    path, written = tmp_path / "history.jsonl", 0
    for trial in range(3):
        command = [sys.executable, "-c", WRITER, str(path), str(written + 1), str(back)]
        with subprocess.Popen(command) as process:
            deadline = time.monotonic() + 60
            while not path.exists() or path.read_bytes().count(b"\n") <= written:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.005 * trial)
            os.kill(process.pid, signal.SIGKILL)
        found = epochs(path)
        assert found == list(range(1, len(found) + 1))
        assert len(found) > written - back
        written = len(found)
