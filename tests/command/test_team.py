"""Several processes of one command: what is refused, and a run that they share."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from downhill_rms import Checkpoint
from downhill_rms.command.cli import main

PROBLEM = """
import numpy as np, pytensor, pytensor.tensor as pt
rng = np.random.default_rng(0)
X = rng.normal(size=(64, 4))
Y = X @ rng.normal(size=4)
x, y = pt.matrix("x"), pt.vector("y")
w = pytensor.shared(np.zeros(4), name="w")
loss = pt.sqr(x @ w - y).mean()
inputs, train, valid = [x, y], [X, Y], [X[:16], Y[:16]]
hyperparameters = {"learning_rate": 0.01}
options = {"validate_every": 1}
"""


@pytest.fixture
def problem(tmp_path, monkeypatch):
    (tmp_path / "line.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)
    return "line.py"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--process-id 1", "--process-id is given without --coordinator"),
        ("--coordinator host:1 --processes 2", "without --processes or --process-id"),
        ("--coordinator host:1 --processes 2 --process-id 2", "--process-id is 2 of 2 processes"),
        ("--devices some", "'some' is no number of devices"),
        ("--devices 0", "'0' is no number of devices"),
        ("--devices 99", "devices is 99, and JAX has 4 here"),
        ("--devices 2 --mode NUMBA", "many devices are JAX's"),
        ("--shard-above 10", "shard_above is 10 without devices"),
    ],
)
def test_what_does_not_fit_is_refused(problem, options, text):
    result = CliRunner().invoke(main, ["train", problem, *options.split()])
    assert result.exit_code != 0
    assert text in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "what"),
    [("--processes 2", "--processes"), ("--coordinator host:1", "--coordinator")],
)
def test_without_jax_it_is_said_what_to_install(problem, monkeypatch, options, what):
    monkeypatch.setitem(sys.modules, "jax", None)  # as though it were not there
    result = CliRunner().invoke(main, ["train", problem, *options.split()])
    assert result.exit_code != 0
    said = " ".join(result.output.split())
    assert f"{what} is given, and JAX is not installed" in said
    assert "pip install 'downhill_rms[jax]'" in said


def test_devices_share_a_run_and_one_goes_on_with_it(problem):
    options = ["--no-finish-compiling", "--no-progress", "--out", "run"]
    first = CliRunner().invoke(
        main, ["train", problem, *options, "--devices", "4", "--max-epochs", "3"]
    )
    assert first.exit_code == 0, first.output
    config = json.loads(Path("run/config.json").read_text())
    assert config["mode"] == "JAX"
    assert "devices" not in config["options"]
    second = CliRunner().invoke(main, ["train", problem, *options, "--resume", "--max-epochs", "5"])
    assert second.exit_code == 0, second.output
    assert json.loads(Path("run/result.json").read_text())["updates"] == 10


@pytest.mark.slow
def test_processes_share_a_run(problem):
    """As many as there are, one writes, and the numbers are those of one."""
    command = [sys.executable, "-W", "ignore", "-m", "downhill_rms", "train", problem]
    command += ["--no-finish-compiling", "--no-progress", "--max-epochs", "4", "--mode", "JAX"]
    for options in (["--processes", "2", "--out", "two"], ["--out", "one"]):
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("ended (max_epochs) after 4 epochs, 8 updates") == 1
    found, expected = (
        Checkpoint(f"{name}/checkpoints").latest()[1]["param/w"] for name in ("two", "one")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert Path("two/history.jsonl").read_text().count("\n") == 4


@pytest.mark.slow
def test_an_error_of_all_is_told_once(problem):
    Path(problem).write_text(PROBLEM + "raise OSError('no such disk')\n")
    command = [sys.executable, "-m", "downhill_rms", "train", problem, "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("no such disk") == 1
    assert "Traceback" not in done.stderr
