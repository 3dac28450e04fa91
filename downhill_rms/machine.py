"""What slows training down on this machine, and the setting that mends it.

Everything here is only looked at; the library never sets an environment variable.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytensor

# OpenBLAS's kernels that use AVX-512, by the names that it gives them.
AVX512_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids", "Sapphirerapids")
AVX512_FEATURES = ("AVX512F", "AVX512_SKX", "X86_V4")  # what NumPy calls them, old and new
OPENBLAS_NUM_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "GOTO_NUM_THREADS")


@dataclass(frozen=True)
class Finding:
    """Something about this machine that a user can change.

    Attributes
    ----------
    text : str
        What to do, and what was found.
    prevents_training : bool
        Whether nothing works without it.
    """

    text: str
    prevents_training: bool = False


def findings(mode: Any = None) -> list[Finding]:
    """Everything that slows training down here.

    Parameters
    ----------
    mode : str or Mode, optional
        How PyTensor is to compile; by default as it is set to.

    Returns
    -------
    list of Finding
        Empty if there is nothing.
    """
    mode = pytensor.config.mode if mode is None else mode
    if mode == "JAX":  # XLA has kernels, threads and a cache of its own
        missing = importlib.util.find_spec("jax") is None
        return [Finding("pip install jax: JAX mode needs it.", True)] if missing else []
    try:
        texts = blas_findings(blas_libraries(), has_avx512(), usable_cores())
    except ImportError:
        texts = ['pip install "downhill_rms[check]" lets BLAS be looked at, by threadpoolctl.']
    if mode in ("NUMBA", "Mode"):
        texts += cache_findings(numba_cache())
    return [Finding(text) for text in texts]


def blas_libraries() -> list[dict[str, Any]]:
    """The BLAS libraries of this process, as threadpoolctl describes them.

    Compiled functions use SciPy's, which is loaded for this; NumPy has its own.

    Raises
    ------
    ImportError
        If threadpoolctl is not installed.
    """
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    return [library for library in threadpool_info() if library["user_api"] == "blas"]


def blas_findings(libraries: Sequence[dict[str, Any]], avx512: bool, cores: int) -> list[str]:
    """What is amiss with BLAS libraries on a processor with or without AVX-512."""
    found = []
    kernels = {
        library["architecture"]
        for library in libraries
        if library["internal_api"] == "openblas" and library.get("architecture")
    }
    old = sorted(kernels - set(AVX512_KERNELS))
    if avx512 and old:
        found.append(
            f"OPENBLAS_CORETYPE=SkylakeX in the environment makes matrix products faster: "
            f"OpenBLAS runs its {', '.join(old)} kernels on a processor that has AVX-512."
        )
    threads = max((library["num_threads"] for library in libraries), default=cores)
    if threads < cores:
        names = [name for name in OPENBLAS_NUM_THREADS if name in os.environ]
        setting = f"{' and '.join(names)} unset" if names else f"OPENBLAS_NUM_THREADS={cores}"
        found.append(
            f"{setting} lets matrix products use all {cores} cores: BLAS runs {threads} "
            f"thread{'s' if threads > 1 else ''}. Small networks are as fast with one."
        )
    return found


def has_avx512() -> bool:
    """Whether this processor has AVX-512, as far as NumPy knows."""
    features = np.show_config(mode="dicts").get("SIMD Extensions", {})
    return any(name in features.get("found", []) for name in AVX512_FEATURES)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def numba_cache() -> Path:
    """Where PyTensor keeps what Numba compiled."""
    return Path(pytensor.config.base_compiledir) / "numba"


def cache_findings(directory: Path) -> list[str]:
    """What is amiss with the compile cache."""
    parent = directory if directory.exists() else directory.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return [
            "PYTENSOR_FLAGS=base_compiledir=DIRECTORY, a directory that can be written, lets "
            f"compiled functions be kept: {directory} cannot, and every start compiles again."
        ]
    if not directory.exists() or not any(directory.glob("*")):
        return [
            f"The first run waits while functions are compiled, for up to a minute: {directory} "
            "has none yet. Later runs find them there."
        ]
    return []
