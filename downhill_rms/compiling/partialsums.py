"""Sums that begin with a sum which is there already.

PyTensor makes one operation of ``a + (b + c)``, also where ``b + c`` is needed by itself. What
flows back through the layers of a residual network is such a sum for each layer, of all that came
from the layers behind it: a network of N layers would add N**2 / 2 arrays, by N operations of which
no two are equal, where N sums of two were written.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from downhill_rms.compiling.internals import Add, Elemwise, GraphRewriter


class SharePartialSums(GraphRewriter):  # type: ignore[misc]
    """Replaces the terms of a sum that are another sum's by that sum."""

    def apply(self, fgraph: Any) -> None:
        """Replace the operations."""
        sums = [node for node in fgraph.toposort() if _is_sum(node)]
        known: list[tuple[Counter[Any], Any]] = []  # terms and result, the shortest first
        for node in sorted(sums, key=lambda node: len(node.inputs)):
            terms, (result,) = Counter(node.inputs), node.outputs
            for part, partial_sum in reversed(known):
                if part < terms:
                    shorter = node.op(partial_sum, *(terms - part).elements())
                    if shorter.type == result.type:
                        fgraph.replace(result, shorter, reason="partial_sum")
                        result = shorter
                        break
            known.append((terms, result))


def _is_sum(node: Any) -> bool:
    return isinstance(node.op, Elemwise) and isinstance(node.op.scalar_op, Add)
