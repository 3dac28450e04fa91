"""Run directories: what they hold, what they refuse, what they tell."""

import json
import math

import pytest

from downhill_rms.watching.history import History, Record
from downhill_rms.watching.rundirectory import (
    RunDirectory,
    RunDirectoryError,
    seconds_per_update,
)

CONFIG = {"problem": "line.py", "seed": 7, "hyperparameters": {"momentum": 0.9, "decay": None}}


def record(epoch, valid, *, best=False, seconds=None, updates=None):
    seconds = float(epoch) if seconds is None else seconds
    counts = (epoch, 10 * epoch if updates is None else updates, seconds)
    return Record(*counts, {"loss": valid + 1}, {"loss": valid}, True, best, 0.01)


def make_run(path, losses=(3.0, 1.0, 2.0), **config):
    directory = RunDirectory(path)
    directory.create()
    directory.begin({**CONFIG, **config})
    best = min(losses)
    records = [record(i + 1, loss, best=loss == best) for i, loss in enumerate(losses)]
    directory.finish(History(records), {"stop_reason": "patience"})
    return directory


def test_what_was_written_is_read_back(tmp_path):
    directory = make_run(tmp_path / "run")
    assert directory.read_config() == {"format": 1, **CONFIG}
    assert directory.read_result() == {"stop_reason": "patience"}
    assert [r.valid["loss"] for r in directory.read_history()] == [3.0, 1.0, 2.0]


def test_the_results_name_the_best_epoch(tmp_path):
    results = make_run(tmp_path / "run").results()
    assert results["best epoch"] == "2"
    assert results["best valid loss"] == "1"
    assert (results["epochs"], results["updates"]) == ("3", "30")
    assert results["time per update"] == "100 ms"
    assert results["stopped"] == "patience"


def test_a_run_without_an_epoch_has_results(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG)
    results = directory.results()
    assert (results["epochs"], results["best epoch"], results["seconds"]) == ("0", "-", "-")
    assert "killed" in results["stopped"]


def test_a_directory_with_a_run_is_refused(tmp_path):
    directory = make_run(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=r"holds one run already\. .*--resume"):
        directory.refuse_if_begun()


def test_a_directory_whose_run_never_began_is_not(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG)
    directory.refuse_if_begun()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be made"):
        RunDirectory(tmp_path / "file" / "run").create()


@pytest.mark.parametrize("read", ["read_config", "read_history", "results"])
def test_another_directory_is_no_run(read, tmp_path):
    with pytest.raises(RunDirectoryError, match=r"has no config\.json"):
        getattr(RunDirectory(tmp_path), read)()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
def test_a_damaged_file_is_named(text, tmp_path):
    directory = make_run(tmp_path / "run")
    directory.config_path.write_text(text)
    with pytest.raises(RunDirectoryError, match=r"config\.json"):
        directory.results()


def test_another_format_is_refused(tmp_path):
    directory = make_run(tmp_path / "run")
    directory.config_path.write_text(json.dumps({"format": 2}))
    with pytest.raises(RunDirectoryError, match="format 2"):
        directory.read_config()


def test_the_best_is_that_of_the_last_run(tmp_path):
    """A trainer's second run begins with a new best, which may be a worse one."""
    directory = make_run(tmp_path / "run")
    records = [record(1, 1.0, best=True), record(2, 5.0, best=True), record(3, 6.0)]
    directory.finish(History(records), {})
    assert directory.results()["best valid loss"] == "5"


def test_time_per_update_leaves_the_first_epoch_out():
    times = [(60.0, 10), (61.0, 20), (62.0, 30), (65.0, 40)]
    records = [record(i, 1.0, seconds=s, updates=u) for i, (s, u) in enumerate(times)]
    assert seconds_per_update(History(records)) == pytest.approx(0.1)
    assert math.isnan(seconds_per_update(History(records[:1])))


def test_a_second_run_starts_its_clock_anew():
    times = [(1.0, 10), (2.0, 20), (0.5, 30), (1.5, 40)]
    records = [record(i, 1.0, seconds=s, updates=u) for i, (s, u) in enumerate(times)]
    assert seconds_per_update(History(records)) == pytest.approx(0.1)
