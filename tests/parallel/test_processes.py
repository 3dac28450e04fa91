"""Two real processes over gloo: they do the same at the same update, whatever comes to one."""

import json
import subprocess
import sys

import numpy as np
import pytest

from downhill_rms import Checkpoint
from downhill_rms.parallel import processes, run_processes
from downhill_rms.parallel.processes import LOST
from tests.distributed import stops
from tests.distributed.__main__ import BOUNDS, difference, numbers
from tests.distributed.program import CASES

pytestmark = pytest.mark.slow

ENDS = {
    "an error": "raise SystemExit(1)",
    "an abort by JAX": "import os; os.abort()",
    "the others are lost": f"raise SystemExit({LOST})",
    "well": "",
}


@pytest.mark.parametrize(
    ("ends", "blamed"),
    [
        (["an abort by JAX", "an error"], 1),
        (["the others are lost", "an abort by JAX"], 1),
        (["an abort by JAX", "well"], 0),
        (["the others are lost", "the others are lost"], 0),
        (["an error", "an error"], None),
        (["well", "well"], None),
    ],
)
def test_the_process_that_failed_by_itself_is_blamed_where_all_have_ended(ends, blamed):
    """As a launcher finds them that was not given the processor for a while."""
    started = [subprocess.Popen([sys.executable, "-c", ENDS[end]]) for end in ends]
    for process in started:
        process.wait()
    assert processes._wait(started) == blamed


def run(name, folder):
    """Run the children of this name; what they left, and how the processes ended."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.parallel.children", name, str(folder)]
    code, failure = run_processes([*program, "--processes", "2"], 2)
    print(failure and failure.error)
    files = [folder / f"{name}-{process}" for process in range(2)]
    return [json.loads(file.read_text()) for file in files if file.exists()], code, failure


def test_the_numbers_are_those_of_one_device(tmp_path):
    cases = ["dropout, updates_per_call", "parameters divided", "float32", "a callable of parts"]
    expected, found = numbers(None, cases, tmp_path), numbers("2x2", cases, tmp_path)
    for name in cases:
        bound = BOUNDS[CASES[name].get("dtype", "float64")]
        assert difference(found, expected, name) <= bound, name


@pytest.mark.parametrize("how", stops.HOW)
def test_a_stopped_run_goes_on_as_if_nobody_had_stopped_it(tmp_path, how):
    (tmp_path / "unbroken").mkdir()
    stops.run(tmp_path / "unbroken")
    expected = stops.outcome(tmp_path / "unbroken")
    fault, _ = stops.trial_in_time(tmp_path / how, how, 0.5, expected)
    assert fault is None


def test_all_see_a_divergence_at_the_same_update(tmp_path):
    (one, other), code, failure = run("diverging", tmp_path)
    assert (code, failure) == (0, None)
    assert one == other
    assert one["reason"] == "diverged"


def test_an_error_in_one_ends_all_and_the_last_checkpoint_is_whole(tmp_path):
    ends, _, failure = run("failing", tmp_path)
    assert ends == []
    assert "the disk of one host is gone" in failure.error
    assert failure.process == 1
    _, state = Checkpoint(tmp_path / "checkpoints").latest()
    assert state["update_count"] in (12, 16, 20)


def test_an_observer_in_one_ends_the_run_of_all(tmp_path):
    (one, other), code, failure = run("observed", tmp_path)
    assert (code, failure) == (0, None)
    assert one == other
    assert one["reason"] == "observer"


def test_all_start_with_the_leaders_parameters_and_order(tmp_path):
    (one, other), _, failure = run("starting", tmp_path)
    assert failure is None
    assert one == other


def test_each_process_reads_its_own_samples(tmp_path):
    (one, other), _, failure = run("reading", tmp_path)
    assert failure is None
    places = np.arange(96) % 16
    assert one["rows"] == np.flatnonzero(places < 8).tolist()
    # When data are bound, every process looks at the first one.
    assert [row for row in other["rows"] if row] == np.flatnonzero(places >= 8).tolist()


def test_checkpoints_by_the_clock_are_agreed_upon(tmp_path):
    (one, other), code, failure = run("clocked", tmp_path)
    assert (code, failure) == (0, None)
    assert one == other
    assert len(one["saved"]) > 1
