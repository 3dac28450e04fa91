"""Functions that run uncompiled until a child process has compiled them."""

import fcntl
import gc
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import threadpoolctl
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

import downhill_rms as dr
from downhill_rms.compiling import background, default_mode, tiered
from downhill_rms.compiling.compiled import check_mode
from downhill_rms.compiling.machine import usable_cores
from downhill_rms.compiling.tiered import TieredFunction
from downhill_rms.compiling.uncompiled import UncompiledFunction

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds that a test waits for another process before it fails


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Nothing is cached, the foreground compiles fast, and no child can compile."""
    monkeypatch.setattr(TieredFunction, "_marker", tmp_path / "marker")
    monkeypatch.setattr(TieredFunction, "compiled_mode", "FAST_COMPILE")
    monkeypatch.setattr(tiered, "UNCOMPILED_SECONDS", 0.0)


def running_sum(shape=()):
    x, total = pt.vector("x"), pytensor.shared(np.zeros(shape), name="total")
    return TieredFunction("sum", [x], [x.sum()], [(total, total + x.sum())]), total


def call_until(function, total, done):
    """Call it until something is so, and see that every call counts once."""
    deadline, before = time.monotonic() + PATIENCE, float(total.get_value())
    while not done():
        assert time.monotonic() < deadline
        assert function(np.ones(3)) == [3.0]
        before += 3
        assert total.get_value() == before
        time.sleep(0.01)


def is_compiled(function):
    return function.function is not None and type(function.function) is not UncompiledFunction


def is_alive(process_id):
    stat = Path(f"/proc/{process_id}/stat")  # a process that nobody has waited for is in state Z
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# The whole way, with Numba: a program that trains until it is swapped, and a little longer.

PROGRAM = """
import json, logging, pathlib, sys, time
import numpy as np, pytensor
import downhill_rms as dr

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
cache = pathlib.Path(pytensor.config.base_compiledir)
p = pytensor.shared(np.array([1.0, -2.0]), name="p")
trainer = dr.Trainer(((p - 3) ** 2).sum(), mode="tiered")
trainer.set_hyperparameters(learning_rate=0.001, rms_halflife=5, rms_regularizer=1e-4)
deadline, left = time.monotonic() + 120, 20
files = 0
while left and time.monotonic() < deadline:
    compiled = type(trainer.steps._update.function).__name__ == "Function" if files else False
    before, files = files, len(list(cache.rglob("*.nb?")))
    trainer.step()
    left -= compiled
    files = files or 1
    time.sleep(0.002)
print(json.dumps({
    "p": p.get_value().tolist(), "updates": trainer.steps.update_count, "left": left,
    "new files": len(list(cache.rglob("*.nb?"))) - before,
}))
"""


OBJECT_MODE = """
import logging, sys
import numpy as np, pytensor, pytensor.tensor as pt
import downhill_rms as dr
from pytensor.tensor.signal.conv import convolve2d
from downhill_rms.compiling import tiered

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
tiered.UNCOMPILED_SECONDS = 0.0
k = pytensor.shared(np.ones((3, 3)), name="k")
trainer = dr.Trainer(convolve2d(np.eye(3), k, mode="valid").sum() ** 2, mode="tiered")
trainer.step()
trainer.steps._update._compilation._thread.join()
trainer.step()
print(trainer.update_count)
"""


def run_program(cache, *arguments, **options):
    environment = {**os.environ, "PYTENSOR_FLAGS": f"base_compiledir={cache}"}
    environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=2 * PATIENCE,
        **options,
    )
    return json.loads(result.stdout), result.stderr


def numpy_descent(updates):
    """The same training in NumPy: Graves' RMSProp, centered, without momentum."""
    gamma = np.exp(-np.log(2) / 5)
    p, mean, square = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for _ in range(updates):
        g = 2 * (p - 3)
        mean = gamma * mean + (1 - gamma) * g
        square = gamma * square + (1 - gamma) * g**2
        p = p - 0.001 * g / np.sqrt(square - mean**2 + 1e-4)
    return p


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """The program as a script without a main guard, on an empty cache."""
    cache = tmp_path_factory.mktemp("cache")
    script = tmp_path_factory.mktemp("script") / "train.py"
    script.write_text(PROGRAM)
    return cache, *run_program(cache, str(script))


def check(result):
    assert result["left"] == 0
    assert result["new files"] == 0
    np.testing.assert_allclose(result["p"], numpy_descent(result["updates"]), rtol=1e-7)


