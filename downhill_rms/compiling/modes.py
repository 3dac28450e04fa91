"""Which mode a function is compiled in: PyTensor's, or one of the library's own made from it.

A mode of the library's own stands on PyTensor's internals. It is made and tried when it is first
asked for, and where it cannot be made, or computes another thing on a small graph than PyTensor
does, training goes on in PyTensor's own mode.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

import pytensor
from pytensor.compile.mode import get_mode

from downhill_rms.compiling import selfcheck
from downhill_rms.compiling.machine import linkers
from downhill_rms.compiling.selfcheck import check_on_a_small_graph, is_right

# Modes that PyTensor does not know: its Numba mode with the library's rewrites, and that of a
# `TieredFunction`, which becomes the first.
REWRITTEN, TIERED = "NUMBA_REWRITTEN", "tiered"

# Who makes a mode of the library's own out of which of PyTensor's.
MAKERS = {
    "Numba": ("rewrites", "numba_mode", "NUMBA"),
    "JAX": ("jaxmode", "jax_mode", "JAX"),
    "Python": ("pythonmode", "python_mode", "FAST_COMPILE"),
    "uncompiled": ("pythonmode", "uncompiled_mode", "FAST_COMPILE"),
}

# What Numba compiles for its check: the rest would take as long again on an empty cache.
CALLED = {"Numba": ("a matrix product", "a fused loop", "its sum")}


def training_mode(mode: Any) -> Any:
    """The mode that a training step is compiled in.

    Parameters
    ----------
    mode : str, Mode or None
        What the user asked for; None for PyTensor's default.

    Returns
    -------
    str or Mode
        PyTensor's default with the library's rewrites for None, if that default is Numba;
        ``NUMBA`` with them for `REWRITTEN`; every mode that JAX compiles or Python runs with what
        makes it right; any other ``mode`` as it is.
    """
    base = get_mode("NUMBA" if mode == REWRITTEN else mode)
    kinds = linkers(base)
    if "NumbaLinker" in kinds and mode in (None, REWRITTEN):
        return own_mode("Numba", base)
    if "JAXLinker" in kinds:
        return own_mode("JAX", base)
    if "VMLinker" in kinds and not base.linker.c_thunks:
        return own_mode("Python", base)
    return mode


def default_mode() -> str | None:
    """What begins at once: tiered, unless PyTensor is set to a mode of the user's own."""
    if getattr(sys, "frozen", False):  # a child would be this program again, and no Python
        return None
    unchanged = pytensor.config.mode == "Mode" and "NumbaLinker" in linkers(None)
    return TIERED if unchanged else None


def pytensor_mode(mode: Any) -> Any:
    """The mode of PyTensor's own that a mode builds upon."""
    return "NUMBA" if mode in (REWRITTEN, TIERED) else mode


def is_jax(mode: Any) -> bool:
    """Whether JAX compiles what is compiled in a mode."""
    return "JAXLinker" in linkers(pytensor_mode(mode))


def is_compiled(mode: Any) -> bool:
    """Whether Numba or JAX compiles what is made in a mode as a whole."""
    return not {"NumbaLinker", "JAXLinker"}.isdisjoint(linkers(pytensor_mode(mode)))


def uncompiled_mode() -> Any:
    """The mode of functions that are never compiled."""
    return own_mode("uncompiled", get_mode("FAST_COMPILE"))


def computing(mode: Any = None) -> list[str]:
    """What computes in a mode, and on how many threads; empty if Numba does not."""
    if "NumbaLinker" not in linkers(pytensor_mode(mode)):
        return []
    from downhill_rms.compiling import threads

    return [threads.in_words(own_loops=mode in (None, REWRITTEN, TIERED))]


def own_mode(kind: str, base: Any) -> Any:
    """The library's mode of a kind that is made from ``base``; ``base`` where it does not work."""
    # A Mode that was given its rewriters one by one takes no further ones.
    if not hasattr(getattr(base, "provided_optimizer", None), "register") or not works(kind):
        return base
    return _make(kind, base)


@cache
def works(kind: str) -> bool:
    """Whether the library's mode of a kind can be made, and is right on a small graph."""
    return is_right(
        kind,
        make=lambda: _make(kind, get_mode(MAKERS[kind][2])),
        check=lambda mode: check_on_a_small_graph(mode, CALLED.get(kind, ())),
        consequence=f"The rewrites for {kind} are left out, and training goes on in PyTensor's own "
        "mode, maybe more slowly.",
        tested=kind == "Numba" and selfcheck.is_tested(),
    )


def _make(kind: str, base: Any) -> Any:
    module, function, _ = MAKERS[kind]
    return getattr(import_module(f"downhill_rms.compiling.{module}"), function)(base)
