"""What slows training down, or stops it, on this machine, and the setting that mends it.

Everything is only looked at: nothing is set, compiled or written.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import math
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.mode import get_mode

# OpenBLAS's kernels for x86-64 with the widest vectors, and with those half as wide.
AVX512_KERNELS = ("SkylakeX", "Cooperlake", "Sapphirerapids")
AVX2_KERNELS = ("Haswell", "Zen", "Excavator")
# NumPy's names for processors that have these vectors, before and since its version 2.4.
AVX512_PROCESSORS = {"AVX512_SKX", "X86_V4"}
AVX2_PROCESSORS = {"AVX2", "X86_V3"}

# What a program can change and what compiled code depends on.
FLAGS = ("cast_policy", "cxx", "floatX", "numba__cache", "numba__fastmath")

# Where OpenBLAS looks for its number of threads, in its order.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
OWN_VARIABLE = "DOWNHILL_RMS_THREADS"  # the most threads of a loop, whatever OpenBLAS has

CONTROL_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finding:
    """Something about this machine that a user should know before training.

    Attributes
    ----------
    text : str
        What was found, and the setting that mends it; one line.
    prevents_training : bool
        Whether training cannot begin at all as it is.
    """

    text: str
    prevents_training: bool = False


@dataclass(frozen=True)
class OpenBlas:
    """The OpenBLAS that compiled code calls.

    Attributes
    ----------
    kernel : str
        The processor that its kernels were written for, such as ``"Haswell"``.
    threads : int
        Threads that a matrix product may use.
    """

    kernel: str
    threads: int


def findings(mode: Any = None) -> list[Finding]:
    """Look for what makes training in a mode slow here, or impossible.

    Parameters
    ----------
    mode : str or Mode, optional
        How PyTensor compiles; its own default if None.

    Returns
    -------
    list of Finding
        Only what matters in this mode; empty where there is nothing to mend.
    """
    kinds = linkers(mode)
    if "NumbaLinker" in kinds:
        blas = loaded_openblas()
        return [*_cache_findings(), *(_blas_findings(blas) if blas else [])]
    if "JAXLinker" in kinds and importlib.util.find_spec("jax") is None:
        text = (
            "Run `pip install jax`, or choose another mode: JAX mode needs jax, which is missing."
        )
        return [Finding(text, prevents_training=True)]
    if "VMLinker" in kinds and not get_mode(mode).linker.c_thunks:
        text = (
            "Leave the mode out for more than a trial: this one runs every operation in Python, "
            "which starts sooner and can be a hundred times slower."
        )
        return [Finding(text)]
    return []


def loaded_openblas() -> OpenBlas | None:
    """The OpenBLAS that Numba's code calls; None if it calls another library."""
    library = blas_library()
    kernel, threads = (
        openblas_function(library, f"get_{of}") for of in ("corename", "num_threads")
    )
    if kernel is None or threads is None:
        return None
    kernel.restype = ctypes.c_char_p
    return OpenBlas(kernel().decode(), threads())


@cache
def blas_library() -> Any:
    """The library whose products Numba's code calls, and all that it is linked with.

    Numba takes the functions of ``scipy.linalg.cython_blas``. NumPy's wheels bring an OpenBLAS of
    their own, which compiled code does not use.
    """
    import scipy.linalg.cython_blas as blas  # loads the library, as compiled code does

    return ctypes.CDLL(blas.__file__)


def openblas_function(library: Any, name: str) -> Any:
    """OpenBLAS' function of this name; None if the library has none."""
    for prefix, suffix in product(("scipy_openblas", "openblas"), ("", "64_")):
        function = getattr(library, f"{prefix}_{name}{suffix}", None)
        if function is not None:
            return function
    return None


def best_kernel() -> str | None:
    """The newest OpenBLAS kernel that this processor can run; None if there is no choice."""
    known: Any = np.show_config(mode="dicts")
    simd = known.get("SIMD Extensions", {})
    features = {*simd.get("baseline", ()), *simd.get("found", ())}
    if features & AVX512_PROCESSORS:
        return "SkylakeX"
    return "Haswell" if features & AVX2_PROCESSORS else None


def usable_cores() -> int:
    """Processor cores that this process may use, or as much time as so many have."""
    if sys.platform == "linux":
        return min(len(os.sched_getaffinity(0)), math.ceil(cores_by_quota(CONTROL_GROUPS)))
    return os.cpu_count() or 1


