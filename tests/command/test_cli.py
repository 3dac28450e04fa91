"""The command line as a person uses it: what each command does, and each thing that goes wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from downhill_rms import __version__
from downhill_rms.command.cli import main

ROOT = Path(__file__).parents[2]
PROBLEM = """
import atexit, os, signal
import numpy as np, pytensor, pytensor.tensor as pt
import downhill_rms as dr

x, y = pt.matrix("x"), pt.vector("y")
w = pytensor.shared(np.zeros(2), name="w")
b = pytensor.shared(0.0, name="b")
error = x @ w + b - y
LINE = np.array([1.0, -2.0])


def problem(seed=0):
    X = np.random.default_rng(seed).normal(size=(60, 2))
    data = [X, X @ LINE + 0.5]
    return {
        "loss": (error**2).mean(),
        "inputs": [x, y],
        "monitors": {"absolute": abs(error).mean()},
        "train": [part[:40] for part in data],
        "valid": [part[40:] for part in data],
        "hyperparameters": {"learning_rate": 0.05},
        "options": {"validate_every": 1, "max_epochs": 6, "batch_size": 10},
    }


def without_data():
    return {"loss": (error**2).mean(), "inputs": [x, y]}


def endless():
    return {**problem(), "options": {"patience": 1e9}}


def diverging():
    return {**problem(), "hyperparameters": {"learning_rate": 1e200}}


def batches(at, act):
    calls = []

    def batch():
        calls.append(1)
        if len(calls) == at:
            act()
        return [part[:10] for part in problem()["train"]]

    return dr.Dataset(batch, iteration_size=4)


def fail():
    raise OSError("the disk with the data is gone")


OPTIONS = {"validate_every": 1, "max_epochs": 6}


def failing():
    return {**problem(), "train": batches(6, fail), "options": OPTIONS}


