"""Recurrent networks: scans are rewritten before gradients are taken.

- What a step computes from constants alone, products of sequences with constant matrices, and
  products of results that do not come back, leave the loop (`scanmoves`).
- A scan keeps what its gradient needs and what takes long to compute. PyTensor's own gradient
  computes most of the step again, products included (`scangradient`).
- The gradient of a constant is a sum over all steps. PyTensor's adds it up in the loop; here the
  rows of all steps make one product after the loop wherever a step multiplies with the constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.traversal import ancestors
from pytensor.scan.op import Scan

from downhill_rms.compiling.machine import linkers
from downhill_rms.compiling.modes import REWRITTEN, TIERED, is_jax, works
from downhill_rms.compiling.selfcheck import is_right


def prepare_scans(outputs: Sequence[Any], mode: Any = REWRITTEN) -> list[Any]:
    """The same expressions, cheaper with their gradients where they hold scans.

    Parameters
    ----------
    outputs : sequence of Variable
        Expressions that may share scans: a loss and its monitors.
    mode : str, Mode or None
        What they are compiled in. Only the library's own modes for Numba and JAX have this.

    Returns
    -------
    list of Variable
        Those that depend on no scan that was rewritten are the same objects as before.
    """
    ours = mode in (REWRITTEN, TIERED) or (mode is None and "NumbaLinker" in linkers(None))
    scans = (v for v in ancestors(outputs) if v.owner and isinstance(v.owner.op, Scan))
    if not (ours or is_jax(mode)) or next(scans, None) is None or not _works():
        return list(outputs)
    if not ours and not works("JAX"):
        return list(outputs)
    return _preparer()(outputs)  # type: ignore[no-any-return]


def _preparer() -> Any:
    from downhill_rms.compiling.scanmoves import prepared

    return prepared


@cache
def _works() -> bool:
    """Whether a small network has the same gradients as with PyTensor's own."""
    return is_right(
        "scans",
        make=_preparer,
        check=_check_on_a_small_network,
        consequence="Scans are not rewritten, and recurrent networks train more slowly.",
    )


def _check_on_a_small_network(prepared: Any) -> None:
    x, w, u = pt.dtensor3("x"), pt.dmatrix("w"), pt.dmatrix("u")

    def step(row: Any, state: Any) -> Any:
        return pt.tanh(row @ w + (pt.sigmoid(state) * state) @ u + w[0])

    states = pytensor.scan(
        step, sequences=[x], outputs_info=[pt.zeros_like(x[0])], return_updates=False
    )
    loss = (states**2).sum()
    arrays = [
        np.linspace(-1, 1, n).reshape(s) for n, s in ((24, (4, 2, 3)), (9, (3, 3)), (9, (3, 3)))
    ]
    values = []
    with pytensor.config.change_flags(cxx="", mode="FAST_COMPILE"):
        for cost in (loss, *prepared([loss])):
            function = pytensor.function([x, w, u], [cost, *pt.grad(cost, [x, w, u])])
            values.append(function(*arrays))
    for ours, theirs in zip(*values, strict=True):
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-9, atol=1e-12):
            raise ArithmeticError("a scan has another value or gradient")
