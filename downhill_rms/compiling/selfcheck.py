"""Whether what stands on PyTensor's internals still computes what PyTensor does."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from downhill_rms.compiling.machine import marker

log = logging.getLogger(__name__)

# The versions of PyTensor and Numba that the tests are run with. What the tests have seen to be
# right is not checked once more: for Numba that would compile for three seconds on an empty cache.
TESTED = {
    ("3.0.7", "0.65.1"),
    ("3.1.3", "0.65.1"),
    ("3.2.4", "0.66.0"),
    ("3.3.4", "0.68.0"),
    ("3.3.8", "0.68.0"),
}


def is_tested() -> bool:
    """Whether the tests were run with exactly these versions of PyTensor and Numba."""
    return (pytensor.__version__, version("numba")) in TESTED


def is_right(
    name: str,
    make: Callable[[], Any],
    check: Callable[[Any], None],
    consequence: str,
    tested: bool = False,
) -> bool:
    """Whether something of the library's own can be made, and passes its check.

    A warning tells if it is not right. What passed is remembered beside PyTensor's compiled code,
    for the same versions of everything, and is made, but not checked, in the next process; a
    development version of PyTensor is checked in every process.

    Parameters
    ----------
    name : str
        What is remembered.
    make : callable
        Makes it.
    check : callable
        Takes what was made, and raises an error if it is wrong.
    consequence : str
        What it costs to do without it, for the warning.
    tested : bool
        Whether it is known to be right, and is made alone.
    """
    try:
        made = make()
        known = marker("tried", name, source_key())
        if not tested and ("+" in pytensor.__version__ or not known.exists()):
            check(made)
            with suppress(OSError):
                known.parent.mkdir(parents=True, exist_ok=True)
                known.touch()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"PyTensor {pytensor.__version__} is not as this library knows it ({text}). "
            f"{consequence} Install a newer downhill_rms, or a version of PyTensor that it was "
            "tested with.",
            stacklevel=3,
        )
        log.debug("the rewrites for %s", name, exc_info=True)
        return False
    return True


@cache
def source_key() -> str:
    """A hash of all modules of this room, for caches of what is compiled of them."""
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()


def check_on_a_small_graph(mode: Any, called: Collection[str] = ()) -> None:
    """Compare a mode with PyTensor's own Python code.

    Parameters
    ----------
    mode : Mode
        The mode.
    called : collection of str
        Of which outputs values are computed, where compiling takes long; all of them by default.
        The others are rewritten.

    Raises
    ------
    Exception
        Whatever rewriting and compiling raise; an ArithmeticError that names what is wrong.
    """
    inputs, outputs = _graph()
    arrays = [np.linspace(-1, 1.5, 12, dtype="float32").reshape(4, 3), np.array([0, 3, 1, 1])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTensor, about the backend
        with pytensor.config.change_flags(on_opt_error="raise"):
            function = _function(inputs, outputs, mode)
            if called:
                outputs = {name: outputs[name] for name in called}
                function = _function(inputs, outputs, mode)
        ours = function(*arrays)
        with pytensor.config.change_flags(cxx="", mode="FAST_COMPILE"):
            theirs = _function(inputs, outputs, "FAST_COMPILE")(*arrays)
    for (name, variable), got, want in zip(outputs.items(), ours, theirs, strict=True):
        got = np.asarray(got)
        if got.dtype != variable.type.dtype:
            raise ArithmeticError(f"{name} is {got.dtype}, not {variable.type.dtype}")
        if got.shape != want.shape or not np.allclose(got, want, rtol=1e-4, atol=1e-5):
            raise ArithmeticError(f"{name} has other values")


def _function(inputs: list[Any], outputs: dict[str, Any], mode: Any) -> Any:
    return pytensor.function(inputs, list(outputs.values()), mode=mode, on_unused_input="ignore")


def _graph() -> tuple[list[Any], dict[str, Any]]:
    """Inputs, and by name one output for everything that a rewrite changes."""
    x, rows = pt.tensor("x", shape=(4, 3), dtype="float32"), pt.lvector("rows")
    product = x.T @ pt.cos(x)
    fused = pt.tanh(x * x) * pt.sigmoid(x) + pt.softplus(x) * pt.log1p(pt.exp(-x * x))
    added = pt.zeros((4, 3), dtype="float32")[rows].inc(fused)
    scanned = pytensor.scan(
        lambda row, state, matrix: pt.tanh(row + state @ matrix) + 0 * row.mean(),
        sequences=[x],
        outputs_info=[pt.zeros(3, dtype="float32")],
        non_sequences=[product],
        return_updates=False,
    )
    half, zero = (pt.constant(number, dtype="float32") for number in (0.5, 0))
    return [x, rows], {
        "a matrix product": x.T @ x,
        "a fused loop": fused,
        "its sum": fused.sum(axis=0),
        "what is added to rows": added,
        "a mean": x.mean(),
        "a scan": scanned,
        "a cast": pt.clip(x + product[0] + rows[:, None], -1, 2).astype("float32"),
        "a choice of constants": pt.switch(x > 0, half, zero),
        "integers times floats": rows[:, None] * x,
    }