def interrupted():
    data = batches(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    return {**problem(), "train": data, "options": OPTIONS}


class Impatient:
    def __del__(self):  # where nobody can catch a KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)


def impatient_while_drawing():
    from matplotlib.figure import Figure

    save = Figure.savefig
    Figure.savefig = lambda *given, **options: (Impatient(), save(*given, **options))
    return interrupted()


def impatient_at_the_end():
    atexit.register(Impatient)
    return interrupted()


def integers():
    return {"loss": 3}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A directory of its own, with a problem in it that no other test will import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("line.py").write_text(PROBLEM)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def history(path):
    lines = Path(path, "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# Training


def test_a_run_directory_holds_everything():
    output = succeed("train", "line.py", "--out", "run", "--seed", 3)
    names = {path.name for path in Path("run").iterdir()}
    assert names >= {
        *("config.json", "history.jsonl", "result.json", "log.txt", "curves.png", "checkpoints"),
    }
    config = json.loads(Path("run/config.json").read_text())
    assert config["problem"] == "line.py"
    assert config["seed"] == 3
    assert config["hyperparameters"]["learning_rate"] == 0.05
    assert config["versions"]["downhill_rms"] == __version__
    records = history("run")
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["updates"] == 24
    assert "epoch    6" in Path("run/log.txt").read_text()
    assert "ended (max_epochs) after 6 epochs, 24 updates" in output


def test_without_a_terminal_every_epoch_is_a_line():
    result = run("train", "line.py", "--out", "run")
    assert sum(line.startswith("epoch") for line in result.stderr.splitlines()) == 6


def test_one_seed_gives_one_run():
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeed("train", "line.py", "--out", name, "--seed", seed)
        losses.append([record["train"]["loss"] for record in history(name)])
    assert losses[0] == losses[1] != losses[2]


def test_without_a_seed_a_run_can_be_repeated():
    for name in ("a", "b"):
        succeed("train", "line.py", "--out", name)
    assert json.loads(Path("a/config.json").read_text())["seed"] == 0
    losses = [[record["train"]["loss"] for record in history(name)] for name in ("a", "b")]
    assert losses[0] == losses[1]


def test_what_is_monitored_and_what_judges_can_be_chosen():
    given = "--monitor absolute --validate-every 2 --monitor-gradients --monitor-updates"
    others = ["--updates-per-call", "2", "--on-divergence", "raise"]
    succeed("train", "line.py", *given.split(), *others)
    records = history("runs/line")
    assert [record["validated"] for record in records] == [False, True] * 3
    assert {"grad(w)", "update_ratio(b)"} <= set(records[0]["train"])
    best = [record["valid"]["absolute"] for record in records if record["best"]]
    assert best == sorted(best, reverse=True)
    config = json.loads(Path("runs/line/config.json").read_text())
    assert config["options"]["monitor"] == "absolute"
    assert config["options"]["updates_per_call"] == 2


def test_a_higher_monitor_can_be_the_better_one():
    succeed("train", "line.py", "--monitor", "absolute", "--higher-is-better", "--max-epochs", "3")
    assert not any(record["best"] for record in history("runs/line"))  # the error only falls


def test_options_and_hyperparameters_come_before_the_problems():
    succeed(
        *("train", "line.py", "--out", "run", "--set", "learning_rate=0.01"),
        *("--set", "nesterov=true", "--set", "momentum=0.5"),
        *("--batch-size", 20, "--max-epochs", 3),
    )
    config = json.loads(Path("run/config.json").read_text())
    hyperparameters = config["hyperparameters"]
    assert hyperparameters["learning_rate"] == 0.01
    assert hyperparameters["nesterov"] is True
    assert config["options"] == {"validate_every": 1, "max_epochs": 3, "batch_size": 20}
    assert [record["updates"] for record in history("run")] == [2, 4, 6]


def test_without_out_runs_are_numbered():
    for _ in range(2):
        succeed("train", "line.py", "--max-epochs", 1)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["line", "line-2"]


def test_data_come_from_files():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 2))
    y = X @ [1.0, -2.0] + 0.5
    np.savez("train.npz", x=X[:40], y=y[:40])
    table = np.column_stack([X[40:], y[40:]])
    np.savetxt("valid.csv", table, delimiter=",", header="x0,x1,y", comments="")
    succeed(
        *("train", "line.py:without_data", "--train", "train.npz", "--valid", "valid.csv"),
        *("--out", "run", "--max-epochs", 2, "--batch-size", 8, "--set", "learning_rate=0.05"),
    )
    assert [record["updates"] for record in history("run")] == [5, 10]


def test_a_run_is_resumed_with_what_it_had():
    succeed("train", "line.py", "--out", "whole", "--seed", 5)
    succeed("train", "line.py", "--out", "parts", "--seed", 5, "--max-epochs", 3)
    succeed("train", "line.py", "--out", "parts", "--resume", "--max-epochs", 6)
    whole, parts = history("whole"), history("parts")
    for record in (*whole, *parts):
        del record["seconds"]
    # The third epoch was the last of its run, which validates and may be its best all the same.
    assert whole == parts


def test_seconds_go_on_with_a_resumed_run():
    succeed("train", "line.py", "--out", "run", "--max-epochs", 3)
    succeed("train", "line.py", "--out", "run", "--resume", "--max-epochs", 6)
    seconds = [record["seconds"] for record in history("run")]
    assert seconds == sorted(seconds)


def test_a_resumed_run_takes_new_numbers():
    succeed("train", "line.py", "--out", "run", "--set", "learning_rate=0.02")
    succeed(
        *("train", "line.py", "--out", "run", "--resume", "--max-epochs", 8),
        *("--set", "learning_rate=0.01"),
    )
    assert [record["learning_rate"] for record in history("run")] == [0.02] * 6 + [0.01] * 2


