"""A sweep in a directory: what it leaves there, and that it goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from downhill_rms import Checkpoint, Dataset, StopReason, loguniform
from downhill_rms.sweeping import SweepDirectoryError
from downhill_rms.training import recording
from downhill_rms.training.loop import Loop
from downhill_rms.watching import RunDirectory
from tests.sweeping.models import (
    OPTIONS,
    TRAIN,
    VALID,
    assert_same_state,
    records,
    regression,
    start,
)

ROOT = Path(__file__).parents[2]
GIVEN = {"learning_rate": [1e-3, 0.1, 1e160], "seeds": 2, "start": start, **OPTIONS}


class StopError(Exception):
    """What ends a process in the middle, as far as a test can have it."""


def stopping(after):
    """Observers of which one raises after so many epochs of all runs together."""
    left = [after]

    def observe(trainer):
        def count(record):
            left[0] -= 1
            if left[0] < 0:
                raise StopError

        return [count]

    return observe


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Every update leaves a checkpoint."""
    monkeypatch.setattr(recording, "SECONDS_BETWEEN_CHECKPOINTS", 1e-9)


def assert_same(found, expected):
    for run, other in zip(found.runs, expected.runs, strict=True):
        assert records(run.history) == records(other.history)
        assert run.stop_reason is other.stop_reason
        for name, value in other.best.params.items():
            np.testing.assert_array_equal(run.best.params[name], value)
    assert_same_state(found.state, expected.state)


