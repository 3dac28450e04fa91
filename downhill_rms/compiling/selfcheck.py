"""A small graph that shows whether a mode of the library's own computes what PyTensor does."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt


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
