"""Softmax in single precision, whose loops become vector instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from downhill_rms.compiling.internals import LogSoftmax, Softmax, node_rewriter


class Softmax32(Op):  # type: ignore[misc]
    """Softmax of single-precision numbers along the last dimension, or its logarithm."""

    __props__ = ("logarithm",)

    def __init__(self, logarithm: bool) -> None:
        self.logarithm = logarithm

    def make_node(self, x: Any) -> Any:
        """The softmax of an array."""
        return Apply(self, [x], [x.type()])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        """Compute it in Python."""
        (x,) = inputs
        below = x - x.max(axis=-1, keepdims=True)
        exponentials = np.exp(below)
        total = exponentials.sum(axis=-1, keepdims=True)
        output_storage[0][0] = below - np.log(total) if self.logarithm else exponentials / total


@node_rewriter([Softmax, LogSoftmax])  # type: ignore[untyped-decorator]
def replace_softmax(fgraph: Any, node: Any) -> list[Any] | None:
    """Replace a softmax of single-precision numbers along the last dimension."""
    (x,), op = node.inputs, node.op
    if x.type.dtype != "float32" or op.axis not in ((x.type.ndim - 1,), (-1,)):
        return None
    return [Softmax32(isinstance(op, LogSoftmax))(x)]


def register(numba: Any) -> None:
    """Tell PyTensor how Numba computes it."""
    from downhill_rms.compiling import float32
    from downhill_rms.compiling.layout import contiguous
    from downhill_rms.compiling.selfcheck import source_key

    source = source_key()

    @numba.register(Softmax32)  # type: ignore[untyped-decorator]
    def funcify_softmax(op: Any, node: Any, **kwargs: Any) -> tuple[Any, str]:
        of_rows = float32.log_softmax if op.logarithm else float32.softmax

        @numba.njit  # type: ignore[untyped-decorator]
        def softmax(x: Any) -> Any:
            array = contiguous(x)
            return of_rows(array.reshape(-1, array.shape[-1])).reshape(array.shape)

        return softmax, f"softmax_{op.logarithm}_{source}"