def test_a_schedule_is_given_by_name_and_kept():
    assignment = ("--set", "learning_rate=linear_warmup(cosine(0.05, 20), 4, start=0.01)")
    succeed("train", "line.py", "--out", "whole", *assignment)
    succeed("train", "line.py", "--out", "run", *assignment, "--max-epochs", 3)
    succeed("train", "line.py", "--out", "run", "--resume", "--max-epochs", 6)
    text = "linear_warmup(cosine(0.05, 20, 0.0), 4, 0.01)"
    config = json.loads(Path("run/config.json").read_text())
    assert config["hyperparameters"]["learning_rate"] == text
    assert text in succeed("show", "run")
    assert text in succeed("check", "line.py", *assignment)
    after = np.array([4, 8, 12, 16, 20, 24]) - 1 - 4  # updates of the cosine before the latest
    rates = 0.025 * (1 + np.cos(np.pi * after / 20))
    rates[0] = 0.01 + 0.04 * 3 / 4
    assert [r["learning_rate"] for r in history("run")] == pytest.approx(rates)
    losses = [[r["train"]["loss"] for r in history(name)] for name in ("whole", "run")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "arguments", [("--set", "momentum=0.5"), ("--train", "other.npz"), ("--set", "momentum=x")]
)
def test_a_refused_resume_destroys_nothing(arguments):
    x = np.random.default_rng(5).normal(size=(30, 2))
    np.savez("other.npz", x=x, y=x @ [1.0, -2.0])
    succeed("train", "line.py", "--out", "run")
    names = ["config.json", "result.json", "history.jsonl"]
    before = {name: Path("run", name).read_bytes() for name in names}
    checkpoints = {path.name: path.read_bytes() for path in Path("run/checkpoints").glob("*.npz")}
    result = run("train", "line.py", "--out", "run", "--resume", *arguments)
    assert result.exit_code != 0
    assert {name: Path("run", name).read_bytes() for name in names} == before
    after = {path.name: path.read_bytes() for path in Path("run/checkpoints").glob("*.npz")}
    assert after == checkpoints
    succeed("train", "line.py", "--out", "run", "--resume", "--max-epochs", 8)
    assert len(history("run")) == 8


def test_a_run_goes_on_with_its_own_problem():
    """Two problems of one name, with the same names and shapes and another loss."""
    for folder, power in ("a", "2"), ("b", "4"):
        Path(folder).mkdir()
        Path(folder, "model.py").write_text(PROBLEM.replace("error**2", f"error**{power}"))
    succeed("train", "a/model.py", "--max-epochs", 3)
    succeed("train", "b/model.py", "--max-epochs", 3)
    succeed("train", "a/model.py", "--resume", "--max-epochs", 5)
    assert [len(history(f"runs/{name}")) for name in ("model", "model-2")] == [5, 3]
    config = Path("runs/model-2/config.json").read_bytes()
    result = run("train", "a/model.py", "--out", "runs/model-2", "--resume")
    assert_one_clear_line(result, 1, r"a run of .*b/model\.py.*--resume-changed")
    assert Path("runs/model-2/config.json").read_bytes() == config
    result = run("train", "line.py", "--resume")
    assert_one_clear_line(result, 1, r"No run under runs is of ")


def test_an_edited_loss_is_taken_up_on_purpose():
    succeed("train", "line.py", "--out", "run", "--max-epochs", 3)
    Path("line.py").write_text(PROBLEM.replace("error**2", "error**4"))
    result = run("train", "line.py", "--out", "run", "--resume", "--max-epochs", 5)
    assert result.exit_code == 1
    assert re.search(r"another loss: .*constant 4 0 times before and 1 now", result.output)
    assert "--resume-changed" in result.output
    succeed("train", "line.py", "--out", "run", "--resume-changed", "--max-epochs", 5)
    assert len(history("run")) == 5
    succeed("train", "line.py", "--out", "run", "--resume", "--max-epochs", 6)


def test_a_resumed_run_keeps_its_seed():
    succeed("train", "line.py", "--out", "run", "--seed", 3)
    result = run("train", "line.py", "--out", "run", "--resume", "--seed", 4)
    assert_one_clear_line(result, 1, r"The seed is 4: a run goes on with its own, 3")


