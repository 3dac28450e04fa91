"""What is said of a machine, against what a process was started with."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from downhill_rms.compiling.machine import (
    best_kernel,
    cores_by_quota,
    findings,
    loaded_openblas,
    usable_cores,
)

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from downhill_rms.compiling.machine import findings
for finding in findings(sys.argv[1]):
    print(finding.prevents_training, finding.text)
"""
OWN = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")

needs_openblas = pytest.mark.skipif(
    loaded_openblas() is None, reason="SciPy is not linked with OpenBLAS here"
)
needs_avx512 = pytest.mark.skipif(best_kernel() != "SkylakeX", reason="no AVX-512 here")
needs_cores = pytest.mark.skipif(usable_cores() < 2, reason="one core here")


def said(cache, mode="NUMBA", flags="", **environment):
    """The findings of a process that starts in this environment, a line each."""
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    settings = {"PYTENSOR_FLAGS": f"base_compiledir={cache},cxx={flags}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.fixture
def warm(tmp_path):
    """A cache with one function in it, named as Numba names its files."""
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / f"string.f-0_fastmath1.{version}.nbi").touch()
    return tmp_path


@needs_openblas
@needs_avx512
def test_an_old_kernel_is_named_with_the_setting_that_mends_it(warm):
    line, *others = said(warm, OPENBLAS_CORETYPE="Haswell", OPENBLAS_NUM_THREADS="1")
    assert line.startswith("False Set OPENBLAS_CORETYPE=SkylakeX ")
    assert "its Haswell kernels" in line
    cores = usable_cores()
    assert [f" Set OPENBLAS_NUM_THREADS={cores} " in other for other in others] == [True] * (
        cores > 1
    )


@needs_openblas
@needs_cores
def test_one_thread_is_named_with_what_set_it(warm):
    kernel = {"OPENBLAS_CORETYPE": best_kernel() or ""}
    (line,) = said(warm, **kernel, OMP_NUM_THREADS="1")
    assert line.startswith(f"False Set OMP_NUM_THREADS={usable_cores()} ")
    assert "(OMP_NUM_THREADS is 1)" in line
    assert said(warm, **kernel, OMP_NUM_THREADS="2") == []


@needs_openblas
def test_the_kernel_is_that_of_the_library_that_numba_calls():
    """Numba's own table of functions is filled from the library that is asked."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    libraries = [one for one in threadpoolctl.threadpool_info() if "scipy.libs" in one["filepath"]]
    if not libraries:
        pytest.skip("SciPy brings no BLAS of its own here")
    blas = loaded_openblas()
    assert [blas.kernel, blas.threads] == [
        libraries[0]["architecture"],
        libraries[0]["num_threads"],
    ]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_the_best_kernel_is_what_the_processor_can_run():
    flags = Path("/proc/cpuinfo").read_text().split()
    wanted = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
    assert (best_kernel() == "SkylakeX") == (wanted <= set(flags))


def cache_lines(*arguments, **environment):
    return [line for line in said(*arguments, **environment) if "BLAS" not in line]


def test_a_cache_without_anything_of_this_python_is_cold(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "string.f-0_fastmath1.py27.nbi").touch()
    (line,) = cache_lines(tmp_path)
    assert line.startswith("False Expect")
    assert f"{tmp_path / 'numba'} is empty" in line


def test_a_cache_that_cannot_be_written_prevents_training(tmp_path):
    (tmp_path / "file").touch()
    (line,) = cache_lines(tmp_path / "file" / "cache")
    assert line.startswith("True Set PYTENSOR_FLAGS=base_compiledir=")
    # And so it does: PyTensor itself stops in such a directory.
    program = "import pytensor, pytensor.tensor as pt; pytensor.function([], pt.zeros(()))"
    flags = f"base_compiledir={tmp_path / 'file' / 'cache'},cxx=,mode=NUMBA"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTENSOR_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "NotADirectoryError" in done.stderr


def test_a_cache_that_is_switched_off_is_named(warm):
    (line,) = cache_lines(warm, flags=",numba__cache=False")
    assert line.startswith("False Set PYTENSOR_FLAGS=numba__cache=True")


def test_neither_cache_nor_blas_matters_to_python_code(tmp_path):
    (tmp_path / "file").touch()
    environment = {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1"}
    (line,) = said(tmp_path / "file" / "cache", "FAST_COMPILE", **environment)
    assert line.startswith("False Leave the mode out")


def test_jax_mode_needs_jax(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (finding,) = findings("JAX")
    assert finding.prevents_training
    assert "pip install jax" in finding.text


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, 2**31),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2**31),
        ({}, 2**31),
    ],
)
def test_a_containers_limit_is_read(tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cores_by_quota(tmp_path) == cores


@needs_openblas
@needs_cores
def test_more_threads_than_cores_are_named_with_the_setting_that_mends_it(warm):
    program = PROGRAM.replace(
        "import sys\n",
        "import os, sys\nimport scipy.linalg.cython_blas\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n",
    )
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    settings = {"PYTENSOR_FLAGS": f"base_compiledir={warm},cxx=", "PYTHONPATH": str(ROOT)}
    settings["OPENBLAS_CORETYPE"] = best_kernel() or ""
    done = subprocess.run(
        [sys.executable, "-c", program, "NUMBA"],
        env=inherited | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("False Set OPENBLAS_NUM_THREADS=1: matrix products use ")