def test_a_script_is_swapped_and_computes_the_same(cold):
    cache, result, log = cold
    check(result)
    assert "the RMSProp update runs uncompiled while a child process compiles it" in log
    assert "swapped to the compiled RMSProp update after" in log
    assert len(list((cache / "numba").glob("downhill_rms-*.compiled"))) == 1


def test_with_a_warm_cache_no_child_is_started(cold):
    cache, _, _ = cold
    result, log = run_program(cache, "-c", PROGRAM)
    check(result)
    assert "child" not in log
    assert "compiled the RMSProp update in" in log


@pytest.mark.parametrize("way", ["-c", "standard input"])
def test_children_need_no_script(cold, way):
    cache, _, _ = cold
    for marker in (cache / "numba").glob("downhill_rms-*.compiled"):
        marker.unlink()  # the cache itself is warm: the child is soon done
    if way == "-c":
        result, log = run_program(cache, "-c", PROGRAM)
    else:
        result, log = run_program(cache, "-", input=PROGRAM)
    check(result)
    assert "swapped to the compiled RMSProp update after" in log


ORPHAN = """
import os, pathlib, signal, sys, time
import numpy as np, pytensor, pytensor.tensor as pt
from downhill_rms.compiling.tiered import TieredFunction

x, p = pt.matrix("x"), pytensor.shared(np.zeros((2, 2)), name="p")
function = TieredFunction("orphan", [x], [pt.tanh(x * p).sum()], [(p, p + pt.exp(x))])
function(np.ones((2, 2)))
while function._compilation._process is None:
    time.sleep(0.01)
child = function._compilation._process.pid
while "llvmlite" not in pathlib.Path(f"/proc/{child}/maps").read_text():  # until it compiles
    time.sleep(0.01)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_child_dies_with_a_parent_that_is_killed(tmp_path):
    environment = {**os.environ, "PYTENSOR_FLAGS": f"base_compiledir={tmp_path}"}
    environment["PYTHONPATH"] = str(ROOT)
    parent = subprocess.run(
        [sys.executable, "-c", ORPHAN], env=environment, stdout=subprocess.PIPE, timeout=PATIENCE
    )
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while is_alive(int(parent.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not list(tmp_path.rglob("*.compiled"))  # it had not come to its end


# A process that outlives a run that was shorter than compiling.

PARABOLA = "((p - 3) ** 2).sum()"
SHORT = """
import json, sys
import numpy as np, pytensor
import pytensor.tensor as pt
import downhill_rms as dr
from downhill_rms.compiling import compile_alone