def test_a_directory_with_a_run_is_refused_and_left_as_it_is():
    succeed("train", "line.py", "--out", "run")
    before = Path("run/history.jsonl").read_text()
    result = run("train", "line.py", "--out", "run")
    assert_one_clear_line(result, 1, r"holds one run already\. .*--resume")
    assert Path("run/history.jsonl").read_text() == before


def test_a_run_that_diverges_is_an_error_that_keeps_the_best():
    result = run("train", "line.py:diverging", "--out", "run")
    assert result.exit_code == 1
    assert "loss" in result.stderr.splitlines()[-1]
    assert json.loads(Path("run/result.json").read_text())["stop_reason"] == "diverged"
    assert Path("run/checkpoints/best.npz").exists()


# Looking at runs


def test_plot_draws_one_run_or_several():
    for name in ("a", "b"):
        succeed("train", "line.py", "--out", name)
        Path(name, "curves.png").unlink()
    assert succeed("plot", "a") == "drawn: a/curves.png\n"
    assert Path("a/curves.png").read_bytes().startswith(b"\x89PNG")
    succeed("plot", "a", "b", "--monitor", "absolute", "--out", "both.svg")
    assert "<svg" in Path("both.svg").read_text()
    succeed("plot", "a", "--out", "one.pdf")
    assert Path("one.pdf").read_bytes().startswith(b"%PDF")


def test_plot_prints_curves_in_the_terminal():
    succeed("train", "line.py", "--out", "run")
    lines = succeed("plot", "run", "--text").splitlines()
    first, last = (f"{history('run')[i]['train']['loss']:.4g}" for i in (0, -1))
    assert lines[1].split()[:3] == ["run", "train_loss", first]
    assert last in lines[1].split()
    assert max(map(len, lines)) <= 80


def test_show_prints_how_a_run_went():
    succeed("train", "line.py", "--out", "run", "--set", "momentum=0.5")
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in succeed("show", "run").splitlines())
    losses = [record["valid"]["loss"] for record in history("run")]
    assert float(shown["best valid loss"]) == pytest.approx(min(losses), rel=1e-5)
    assert shown["best epoch"] == str(losses.index(min(losses)) + 1)
    assert shown["stopped"] == "max_epochs"
    assert shown["updates"] == "24"
    assert shown["momentum"] == "0.5"
    assert re.fullmatch(r"\d+(\.\d+)? (us|ms|s)", shown["time per update"])


def test_show_names_the_error_that_ended_a_run():
    result = run("train", "line.py:failing", "--out", "run")
    assert (result.exit_code, result.stderr.splitlines()[-1].split(": ")[1:2]) == (1, ["OSError"])
    output = succeed("show", "run")
    assert re.search(r"^stopped +error$", output, re.MULTILINE)
    assert re.search(r"^error +OSError: the disk with the data is gone$", output, re.MULTILINE)
    assert re.search(r"^updates +5$", output, re.MULTILINE)
    assert "error" in succeed("compare", "run")
    succeed("train", "line.py", "--out", "run", "--resume-changed", "--max-epochs", 2)
    assert "disk" not in succeed("show", "run")


def test_a_run_refused_to_go_on_keeps_its_epochs():
    succeed("train", "line.py", "--out", "run")
    before = history("run")
    assert run("train", "line.py", "--out", "run", "--resume", "--batch-size", 7).exit_code == 1
    assert history("run") == before


def test_interrupted_in_the_middle_of_an_epoch_the_count_is_the_true_one():
    result = run("train", "line.py:interrupted", "--out", "a run")
    assert result.exit_code == 130
    assert "ended (interrupted) after 1 epochs, 5 updates" in result.stdout
    assert re.search(r"^updates +5$", succeed("show", "a run"), re.MULTILINE)


