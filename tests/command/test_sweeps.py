"""``downhill-rms sweep`` and ``find-rate`` as a person uses them."""

import csv
import json
import re
import sys

import pytest
from click.testing import CliRunner
from downhill_rms.schedules import cosine

from downhill_rms.command.cli import main
from downhill_rms.command.console import parse_values
from downhill_rms.sweeping import loguniform
from downhill_rms.watching import RunDirectory

PROBLEM = """
import numpy as np, pytensor, pytensor.tensor as pt


def problem(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 2))
    Y = X @ [1.0, -2.0] + 0.5
    x, y = pt.matrix("x"), pt.vector("y")
    w, b = pytensor.shared(rng.normal(size=2), name="w"), pytensor.shared(0.0, name="b")
    return {
        "loss": pt.sqr(x @ w + b - y).mean(),
        "inputs": [x, y],
        "train": [X[:40], Y[:40]],
        "valid": [X[40:], Y[40:]],
        "hyperparameters": {"learning_rate": 0.05},
        "options": {"validate_every": 1, "max_epochs": 4, "batch_size": 10},
    }


def seedless():
    return problem(0)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "line.py").write_text(PROBLEM)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_values_are_read():
    assert parse_values("learning_rate=1e-3,1e-2") == ("learning_rate", [1e-3, 1e-2])
    assert parse_values("learning_rate=0.1") == ("learning_rate", 0.1)
    assert parse_values("centered=true,false") == ("centered", [True, False])
    name, values = parse_values("learning_rate=cosine(1e-2, 200),0.1")
    assert (name, values) == ("learning_rate", [cosine(1e-2, 200), 0.1])
    assert parse_values("learning_rate=loguniform(1e-4,1e-1)")[1] == loguniform(1e-4, 1e-1)


def test_a_sweep_leaves_runs_a_table_and_a_picture(folder):
    rates = "learning_rate=1e-3,1e-2,1e-1"
    output = succeed("sweep", "line.py", "--set", rates, "--set", "momentum=0,0.9", "--seeds", 2)
    rows = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    assert rows[0] == ["learning_rate", "momentum", "mean loss", "spread", "seeds", "diverged"]
    means = [float(row[2]) for row in rows[1:7]]
    assert means == sorted(means)
    path = folder / "runs" / "line-sweep"
    assert (path / "sweep.png").stat().st_size > 5000
    table = list(csv.DictReader((path / "sweep.csv").read_text().splitlines()))
    assert len(table) == 12
    assert {row["seed"] for row in table} == {"0", "1"}
    for row in table:
        last = RunDirectory(path / row["run"]).read_history()[-1]
        assert last.epoch == int(row["epochs"]) == 4
    assert "max_epochs" in succeed("show", path / "00")
    compared = succeed("compare", *sorted(path.glob("[01]*")))
    assert compared.splitlines()[1].split()[0].endswith(table[0]["run"])
    succeed("plot", *sorted(path.glob("[01]*")))
    # The data are those of one seed, the parameters those of each.
    first = [RunDirectory(path / name).read_history()[0].valid["loss"] for name in ("00", "01")]
    assert first[0] != first[1]


def test_a_run_is_that_of_train(folder):
    succeed("sweep", "line.py", "--set", "learning_rate=0.01,0.1", "--mode", "FAST_COMPILE")
    one = ["--set", "learning_rate=0.1", "--mode", "FAST_COMPILE", "--out", "alone"]
    succeed("train", "line.py", *one)
    runs = [RunDirectory(folder / name) for name in ("runs/line-sweep/1", "alone")]
    one, other = ([(r.train, r.valid) for r in run.read_history()] for run in runs)
    assert one == other


def test_workers_make_the_same_runs(folder):
    given = ["line.py", "--set", "learning_rate=loguniform(1e-3,1)", "--sample", 3]
    given += ["--mode", "FAST_COMPILE"]
    succeed("sweep", *given, "--out", "one")
    succeed("sweep", *given, "--out", "two", "--workers", 2)
    for name in ("0", "1", "2"):
        one, two = (RunDirectory(folder / path / name).read_history() for path in ("one", "two"))
        assert [(r.train, r.valid) for r in one] == [(r.train, r.valid) for r in two]
    one, two = (json.loads((folder / path / "sweep.json").read_text()) for path in ("one", "two"))
    assert one["settings"] == two["settings"]


def test_a_sweep_goes_on(folder):
    given = ["line.py", "--set", "learning_rate=0.01,0.1"]
    succeed("sweep", *given, "--max-epochs", 2)
    assert "holds a sweep" in run("sweep", *given, "--out", "runs/line-sweep").output
    succeed("sweep", *given, "--resume", "--max-epochs", 3)
    assert len(RunDirectory(folder / "runs/line-sweep/0").read_history()) == 3
    succeed("sweep", *given, "--max-epochs", 1)
    assert (folder / "runs/line-sweep-2/1").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["line.py", "--set", "learning_rat=1,2"], "learning_rate"),
        (["line.py", "--set", "learning_rate=1,-2"], "learning_rate"),
        (["line.py", "--set", "learning_rate=loguniform(1,0)"], "low < high"),
        (["line.py", "--set", "learning_rate=loguniform(0.1,1)"], "without sample="),
        (["line.py:seedless", "--set", "learning_rate=1,2", "--seeds", "2"], "nothing depends"),
        (["line.py", "--set", "learning_rate=1,2", "--halve-every", "2", "--workers", "2"], "all"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(folder, arguments, message):
    result = run("sweep", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(folder.glob("runs/*/*/history.jsonl"))


def test_find_rate_suggests_and_draws(folder):
    output = succeed("find-rate", "line.py", "--updates", 60, "--out", "rates.png")
    suggestion = float(re.search(r"suggested learning rate (\S+)", output).group(1))
    assert 1e-3 < suggestion < 1
    assert (folder / "rates.png").stat().st_size > 5000
