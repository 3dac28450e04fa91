"""Runs beside each other: their order, their columns, and what is no run."""

import csv
import io
import math

import pytest

from downhill_rms.command.comparison import compare, differing_number, only_runs
from downhill_rms.command.console import csv_text, fitting_table
from downhill_rms.watching.history import History, Record
from downhill_rms.watching.rundirectory import RunDirectory, RunDirectoryError
from tests.watching.test_rundirectory import make_run


def with_accuracy(path, pairs, **config):
    """A run whose best is the epoch of its highest accuracy."""
    directory = make_run(path, **config)
    best = max(accuracy for _, accuracy in pairs)
    records = [
        Record(i + 1, 10, 1.0, {}, {"loss": loss, "accuracy": a}, True, a == best, 0.01)
        for i, (loss, a) in enumerate(pairs)
    ]
    directory.finish(History(records), {"stop_reason": "patience"})
    return directory


def names_of(rows):
    return [row["run"].rpartition("/")[2] for row in rows]


def test_runs_are_compared_by_their_best(tmp_path):
    runs = [
        make_run(tmp_path / "a", (3.0, 2.0)),
        make_run(tmp_path / "b", (math.nan,)),
        make_run(tmp_path / "c", (0.5, 4.0), hyperparameters={"momentum": 0.5}),
    ]
    rows = compare(runs)
    assert names_of(rows) == ["c", "a", "b"]
    assert [row["momentum"] for row in rows] == ["0.5", "0.9", "0.9"]
    assert "decay" not in rows[0]


def test_runs_are_sorted_by_any_monitor(tmp_path):
    runs = [
        with_accuracy(tmp_path / "a", [(1.0, 0.5), (2.0, 0.75)]),
        with_accuracy(tmp_path / "b", [(3.0, 0.9)]),
        with_accuracy(tmp_path / "c", [(0.5, 0.6)]),
    ]
    assert names_of(compare(runs)) == ["c", "a", "b"]
    assert names_of(compare(runs, "accuracy", highest_first=True)) == ["b", "a", "c"]
    assert names_of(compare(runs, "accuracy")) == ["c", "a", "b"]
    assert [row["valid accuracy"] for row in compare(runs)] == ["0.6", "0.75", "0.9"]
    with pytest.raises(ValueError, match="No run has a monitor 'error', only loss, accuracy"):
        compare(runs, "error")


def test_the_judge_of_the_runs_is_the_judge_here(tmp_path):
    judged = {"options": {"monitor": "accuracy", "higher_is_better": True}}
    runs = [
        with_accuracy(tmp_path / "a", [(1.0, 0.5)], **judged),
        with_accuracy(tmp_path / "b", [(3.0, 0.9)], **judged),
    ]
    assert names_of(compare(runs)) == ["b", "a"]


def test_what_is_no_run_is_skipped_with_a_line(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "notes.txt").write_text("")
    paths = [str(path) for path in (run.path, tmp_path / "notes.txt", tmp_path / "missing")]
    runs, skipped = only_runs(paths)
    assert [found.path for found in runs] == [run.path]
    assert [line.split(":")[0] for line in skipped] == [f"skipped {path}" for path in paths[1:]]
    with pytest.raises(RunDirectoryError, match=r"notes\.txt"):
        only_runs(paths[1:])


def test_a_run_that_cannot_be_read_is_not_skipped(tmp_path):
    make_run(tmp_path / "run")
    broken = make_run(tmp_path / "broken")
    broken.config_path.write_text("{")
    with pytest.raises(RunDirectoryError, match="broken"):
        only_runs([str(tmp_path / "run"), str(broken.path)])


def test_the_number_that_differs(tmp_path):
    def runs(*given):
        return [
            make_run(tmp_path / f"{len(list(tmp_path.iterdir()))}", hyperparameters=values)
            for values in given
        ]

    assert differing_number(runs({"momentum": 0.5}, {"momentum": 0.9})) == ("momentum", [0.5, 0.9])
    assert differing_number(runs({"momentum": 0.5}, {"momentum": 0.5})) is None
    assert differing_number(runs({"centered": True}, {"centered": False})) is None
    assert differing_number(runs({"a": 1, "b": 1}, {"a": 2, "b": 2})) is None


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_fits_its_terminal(width, tmp_path):
    runs = [
        make_run(tmp_path / f"runs-{i}", hyperparameters={"learning_rate": 10.0**-i, "momentum": i})
        for i in range(3)
    ]
    rows = [{**row, "run": row["run"].rpartition("/")[2]} for row in compare(runs)]
    lines = fitting_table(rows, width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split()[:4] == ["run", "best", "valid", "loss"]
    assert ("no room for" in " ".join(lines)) == (width < 200)
    for name in rows[0]:
        assert name in " ".join(lines)


def test_comma_separated_values_have_all_columns(tmp_path):
    rows = compare([make_run(tmp_path / "a,b"), make_run(tmp_path / "c", (math.nan,))])
    found = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert found == rows


def test_a_run_without_options_was_judged_by_its_loss(tmp_path):
    assert make_run(tmp_path / "run").judge() == ("loss", False)


def test_a_run_without_validation_data_does_not_speak_of_validation(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.begin({"problem": "p", "hyperparameters": {}})
    record = Record(1, 3, 0.5, {"loss": 2.0}, {"loss": 1.5}, True, True, 0.1, valid_is_train=True)
    directory.finish(History([record]), {"stop_reason": "max_epochs", "updates": 3})
    assert directory.results()["best train loss"] == "1.5"
    assert "validation loss" not in directory.headline()
    assert "best loss of the training data 1.5 at epoch 1" in directory.headline()
    assert compare([directory])[0]["best valid loss"] == "1.5 (train)"