def test_a_printed_command_can_be_pasted():
    Path("my line.py").write_text(PROBLEM)
    result = run("train", "my line.py:interrupted", "--out", "a run")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("go on with: ")]
    command = shlex.split(line.removeprefix("go on with: "))
    assert command == [
        "downhill-rms",
        "train",
        "my line.py:interrupted",
        "--out",
        "a run",
        "--resume",
    ]


def test_validation_data_of_the_problem_are_named_beside_a_training_file():
    rng = np.random.default_rng(0)
    np.savez("train.npz", x=rng.normal(size=(40, 2)), y=rng.normal(size=40))
    said = "the problem's own validation data are used"
    with_files = ("--train", "train.npz", "--max-epochs", 1)
    assert said in run("train", "line.py", "--out", "own", *with_files).stderr
    assert said in run("check", "line.py", "--train", "train.npz").stderr
    other = run("train", "line.py", "--out", "other", "--valid", "train.npz", *with_files)
    assert said not in other.stderr
    without = run("train", "line.py:without_data", "--out", "without", *with_files)
    assert said not in without.stderr


def parquet_files(count=2):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    Path("folder").mkdir()
    for number in range(count):
        X = rng.normal(size=(30, 2))
        columns = {"x0": X[:, 0], "x1": X[:, 1], "y": X @ [1.0, -2.0] + 0.5}
        parquet.write_table(pa.table(columns), f"folder/{number}.parquet", row_group_size=7)


def test_a_folder_of_parquet_files_is_trained_on():
    parquet_files()
    checked = succeed("check", "line.py:without_data", "--train", "folder")
    assert "float64 array of (60, 2)" in checked
    assert "2 minibatches of 32 an epoch, the last of 28" in checked
    given = ("--train", "folder", "--set", "learning_rate=0.05", "--out", "whole")
    succeed("train", "line.py:without_data", *given, "--max-epochs", 40)
    given = (*given[:-1], "parts")
    succeed("train", "line.py:without_data", *given, "--max-epochs", 15)
    succeed("train", "--resume", "--out", "parts", "line.py:without_data", "--max-epochs", 40)
    states = [np.load(f"{run}/checkpoints/best.npz") for run in ("whole", "parts")]
    np.testing.assert_array_equal(*(state["param/w"] for state in states))
    np.testing.assert_allclose(states[0]["param/w"], [1, -2], atol=0.1)
    assert json.loads(Path("whole/config.json").read_text())["train"] == str(
        Path("folder").resolve()
    )


def test_a_large_parquet_file_is_not_read_as_a_whole(monkeypatch):
    parquet_files(1)
    given = ("--train", "folder/0.parquet", "--valid", "folder/0.parquet")
    given = (*given, "--max-epochs", 3, "--batch-size", 10)
    succeed("train", "line.py:without_data", "--out", "whole", *given)
    monkeypatch.setattr("downhill_rms.data.parquet.STREAMED", 100)
    succeed("train", "line.py:without_data", "--out", "windows", *given)
    checkpoints = [sorted(Path(run, "checkpoints").glob("step-*")) for run in ("whole", "windows")]
    states = [np.load(paths[-1]).files for paths in checkpoints]
    assert ["train/permutation" in names for names in states] == [True, False]


def test_compare_puts_the_best_first():
    for name, rate in (("slow", 1e-4), ("fast", 0.1)):
        succeed("train", "line.py", "--out", name, "--seed", 0, "--set", f"learning_rate={rate}")
    lines = succeed("compare", "slow", "fast").splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["run", "fast", "slow"]
    assert max(map(len, lines)) <= 80
    assert "learning_rate" in lines[0]
    assert "momentum" not in lines[0]  # what is the same in both says nothing


def test_compare_skips_what_is_no_run_and_prints_csv():
    succeed("train", "line.py", "--out", "run", "--max-epochs", "1")
    result = run("compare", "run", "line.py", "--csv", "--sort", "absolute")
    assert result.exit_code == 0
    assert result.stderr == "skipped line.py: no run directory\n"
    assert result.stdout.splitlines()[0].startswith("run,best valid loss,best epoch,valid absolute")


