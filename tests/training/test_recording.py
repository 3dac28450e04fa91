"""Runs from Python that leave a directory which the command line reads."""

import json

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from click.testing import CliRunner

from downhill_rms import Checkpoint, Dataset, Trainer
from downhill_rms.command.cli import main
from downhill_rms.watching import History
from downhill_rms.watching.rundirectory import RunDirectoryError

RNG = np.random.default_rng(2)
DATA = RNG.normal(loc=3.0, size=40)


def make(mode):
    x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    return Trainer(pt.sqr(x - w).mean(), inputs=[x], monitors={"w": w}, mode=mode)


def data():
    return Dataset(DATA, batch_size=8, rng=0)


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_line_reads_it(mode, tmp_path):
    for name, rate in (("slow", 0.001), ("fast", 0.1)):
        options = {"max_epochs": 6, "validate_every": 2, "run_directory": tmp_path / name}
        make(mode).minimize(data(), learning_rate=rate, **options)
    shown = run("show", tmp_path / "fast")
    assert "learning_rate           0.1" in shown
    assert "stopped                 max_epochs" in shown
    compared = run("compare", tmp_path / "slow", tmp_path / "fast", "--csv").splitlines()
    assert [line.split(",")[0] for line in compared[1:]] == [
        str(tmp_path / "fast"),
        str(tmp_path / "slow"),
    ]
    run("plot", tmp_path / "slow", tmp_path / "fast", "--out", tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 0


def test_it_goes_on_bit_for_bit(mode, tmp_path):
    options = {"learning_rate": 0.1, "validate_every": 1}
    whole = make(mode)
    whole.minimize(data(), max_updates=40, **options)
    directory = tmp_path / "run"
    for _ in make(mode).iterate(data(), max_updates=40, run_directory=directory, **options):
        if json.loads((directory / "history.jsonl").read_text().splitlines()[-1])["epoch"] == 3:
            break
    assert json.loads((directory / "result.json").read_text())["stop_reason"] == "abandoned"
    resumed = make(mode)
    resumed.minimize(data(), max_updates=40, run_directory=directory, resume=True, **options)
    assert resumed.parameters.copy() == whole.parameters.copy()
    found = History.from_jsonl(directory / "history.jsonl")
    assert [r.train for r in found] == [r.train for r in whole.history]


def test_a_directory_with_a_run_is_refused_at_once(mode, tmp_path):
    make(mode).minimize(data(), max_epochs=1, run_directory=tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(RunDirectoryError, match="holds"):
        make(mode).iterate(data(), run_directory=str(tmp_path / "run"))
    checkpoint = Checkpoint(tmp_path / "other")
    with pytest.raises(ValueError, match="Both checkpoint and run_directory"):
        make(mode).iterate(data(), run_directory=tmp_path / "new", checkpoint=checkpoint)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_an_error_is_written_down(mode, tmp_path):
    def fail(record):
        raise OSError("the observer's disk is full")

    with pytest.raises(OSError, match="disk is full"):
        make(mode).minimize(data(), run_directory=tmp_path / "run", observers=[fail])
    assert "disk is full" in run("show", tmp_path / "run")