p = pytensor.shared(np.array([1.0, -2.0]), name="p")
trainer = dr.Trainer({loss}, mode="tiered")
trainer.set_hyperparameters(learning_rate=0.001, rms_halflife=5, rms_regularizer=1e-4)
trainer.step()
trainer.evaluate(None)
print(json.dumps([compile_alone(int(sys.argv[1])), compile_alone(int(sys.argv[1]))]))
"""


@contextmanager
def left_alone(cache, seconds, loss=PARABOLA):
    """Process id of what a short program has left behind; it is gone afterwards in any case."""
    (process, second), _ = run_program(cache, "-c", SHORT.format(loss=loss), str(seconds))
    try:
        assert second is None  # there was nothing left to do
        yield process
    finally:
        with suppress(ProcessLookupError, TypeError):  # None where none was left
            os.kill(process, signal.SIGKILL)


def wait_for_end(process):
    deadline = time.monotonic() + PATIENCE
    while is_alive(process):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def markers(cache):
    return list((cache / "numba").glob("downhill_rms-*.compiled"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_a_short_run_leaves_is_compiled_afterwards(cold):
    cache, _, _ = cold
    for path in markers(cache):
        path.unlink()
    with left_alone(cache, seconds=PATIENCE) as process:
        assert os.getsid(process) == process  # neither Ctrl-C nor a closed terminal reaches it
        with (
            open(cache / "numba" / "downhill_rms.lock", "ab") as lock,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lowest = 0
        while is_alive(process):
            with suppress(FileNotFoundError, ProcessLookupError):
                lowest = os.getpriority(os.PRIO_PROCESS, process)
            time.sleep(0.02)
        assert lowest == 19
    assert len(markers(cache)) == 2  # the evaluation had only waited
    (process, _), log = run_program(cache, "-c", SHORT.format(loss=PARABOLA), str(PATIENCE))
    assert process is None
    assert "child" not in log


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_is_left_alone_has_a_time_limit(tmp_path):
    slow = "pt.linalg.solve(np.eye(2) + p * p[:, None], p).sum()"  # to compile
    with left_alone(tmp_path, seconds=1, loss=slow) as process:
        wait_for_end(process)
    assert not markers(tmp_path)  # on an empty cache there was more to do


def test_one_process_is_left_alone_with_a_cache(cold):
    cache, _, _ = cold
    for path in markers(cache):
        path.unlink()
    with open(cache / "numba" / "downhill_rms.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with left_alone(cache, seconds=PATIENCE) as process:
            assert process is None


# What PyTensor cannot cache.


@pytest.mark.slow
def test_what_is_not_cached_is_never_said_to_be(tmp_path):
    count, log = run_program(tmp_path, "-W", "ignore::UserWarning", "-c", OBJECT_MODE)
    assert count == 2
    assert not markers(tmp_path)
    assert "compiling the RMSProp update, in every process anew" in log


# Children that fail.


def test_a_child_that_raises_costs_a_warning(quick, caplog):
    function, total = running_sum()
    call_until(function, total, lambda: is_compiled(function))
    (warning,) = warnings(caplog)
    # PyTensor's own Python code is not what a child compiles.
    assert "no child process compiles the sum: exit status 1, AttributeError: " in warning


def test_a_child_that_is_killed_costs_a_warning(quick, caplog):
    function, total = running_sum()
    function(np.ones(3))
    call_until(function, total, lambda: function._compilation._process is not None)
    child = function._compilation._process.pid
    assert os.getsid(child) != os.getsid(0)  # Ctrl-C in the terminal does not reach it
    os.kill(child, signal.SIGKILL)
    call_until(function, total, lambda: is_compiled(function))
    (warning,) = warnings(caplog)
    assert "exit status -9" in warning


def test_a_child_that_cannot_be_started_costs_a_warning(quick, caplog, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    function, total = running_sum()
    call_until(function, total, lambda: is_compiled(function))
    (warning,) = warnings(caplog)
    assert "'/nowhere/python' cannot be started" in warning


class Twice(Op):
    """An operation of the user's."""

    __props__ = ()

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = 2 * inputs[0]


def twice_sum(operation):
    x, total = pt.vector("x"), pytensor.shared(0.0, name="total")
    return TieredFunction("sum", [x], [operation(x).sum() / 2], [(total, total + x.sum())]), total


def test_an_operation_of_a_module_reaches_the_child(quick, caplog):
    function, total = twice_sum(Twice())
    call_until(function, total, lambda: is_compiled(function))
    (warning,) = warnings(caplog)
    assert "jit_fn" in warning  # it was built there, and lacked Numba alone


