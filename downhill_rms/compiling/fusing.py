"""PyTensor's last fusions, without asking about the whole graph for each of them.

Since 3.1 indexing, and since 3.3 sums and numbers too, become parts of elementwise loops after
these have begun to work in place. After every one of these replacements PyTensor sorts the whole
graph to look for cycles. Here a large graph is looked at once, after all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from downhill_rms.compiling import pieces
from downhill_rms.compiling.internals import FullHistory, GraphRewriter, InconsistencyError


class FuseTogether(GraphRewriter):  # type: ignore[misc]
    """Does in a large graph what PyTensor's fusions do, just before them.

    They find nothing left to do then. Where a graph does not allow all that was done, it is as it
    was before, and PyTensor's fusions try one after the other.

    Parameters
    ----------
    fusions : GraphRewriter
        PyTensor's, those of a mode.
    """

    def __init__(self, fusions: Any) -> None:
        self.fusions = fusions

    def apply(self, fgraph: Any) -> None:
        """Replace the operations."""
        if len(fgraph.apply_nodes) <= pieces.SMALL:
            return
        changes = FullHistory()
        fgraph.attach_feature(changes)
        try:
            with _nothing_asked(fgraph):
                self.fusions.apply(fgraph)
            fgraph.validate()
        except (InconsistencyError, ValueError):  # this from sorting what cannot be sorted
            changes.start()
        finally:
            fgraph.remove_feature(changes)


@contextmanager
def _nothing_asked(fgraph: Any) -> Iterator[None]:
    """Have every replacement allowed."""
    validate = vars(fgraph).get("validate")  # the graph's own, before 3.3
    fgraph.validate = lambda: True
    try:
        yield
    finally:
        del fgraph.validate
        if validate is not None:
            fgraph.validate = validate