def run_in_python(program):
    """The exit code of a process of its own."""
    flags = ",".join(filter(None, [os.environ.get("PYTENSOR_FLAGS"), "cxx=,mode=FAST_COMPILE"]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTENSOR_FLAGS": flags}
    return subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode


def test_each_run_leaves_a_run_directory(tmp_path):
    found = regression().sweep(TRAIN, VALID, run_directory=tmp_path / "s", **GIVEN)
    for run in found.runs:
        directory = RunDirectory(tmp_path / "s" / run.name)
        assert records(directory.read_history()) == records(run.history)
        assert directory.read_result()["stop_reason"] == run.stop_reason
        config = directory.read_config()
        assert config["seed"] == run.seed
        assert config["hyperparameters"]["learning_rate"] == run.settings["learning_rate"]
        log = directory.log_path.read_text() if directory.log_path.exists() else ""
        assert log.count("stopped: ") <= 1  # its own, and nobody else's
    lines = (tmp_path / "s" / "sweep.csv").read_text().splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("run,learning_rate,seed,best loss")
    assert_same(found, regression().sweep(TRAIN, VALID, **GIVEN))


@pytest.mark.parametrize("after", [0, 1, 7, 14])
def test_a_sweep_that_was_stopped_goes_on_bit_for_bit(tmp_path, after):
    expected = regression(dropout=True).sweep(TRAIN, VALID, **GIVEN)
    given = {**GIVEN, "run_directory": tmp_path / "s"}
    with pytest.raises(StopError):
        regression(dropout=True).sweep(TRAIN, VALID, observe=stopping(after), **given)
    assert_same(regression(dropout=True).sweep(TRAIN, VALID, resume=True, **given), expected)


@pytest.mark.parametrize("how", ["in turns", "together"])
def test_a_sweep_that_was_killed_goes_on_bit_for_bit(tmp_path, how):
    """By signal 9, in the middle of a round: the second half of the runs is an epoch behind."""
    program = f"""
import os, signal, sys
import pytensor
from downhill_rms.training import loop, recording
from tests.sweeping.models import *
recording.SECONDS_BETWEEN_CHECKPOINTS = 1e-9
record, left = loop.Loop._record, [15]
def killed(self, *given):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(self, *given)
loop.Loop._record = killed
given = {{"learning_rate": [1e-3, 0.1, 10.0], "seeds": 2, "start": start, **OPTIONS}}
regression().sweep(TRAIN, VALID, how={how!r}, run_directory={str(tmp_path / "s")!r}, **given)
"""
    assert run_in_python(program) == -signal.SIGKILL
    given = {**GIVEN, "learning_rate": [1e-3, 0.1, 10.0], "how": how}
    expected = regression().sweep(TRAIN, VALID, **given)
    given |= {"run_directory": tmp_path / "s", "resume": True}
    assert_same(regression().sweep(TRAIN, VALID, **given), expected)


@pytest.mark.parametrize("how", ["in turns", "together"])
@pytest.mark.parametrize("closed", [0, 1])
def test_a_sweep_that_was_killed_while_runs_are_halved_goes_on_bit_for_bit(tmp_path, how, closed):
    """It is written down which runs leave, and not all of them have saved what they came to."""
    program = f"""
import os, signal
from downhill_rms.sweeping import members
from tests.sweeping.models import *
close, left = members.Member.close, [{closed}]
def killed(self, reason=None):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    close(self, reason)
members.Member.close = killed
given = {{"learning_rate": [1e-3, 0.01, 0.1], "seeds": 2, "start": start, **OPTIONS}}
given |= {{"how": {how!r}, "halve_every": 2, "run_directory": {str(tmp_path / "s")!r}}}
regression().sweep(TRAIN, VALID, **given)
"""
    assert run_in_python(program) == -signal.SIGKILL
    given = {**GIVEN, "learning_rate": [1e-3, 0.01, 0.1], "how": how, "halve_every": 2}
    expected = regression().sweep(TRAIN, VALID, **given)
    found = regression().sweep(TRAIN, VALID, run_directory=tmp_path / "s", resume=True, **given)
    assert StopReason.HALVED in {run.stop_reason for run in expected.runs}
    assert_same(found, expected)


def test_runs_that_had_come_to_their_end_are_not_halved_for_that(tmp_path):
    """The sweep was killed when they had saved their last epoch, at which halving would be due."""
    program = f"""
import os, signal
from downhill_rms.training import loop
from tests.sweeping.models import *
put_back, left = loop.Loop._put_back_best, [2]
def killed(self, run, reason):
    left[0] -= self.epoch_count == 4
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    put_back(self, run, reason)
loop.Loop._put_back_best = killed
given = {{**OPTIONS, "max_epochs": 4, "patience": 9, "halve_every": 2}}
given |= {{"learning_rate": [1e-3, 0.01], "seeds": 2, "start": start}}
regression().sweep(TRAIN, VALID, run_directory={str(tmp_path / "s")!r}, **given)
"""
    assert run_in_python(program) == -signal.SIGKILL
    given = {**GIVEN, "learning_rate": [1e-3, 0.01], "max_epochs": 4, "patience": 9}
    given["halve_every"] = 2
    expected = regression().sweep(TRAIN, VALID, **given)
    found = regression().sweep(TRAIN, VALID, run_directory=tmp_path / "s", resume=True, **given)
    assert [run.stop_reason for run in expected.runs].count(StopReason.MAX_EPOCHS) == 2
    assert_same(found, expected)


def test_halved_runs_stay_halved(tmp_path):
    given = {**GIVEN, "halve_every": 2, "learning_rate": [1e-3, 0.1]}
    expected = regression().sweep(TRAIN, VALID, **given)
    given["run_directory"] = tmp_path / "s"
    with pytest.raises(StopError):
        regression().sweep(TRAIN, VALID, observe=stopping(10), **given)
    found = regression().sweep(TRAIN, VALID, resume=True, **given)
    assert [run.stop_reason for run in found.runs].count(StopReason.HALVED) == 3
    assert_same(found, expected)


def test_settings_that_were_drawn_are_drawn_once(tmp_path):
    options = {n: v for n, v in OPTIONS.items() if n != "seed"}  # another order each time
    given = {"learning_rate": loguniform(1e-3, 1e-1), "momentum": [0.0, 0.9], "sample": 3}
    given |= {"run_directory": tmp_path / "s", **options}
    with pytest.raises(StopError):
        regression().sweep(TRAIN, VALID, observe=stopping(4), **given)
    drawn = json.loads((tmp_path / "s" / "sweep.json").read_text())["settings"]
    found = regression().sweep(TRAIN, VALID, resume=True, **given)
    assert [run.settings for run in found.runs] == drawn
    alone = regression().sweep(
        TRAIN, VALID, **options, learning_rate=[1e-3], momentum=[0.0]
    )  # whose order is another
    assert len(alone.runs) == 1


def test_a_sweep_that_has_ended_has_nothing_left_to_do(tmp_path):
    given = {**GIVEN, "run_directory": tmp_path / "s"}
    found = regression().sweep(TRAIN, VALID, **given)
    trainer = regression()
    again = trainer.sweep(TRAIN, VALID, resume=True, **given)
    assert trainer.steps._evaluation.function is None  # nothing was computed
    for run, other in zip(again.runs, found.runs, strict=True):
        assert records(run.history) == records(other.history)
        assert run.stop_reason is other.stop_reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume": False}, "holds a sweep already"),
        ({"learning_rate": [1e-3, 0.2]}, "other lists, settings"),
        ({"seeds": 3}, "other seeds"),
    ],
)
def test_another_sweep_is_refused_there(tmp_path, change, message):
    given = {**GIVEN, "run_directory": tmp_path / "s", "resume": True}
    regression().sweep(TRAIN, VALID, **given)
    before = sorted(path.read_bytes() for path in (tmp_path / "s").rglob("*.json"))
    with pytest.raises(SweepDirectoryError, match=message):
        regression().sweep(TRAIN, VALID, **{**given, **change})
    assert sorted(path.read_bytes() for path in (tmp_path / "s").rglob("*.json")) == before


