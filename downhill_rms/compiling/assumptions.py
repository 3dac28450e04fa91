"""What PyTensor asks a large graph about its matrices, which are none of linear algebra's.

At every product and every transpose PyTensor asks whether a matrix is symmetric, diagonal,
orthogonal or a permutation, and asks again for all that follows whenever anything was replaced:
time that grows with the square of a network's depth. Such matrices come from the operations of
linear algebra, from ``eye`` and from the user's word; where a large graph has none of these,
nothing is known.
"""

from __future__ import annotations

from typing import Any

from downhill_rms.compiling import pieces
from downhill_rms.compiling.internals import (
    AssumptionFeature,
    FactState,
    GraphRewriter,
    attach,
)

MODULES = ("pytensor.tensor.linalg", "pytensor.tensor.nlinalg", "pytensor.tensor.slinalg")
NAMES = {"AllocDiag", "Eye", "SpecifyAssumptions"}


class NothingKnown(AssumptionFeature):  # type: ignore[misc]
    """Knows nothing of any matrix."""

    def get(self, var: Any, key: Any) -> Any:
        """Tell that it is unknown whether a matrix is of a kind."""
        return FactState.UNKNOWN

    def on_change_input(self, *args: Any, **kwargs: Any) -> None:
        """Forget nothing."""

    def on_prune(self, *args: Any, **kwargs: Any) -> None:
        """Forget nothing."""


class AssumeNothing(GraphRewriter):  # type: ignore[misc]
    """Has nothing known of a large graph's matrices; it runs before all other rewriters."""

    def apply(self, fgraph: Any) -> None:
        """Watch the graph."""
        if len(fgraph.apply_nodes) > pieces.SMALL and not any(map(_tells, fgraph.apply_nodes)):
            attach(fgraph, NothingKnown())


def _tells(node: Any) -> bool:
    """Whether an operation may make a matrix of which something is known."""
    for op in (node.op, getattr(node.op, "core_op", None)):
        kind = type(op)
        if kind.__name__ in NAMES or kind.__module__.startswith(MODULES):
            return True
    return False