def test_an_operation_of_main_costs_a_warning(quick, caplog, monkeypatch):
    monkeypatch.setattr(Twice, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Twice", Twice, raising=False)
    function, total = twice_sum(Twice())
    call_until(function, total, lambda: is_compiled(function))
    (warning,) = warnings(caplog)
    assert "Can't get attribute 'Twice' on <module '__main__'" in warning


def test_an_operation_that_cannot_be_pickled_costs_a_warning(quick, caplog):
    operation = Twice()
    operation.note = lambda: "a function without a name"
    function, total = twice_sum(operation)
    call_until(function, total, lambda: is_compiled(function))
    (warning,) = warnings(caplog)
    assert "the graph cannot be pickled (" in warning


def test_what_no_mode_compiles_stays_uncompiled(quick, caplog, monkeypatch):
    monkeypatch.setattr(TieredFunction, "compiled_mode", "no such mode")
    function, total = running_sum()
    call_until(function, total, lambda: len(warnings(caplog)) == 2)
    assert warnings(caplog)[1] == "the sum stays uncompiled"
    call_until(function, total, lambda: total.get_value() > 100)


def test_after_a_failure_short_runs_are_not_interrupted(quick, caplog, monkeypatch):
    monkeypatch.setattr(tiered, "UNCOMPILED_SECONDS", 2.5)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    started = time.monotonic()
    function, total = running_sum()
    call_until(function, total, lambda: is_compiled(function))
    assert 2.5 <= time.monotonic() - started < 10


def test_random_numbers_go_on_where_they_were(quick):
    generator, count = pytensor.shared(np.random.default_rng(7)), pytensor.shared(0.0)
    advanced, draw = pt.random.uniform(rng=generator, return_next_rng=True)
    function = TieredFunction("draw", [], [draw], [(generator, advanced), (count, count + 1)])
    numbers = []
    while not is_compiled(function) or len(numbers) < 20:
        numbers.extend(function())
        time.sleep(0.01)
    np.testing.assert_array_equal(numbers, np.random.default_rng(7).uniform(size=len(numbers)))
    assert count.get_value() == len(numbers)


# Compiling at once.


def test_settled_before_the_first_call_starts_no_child(quick, caplog):
    function, total = running_sum()
    function.settle()
    call_until(function, total, lambda: is_compiled(function))
    assert total.get_value() == 3.0
    assert function._compilation is None
    assert not warnings(caplog)


def test_settled_later_ends_the_child(quick, caplog):
    function, total = running_sum()
    function(np.ones(3))
    call_until(function, total, lambda: function._compilation._process is not None)
    function.settle()
    function(np.ones(3))
    compiled = function.function
    assert type(compiled) is not UncompiledFunction
    assert function._compilation._process.wait(PATIENCE) == -signal.SIGKILL
    function._compilation._thread.join(PATIENCE)
    call_until(function, total, lambda: total.get_value() > 30)
    assert function.function is compiled
    assert not warnings(caplog)


def test_a_trainer_settles_all_its_functions(quick):
    x, p = pt.vector("x"), pytensor.shared(1.0, name="p")
    trainer = dr.Trainer(((x - p) ** 2).mean(), inputs=[x], mode="tiered")
    trainer.step(np.zeros(3))
    trainer.steps.settle()
    trainer.step(np.zeros(3))
    trainer.evaluate(np.zeros(3))
    trainer.step(np.zeros(3), momentum=0.5)  # another structure
    functions = [trainer.steps._evaluation, *trainer.steps._updates.values()]
    assert len(functions) == 3
    assert all(map(is_compiled, functions))


def test_a_debug_log_does_not_mind_the_mode(quick, caplog):
    caplog.set_level(logging.DEBUG, "downhill_rms")
    x, p = pt.vector("x"), pytensor.shared(1.0, name="p")
    trainer = dr.Trainer(((x - p) ** 2).mean(), inputs=[x], mode="tiered")
    trainer.minimize(np.zeros(3), max_epochs=1)
    trainer.steps.settle()
    assert trainer.stop_reason is dr.StopReason.MAX_EPOCHS


@pytest.fixture
def default_backend():
    """PyTensor as it is where nobody has set a mode."""
    with pytensor.config.change_flags(mode="Mode"):
        yield


def line_loss():
    x, p = pt.vector("x"), pytensor.shared(1.0, name="p")
    return ((x - p) ** 2).mean()


def test_one_call_begins_at_once(quick, default_backend, caplog):
    caplog.set_level(logging.INFO, "downhill_rms")
    dr.minimize(line_loss(), [np.ones(8)], max_epochs=1)
    for thread in threading.enumerate():
        if thread.name.startswith("compile "):
            thread.join(PATIENCE)  # its trainer is gone, its children are not
    assert "the RMSProp update runs uncompiled while a child process compiles it" in caplog.text


@pytest.mark.parametrize(
    "given",
    [([np.ones(8)], 0, None), (dr.Dataset([np.ones(8)]), None, None), (None, None, object())],
    ids=["seed", "Dataset", "checkpoint"],
)
def test_one_call_that_is_to_be_repeated_is_compiled_first(given, default_backend):
    assert dr._mode_of_one_call(*given) is None
    assert dr._mode_of_one_call([np.ones(8)], None, None) == "tiered"


def test_a_program_that_is_its_own_python_starts_no_children(default_backend, monkeypatch):
    assert default_mode() == "tiered"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert default_mode() is None


def test_one_call_has_a_mode_of_the_users_own(quick, caplog):
    caplog.set_level(logging.INFO, "downhill_rms")
    dr.minimize(line_loss(), [np.ones(8)], max_epochs=1)  # all tests have set one
    assert "compiling the RMSProp update" in caplog.text
    assert "child" not in caplog.text


def test_the_mode_has_a_name():
    check_mode("tiered")
    with pytest.raises(ValueError, match=r"mode is 'tired': .* Give one of .*tiered"):
        check_mode("tired")


# While a child works.


def blas_threads():
    blas = threadpoolctl.ThreadpoolController().select(internal_api="openblas")
    return [library.num_threads for library in blas.lib_controllers if "numpy" in library.filepath]


@pytest.mark.skipif(
    not blas_threads() or min(*blas_threads(), os.cpu_count()) == 1,
    reason="there is nothing to leave: no OpenBLAS, or one thread, or one core",
)
def test_openblas_leaves_the_child_a_core(quick):
    before = blas_threads()
    function, total = running_sum()
    function(np.ones(3))
    assert blas_threads() == [min(n, usable_cores() - 1) for n in before]
    call_until(function, total, lambda: is_compiled(function))
    assert blas_threads() == before


def test_a_function_that_nobody_wants_is_freed(quick):
    function, _ = running_sum()
    function(np.ones(3))
    thread, gone = function._compilation._thread, weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_child_starts_no_children(quick, monkeypatch):
    monkeypatch.setattr(background, "_is_child", True)
    function, _ = running_sum()
    with pytest.raises(RuntimeError, match="trains when it is imported"):
        function(np.ones(3))


# What is sent, and what the cache is known by.


def sent(function, batch):
    stream = BytesIO(background._message(function, Path("marker"), batch))
    path, (flags, marker), (_, specification, arrays) = (pickle.load(stream) for _ in range(3))
    assert path == sys.path
    assert flags["floatX"] == pytensor.config.floatX
    assert marker == Path("marker")
    return specification, arrays


def test_large_arrays_stay_at_home_and_constants_do_not():
    x, constant = pt.matrix("x", dtype="float32"), np.arange(6.0).reshape(2, 3)
    p = pytensor.shared(np.asfortranarray(np.ones((1000, 1000))), borrow=True, name="p")
    function = TieredFunction("f", [x], [x.sum() + pt.constant(constant).sum()], [(p, p * 2)])
    assert len(background._message(function, Path(), [np.ones((999, 99), "float32")])) < 50_000
    (_, _, outputs, updates, _), (batch,) = sent(function, [np.ones((999, 99), "float32")])
    assert batch.dtype == "float32"
    value = updates[0][0].get_value(borrow=True)
    assert value.dtype == p.dtype
    assert value.flags.f_contiguous
    assert not value.flags.c_contiguous
    assert outputs[0].eval({outputs[0].owner.inputs[0].owner.inputs[0]: batch}) == 15.0
    assert p.get_value().shape == (1000, 1000)


def test_a_deep_graph_is_sent():
    x = y = pt.scalar("x", dtype="float64")
    for _ in range(3000):
        y = pt.sin(y)
    (_, _, (output,), _, _), _ = sent(TieredFunction("f", [x], [y], []), [np.array(0.0)])
    depth = 0
    while output.owner is not None:
        (output,), depth = output.owner.inputs, depth + 1
    assert depth == 3000


def marker(factor=2.0, dtype="float64"):
    x = pt.vector("x", dtype=dtype)
    return TieredFunction("f", [x], [(factor * x).sum()], [])._marker


def test_a_marker_belongs_to_a_graph_to_flags_and_to_what_compiles_it(monkeypatch):
    assert marker() == marker()
    others = [marker(factor=3.0), marker(dtype="float32")]
    with pytensor.config.change_flags(numba__fastmath=not pytensor.config.numba__fastmath):
        others.append(marker())
    own = marker()
    monkeypatch.setattr(tiered, "source_key", lambda: "of another release")
    assert len({own, marker(), *others}) == 5


def test_the_marker_goes_with_the_cache():
    from pytensor.link.numba.cache import NUMBA_CACHE_PATH

    assert marker().parent == NUMBA_CACHE_PATH


def test_an_existing_marker_skips_the_child(quick, tmp_path, caplog):
    (tmp_path / "marker").touch()
    function, total = running_sum()
    call_until(function, total, lambda: is_compiled(function))
    assert total.get_value() == 3.0
    assert function._compilation is None


def test_compiling_in_the_foreground_leaves_a_marker(quick, tmp_path):
    function, _ = running_sum()
    function.settle()
    function(np.ones(3))
    assert (tmp_path / "marker").exists()


def test_two_functions_are_both_compiled(quick):
    functions = [running_sum() for _ in range(2)]
    for function, _ in functions:
        function(np.ones(3))
    for function, total in functions:
        call_until(function, total, lambda function=function: is_compiled(function))
