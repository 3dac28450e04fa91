"""What is said of a machine, against what the process was started with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from downhill_rms.machine import (
    blas_findings,
    blas_libraries,
    cache_findings,
    findings,
    usable_cores,
)

ROOT = Path(__file__).parent.parent
OPENBLAS = {"internal_api": "openblas", "architecture": "Haswell", "num_threads": 2}


def findings_with(**environment):
    """The findings of a fresh process, whose BLAS loads in this environment."""
    code = (
        "from downhill_rms.machine import findings; print(*(f.text for f in findings()), sep='\\n')"
    )
    clean = {k: v for k, v in os.environ.items() if "THREADS" not in k and "CORETYPE" not in k}
    flags = {"PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=clean | flags, capture_output=True, text=True, check=True
    ).stdout


def flags_of_processor():
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


needs_avx512 = pytest.mark.skipif(
    "avx512f" not in flags_of_processor()
    or all(library["internal_api"] != "openblas" for library in blas_libraries()),
    reason="needs OpenBLAS on a processor with AVX-512",
)
needs_cores = pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")


@needs_avx512
def test_an_old_kernel_is_named_with_its_setting():
    assert "OPENBLAS_CORETYPE=SkylakeX" in findings_with(OPENBLAS_CORETYPE="Haswell")
    assert "CORETYPE" not in findings_with(OPENBLAS_CORETYPE="SkylakeX")


@needs_cores
@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_one_thread_on_many_cores_is_named_with_what_set_it(name):
    assert f"{name} unset lets matrix products use all" in findings_with(**{name: "1"})
    assert "THREADS" not in findings_with()


def test_a_processor_without_avx512_has_no_newer_kernel():
    assert blas_findings([OPENBLAS], avx512=False, cores=2) == []
    assert len(blas_findings([OPENBLAS], avx512=True, cores=2)) == 1


def test_other_libraries_choose_their_own_kernels():
    library = {"internal_api": "mkl", "num_threads": 2}
    assert blas_findings([library], avx512=True, cores=2) == []
    assert blas_findings([], avx512=True, cores=2) == []


def test_an_empty_cache_is_named(tmp_path):
    assert str(tmp_path / "numba") in findings_with(
        PYTENSOR_FLAGS=f"base_compiledir={tmp_path},mode=NUMBA"
    )
    (tmp_path / "numba").mkdir(exist_ok=True)
    (tmp_path / "numba" / "function.nbi").write_text("")
    assert cache_findings(tmp_path / "numba") == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = cache_findings(tmp_path / "file" / "numba")
    assert "base_compiledir=DIRECTORY" in found


def test_nothing_is_said_of_numba_in_jax_mode():
    assert findings("JAX") == []


def test_jax_mode_without_jax_cannot_train(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    (found,) = findings("JAX")
    assert found.prevents_training
    assert "pip install jax" in found.text


def test_without_threadpoolctl_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert "downhill_rms[check]" in findings("FAST_COMPILE")[0].text
