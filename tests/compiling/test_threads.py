"""Work on OpenBLAS' threads: who does it, how many they are, and when there are none."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import types

from downhill_rms.compiling import threads
from downhill_rms.compiling.machine import blas_library, openblas_function, usable_cores

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not threads.are_shared(), reason="no threads that take work here")
needs_cores = pytest.mark.skipif(usable_cores() < 2, reason="one core here")

this_thread = types.ExternalFunction("pthread_self", types.uint64())


@numba.njit
def note(tile, length, who, calls):
    """Write down which thread computes a tile, and work for a millisecond or so."""
    who[tile] = this_thread()
    calls[tile] += 1
    x = 1.0
    for _ in range(length):
        x = np.cos(x)
    calls[tile] += x < 0


@numba.njit
def noted(tiles, count, length):
    who, calls = np.zeros(tiles, np.uint64), np.zeros(tiles, np.int64)
    failed = threads.run_tiles(note, (length, who, calls), tiles, count)
    return who, calls, failed


@numba.njit
def fail_at_three(tile, results):
    if tile == 3:
        raise ValueError("three")
    results[tile] = tile


@numba.njit
def failing(tiles):
    results = np.full(tiles, -1)
    return threads.run_tiles(fail_at_three, (results,), tiles, 2), results


@numba.njit
def count_threads():
    return threads.thread_count()


@needs_cores
@pytest.mark.parametrize("tiles", [2, 3, 17])
def test_every_tile_is_computed_once_and_by_several_threads(tiles):
    seen = set()
    for _ in range(500):  # the machine may be busy
        who, calls, failed = noted(tiles, 2, 100_000)
        np.testing.assert_array_equal(calls, 1)
        assert not failed
        seen |= set(who)
        if len(seen) > 1:
            break
    assert len(seen) == 2


@needs_cores
def test_a_failure_is_told_and_the_other_tiles_are_computed():
    failed, results = failing(8)
    assert failed
    np.testing.assert_array_equal(results, [0, 1, 2, -1, 4, 5, 6, 7])


def test_there_are_as_many_as_openblas_has_at_the_moment():
    get, set_ = (
        openblas_function(blas_library(), f"{verb}_num_threads") for verb in ("get", "set")
    )
    before = get()
    assert count_threads() == min(before, threads.most_threads())
    try:
        set_(1)
        assert count_threads() == 1
    finally:
        set_(before)
    assert count_threads() == min(before, threads.most_threads())


def said(expression, **environment):
    """What a new process prints."""
    program = f"from downhill_rms.compiling import threads; print({expression})"
    own = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "DOWNHILL_RMS_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["NUMBA_NUM_THREADS", "DOWNHILL_RMS_THREADS"])
def test_a_limit_in_the_environment_holds(name):
    assert said("threads.most_threads()", **{name: "1"}) == "1"


def test_a_limit_that_is_no_number_is_an_error():
    line = said("threads.most_threads()", DOWNHILL_RMS_THREADS="all")
    assert line.startswith("ValueError: The environment has DOWNHILL_RMS_THREADS=all: ")


TRAINED = """
import os, sys
import numpy as np, pytensor, pytensor.tensor as pt
from downhill_rms import Trainer
from downhill_rms.compiling import threads

rng = np.random.default_rng(0)
x, w = pt.fmatrix("x"), pytensor.shared(rng.normal(size=(300, 200)).astype("f") / 20, name="w")
trainer = Trainer((pt.tanh(x @ w) ** 2).mean(), [w], [x])
batch = [rng.normal(size=(256, 300)).astype("f")]
start = trainer.state_dict()

def trained(_=None):
    trainer.load_state_dict(start)
    for _ in range(20):
        trainer.step(batch, learning_rate=0.01)
    return w.get_value().tobytes()
"""

FORKED = """
before = trained()  # on threads that a child has not
assert threads.are_shared()
child = os.fork()
if not child:
    os._exit(0 if trained() == before else 3)
assert trained() == before
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


SPAWNED = """
import multiprocessing

if __name__ == "__main__":
    before = trained()
    assert threads.are_shared()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print([found == before for found in pool.map(trained, range(4), chunksize=1)])
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [(FORKED, "0\n"), (SPAWNED, "[True, True, True, True]\n")],
    ids=["forked", "spawned"],
)
def test_processes_train_on(program, printed, tmp_path):
    """A child, and workers that train at once, come to the same bits as their parent."""
    (tmp_path / "program.py").write_text(TRAINED + program)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", tmp_path / "program.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == printed, done.stderr


def test_the_cells_of_a_notebook_train_on(tmp_path):
    """Each call of a kernel's cell has the same thread; the bits are those of the cell before."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = [TRAINED, "before = trained()", "threads.are_shared() and trained() == before"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    resources = {"metadata": {"path": str(tmp_path)}}
    executed = nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert executed.cells[-1].outputs[-1]["data"]["text/plain"] == "True"