def test_a_run_is_not_taken_for_a_sweep(tmp_path):
    regression().minimize(TRAIN, VALID, run_directory=tmp_path / "r", **OPTIONS)
    with pytest.raises(SweepDirectoryError, match="holds one run"):
        regression().sweep(TRAIN, VALID, run_directory=tmp_path / "r", **GIVEN)


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text("{")
    with pytest.raises(SweepDirectoryError, match="cannot be read"):
        regression().sweep(TRAIN, VALID, run_directory=tmp_path / "s", resume=True, **GIVEN)


def after_records(monkeypatch, count, happens):
    """Have something happen once, when so many epochs of all runs have been written down."""
    record, left = Loop._record, [count]

    def counted(self, *given):
        left[0] -= 1
        if left[0] == 0:
            happens()
        return record(self, *given)

    monkeypatch.setattr(Loop, "_record", counted)


@pytest.mark.parametrize("how", ["in turns", "together"])
@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_ctrl_c_ends_all_runs_with_their_states(tmp_path, monkeypatch, how, epochs):
    given = {**GIVEN, "how": how}
    expected = regression().sweep(TRAIN, VALID, **given)
    given["run_directory"] = tmp_path / "s"
    after_records(monkeypatch, epochs, lambda: os.kill(os.getpid(), signal.SIGINT))
    found = regression().sweep(TRAIN, VALID, **given)
    interrupted = [run for run in found.runs if run.stop_reason is StopReason.INTERRUPTED]
    assert len(interrupted) >= 4
    assert {run.stop_reason for run in found.runs} <= {StopReason.INTERRUPTED, StopReason.DIVERGED}
    steps = [Checkpoint(tmp_path / "s" / run.name / "checkpoints").steps() for run in interrupted]
    if how == "together":  # they have all come to the same update, and go on from there
        assert len({paths[-1].name for paths in steps}) == 1
        assert steps[0][-1].name != "step-000000000.npz"
    assert_same(regression().sweep(TRAIN, VALID, resume=True, **given), expected)


@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_an_error_of_one_that_goes_together_with_others_loses_none(tmp_path, monkeypatch, epochs):
    given = {**GIVEN, "learning_rate": [1e-3, 0.1, 10.0], "how": "together"}
    expected = regression().sweep(TRAIN, VALID, **given)
    given["run_directory"] = tmp_path / "s"

    def fails():
        raise StopError

    after_records(monkeypatch, epochs, fails)
    with pytest.raises(StopError):
        regression().sweep(TRAIN, VALID, **given)
    assert_same(regression().sweep(TRAIN, VALID, resume=True, **given), expected)


def test_ctrl_c_in_the_first_turn_ends_runs_that_have_not_begun(tmp_path):
    sent = []

    def interrupted():
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return VALID

    data = TRAIN, Dataset(interrupted, iteration_size=1)
    given = {**GIVEN, "run_directory": tmp_path / "s"}
    found = regression().sweep(*data, **given)
    assert {run.stop_reason for run in found.runs} == {StopReason.INTERRUPTED}
    assert [run.best is None for run in found.runs] == [False] + 5 * [True]
    resumed = regression().sweep(*data, resume=True, **given)
    assert_same(resumed, regression().sweep(*data, **GIVEN))