def test_check_says_what_there_is_without_training():
    output = succeed("check", "line.py", "--set", "momentum=0.9")
    for fact in ("w", "b", "x", "y", "3", "momentum"):
        assert fact in output
    assert not Path("runs").exists()


def test_the_demo_draws():
    output = succeed("demo", "quadratic")
    assert "drawn: quadratic.png" in output
    assert Path("quadratic.png").read_bytes().startswith(b"\x89PNG")


# What goes wrong


def assert_one_clear_line(result, code, message):
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert re.search(message, lines[-1]), lines
    assert "Traceback" not in result.output
    assert len(lines) == 1 or code == 2  # click shows the usage above


def corrupt(name):
    path = Path(name, "history.jsonl")
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:-5]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "Missing argument 'SPEC'"),
        (["train", "missing.py"], 1, r"missing\.py"),
        (["train", "no.such.module"], 1, r"no\.such"),
        (["train", "line.py:absent"], 1, r"absent"),
        (["train", "line.py:integers"], 1, r"loss is 3: it is a symbolic PyTensor scalar"),
        (["train", "line.py:without_data"], 1, r"Give --train FILE"),
        (["train", "line.py", "--train", "missing.csv"], 1, r"missing\.csv"),
        (
            ["train", "line.py:without_data", "--train", "."],
            1,
            r"has no file whose name ends in \.parquet",
        ),
        (["train", "line.py", "--train", "columns.csv"], 1, r"columns\.csv"),
        (["train", "line.py", "--train", "line.py"], 1, r"line\.py"),
        (
            ["train", "line.py", "--set", "momentum"],
            2,
            r"'momentum' is no hyperparameter: one is given as name=value",
        ),
        (["train", "line.py", "--set", "momentun=0.9"], 1, r"Did you mean 'momentum'\?"),
        (["train", "line.py", "--set", "momentum=1"], 1, r"momentum is 1.*: it lies in \[0, 1\)"),
        (
            ["train", "line.py", "--set", "momentum=much"],
            1,
            r"momentum is 'much': it takes a number",
        ),
        (["train", "line.py", "--set", "learning_rate=cosin(1, 2)"], 2, r"Did you mean 'cosine'"),
        (["train", "line.py", "--set", "learning_rate=exit()"], 2, r"Known: cosine, "),
        (
            ["train", "line.py", "--set", "momentum=cosine(1, 2)"],
            1,
            r"momentum is .*: it takes a number",
        ),
        (
            ["train", "line.py", "--set", "centered=1"],
            1,
            r"centered is 1.*: it takes True or False",
        ),
        (
            ["train", "line.py", "--set", "decay=0.9", "--set", "rms_halflife=3"],
            1,
            r"are both given",
        ),
        (["train", "line.py", "--set", "max_epochs=3"], 1, r"max_epochs"),
        (["train", "line.py", "--max-epochs", "0"], 1, r"max_epochs is 0: it is at least 1"),
        (["train", "line.py", "--max-epochs", "many"], 2, r"'many' is not a valid integer"),
        (["train", "line.py", "--patience", "-1"], 1, r"patience is -1.*: it lies in"),
        (["train", "line.py", "--mode", "FAST"], 1, r"FAST"),
        (["train", "line.py", "--seed", "-1"], 2, r"-1 is not in the range"),
        (["train", "line.py", "--out", "line.py"], 1, r"line\.py cannot"),
        (["train", "line.py", "--out", "empty", "--resume"], 1, r"empty has no config\.json"),
        (["train", "line.py", "--no-such-option"], 2, r"No such option"),
        (["check", "missing.py"], 1, r"missing\.py"),
        (["check", "line.py", "--set", "momentun=0.9"], 1, r"Did you mean 'momentum'\?"),
        (["plot"], 2, r"Missing argument 'RUN"),
        (["plot", "empty"], 1, r"empty has no config\.json"),
        (["plot", "run", "--monitor", "accuracy"], 1, r"accuracy"),
        (["plot", "run", "--text", "--monitor", "accuracy"], 1, r"accuracy"),
        (["plot", "run", "--out", "curves.gif"], 2, r"ends in \.png"),
        (["plot", "broken"], 1, r"history\.jsonl line 2"),
        (["show", "empty"], 1, r"empty has no config\.json"),
        (["show", "missing"], 1, r"missing has no config\.json"),
        (["show", "broken"], 1, r"history\.jsonl line 2"),
        (["compare", "empty"], 1, r"empty has no config\.json"),
        (["compare", "run", "broken"], 1, r"history\.jsonl line 2"),
        (["demo", "mnist"], 2, r"'mnist' is not one of"),
        (["demo", "quadratic", "--out", "a.gif"], 2, r"ends in \.png"),
        (["fly"], 2, r"No such command 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_input_gives_one_clear_line(arguments, code, message):
    Path("empty").mkdir()
    Path("columns.csv").write_text("a,b\n1,2\n")
    if {"run", "broken"} & set(arguments):
        for name in ("run", "broken"):
            succeed("train", "line.py", "--out", name)
        corrupt("broken")
    assert_one_clear_line(run(*arguments), code, message)
    assert "train" not in arguments or not list(Path().glob("**/history.jsonl"))


def test_a_wrong_option_leaves_no_run_behind():
    run("train", "line.py", "--out", "run", "--max-epochs", 0)
    succeed("train", "line.py", "--out", "run")


def test_debug_shows_the_traceback():
    result = run("--debug", "train", "missing.py")
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


# As a process


def spawn(*arguments, flags="mode=FAST_COMPILE,cxx="):
    flags = {"PYTENSOR_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "downhill_rms", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **flags}, text=True, **pipes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_run_and_has_its_exit_code(number, code):
    process = spawn("train", "line.py:endless", "--out", "run")
    deadline = time.monotonic() + 60
    path = Path("run/history.jsonl")
    while not path.exists() or path.read_text().count("\n") < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "go on with: downhill-rms train line.py:endless --out run --resume" in output
    assert "Traceback" not in errors
    done = history("run")[-1]["epoch"]
    limit = ["--max-epochs", str(done + 2)]
    resumed = spawn("train", "line.py:endless", "--out", "run", "--resume", *limit)
    output, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    assert [record["epoch"] for record in history("run")] == list(range(1, done + 3))


@pytest.mark.parametrize("name", ["impatient_while_drawing", "impatient_at_the_end"])
def test_a_second_ctrl_c_shows_no_traceback(name):
    process = spawn("train", f"line.py:{name}", "--out", "run")
    output, errors = process.communicate(timeout=60)
    assert "go on with: " in output
    assert errors.endswith("\nstopped by Ctrl-C\n")
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert json.loads(Path("run/result.json").read_text())["updates"] == 5


@pytest.mark.skipif(os.name != "posix", reason="there is none elsewhere")
@pytest.mark.parametrize("options", [[], ["--no-finish-compiling"]], ids=["default", "off"])
def test_a_short_run_says_what_it_leaves_behind(options, folder):
    given = ["train", "line.py", "--out", "run", "--max-epochs", "1", *options]
    process = spawn(*given, flags=f"base_compiledir={folder}/cache")
    _, errors = process.communicate(timeout=120)
    left = re.findall(r"^compiling goes on in the background .*process (\d+)", errors, re.MULTILINE)
    for number in left:
        os.kill(int(number), signal.SIGKILL)  # it was there
    assert process.returncode == 0, errors
    assert "uncompiled while a child process compiles it" in errors
    assert len(left) == (not options)


def test_version_and_help_name_everything():
    assert succeed("--version") == f"downhill-rms, version {__version__}\n"
    output = succeed("--help")
    for command in ("train", "plot", "show", "compare", "check", "demo"):
        assert command in output