def cores_by_quota(groups: Path) -> float:
    """Cores' worth of time that a container's limit leaves to its processes; 2**31 without one."""
    with suppress(OSError, ValueError):
        quota, period = (groups / "cpu.max").read_text().split()
        return float(quota) / float(period)
    with suppress(OSError, ValueError):  # of the first version of control groups
        quota, period = (
            (groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        if float(quota) > 0:
            return float(quota) / float(period)
    return 2.0**31


def asked_threads() -> int | None:
    """The most threads of a loop that the user has asked for; None if nothing was asked.

    Raises
    ------
    ValueError
        If it is no number of threads.
    """
    asked = os.environ.get(OWN_VARIABLE)
    if not asked:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(
            f"The environment has {OWN_VARIABLE}={asked}: it is the most threads that a loop may "
            "have, a whole number. Write 1 for no more than one, or unset it."
        )
    return int(asked)


def numba_cache() -> Path:
    """The directory where PyTensor keeps what Numba has compiled."""
    return Path(pytensor.config.base_compiledir) / "numba"


def linkers(mode: Any) -> set[str]:
    """Names of the classes of a mode's linker, wherever PyTensor keeps them."""
    return {kind.__name__ for kind in type(get_mode(mode).linker).__mro__}


def flags() -> dict[str, Any]:
    """What PyTensor's configuration holds that compiled code depends on."""
    return {flag: getattr(pytensor.config, flag) for flag in FLAGS}


def marker(known: str, *key: Any) -> Path:
    """A file that is there if something is known, for these versions and this configuration.

    It stands among the cached files, so that it is deleted with them.
    """
    versions = [version(name) for name in ("pytensor", "numba", "llvmlite", "numpy")]
    text = repr((key, flags(), versions, sys.version, platform.machine()))
    name = f"downhill_rms-{hashlib.sha256(text.encode()).hexdigest()}.{known}"
    return numba_cache() / name


def _blas_findings(blas: OpenBlas) -> list[Finding]:
    found = []
    best = best_kernel()
    modern = AVX512_KERNELS if best == "SkylakeX" else AVX2_KERNELS + AVX512_KERNELS
    # Whoever has asked for this kernel already has an OpenBLAS that was built without it.
    if best and blas.kernel not in modern and os.environ.get("OPENBLAS_CORETYPE") != best:
        vectors = "AVX-512" if best == "SkylakeX" else "AVX2"
        found.append(
            f"Set OPENBLAS_CORETYPE={best} in the environment before Python starts: SciPy's "
            f"OpenBLAS, which multiplies matrices in Numba's code, runs its {blas.kernel} "
            f"kernels, and this processor has {vectors}."
        )
    cores = usable_cores()
    if blas.threads == 1 < cores:
        setting = next((name for name in THREAD_VARIABLES if os.environ.get(name)), None)
        known = "" if setting is None else f" ({setting} is {os.environ[setting]})"
        found.append(
            f"Set {setting or THREAD_VARIABLES[0]}={cores} if layers are wide, about 1000 "
            "units: matrix products and loops over large arrays use one thread of "
            f"{cores} cores{known}."
        )
    elif blas.threads > cores:
        found.append(
            f"Set {THREAD_VARIABLES[0]}={cores}: matrix products use {blas.threads} threads, and "
            f"this process may use {cores} cores; threads wait for each other."
        )
    return [Finding(text) for text in found]


def _cache_findings() -> list[Finding]:
    cache = numba_cache()
    keeps = bool(pytensor.config.numba__cache)
    # PyTensor makes the directory even where it keeps nothing in it.
    if not _is_writable(cache) and (keeps or not os.path.isdir(cache)):
        text = (
            "Set PYTENSOR_FLAGS=base_compiledir=DIRECTORY to one that can be written: compiled "
            f"code is kept in {cache}, which cannot, and compiling stops with an error."
        )
        return [Finding(text, prevents_training=True)]
    if not keeps:
        text = (
            "Set PYTENSOR_FLAGS=numba__cache=True: the cache is switched off, and every process "
            "compiles anew, for about 10 to 60 s."
        )
        return [Finding(text)]
    version = f"py{sys.version_info.major}{sys.version_info.minor}"  # as Numba names its files
    if not any(cache.glob(f"*.{version}*.nbi")):
        text = (
            "Expect about 10 to 60 s of compiling, only this once: for this version of Python the "
            f"cache in {cache} is empty."
        )
        return [Finding(text)]
    return []


def _is_writable(directory: Path) -> bool:
    """Whether files can be made in a directory that is there, or will be."""
    # Unlike Path's methods, os.path takes what may not be looked at for missing.
    nearest = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    return os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK)
