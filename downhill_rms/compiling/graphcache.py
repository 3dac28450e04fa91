"""Large graphs as PyTensor's rewrites left them, kept on disk with what Numba compiled of them.

A new process finds native code there, but to know which, PyTensor would rewrite the graph again,
in Python: a second for each layer of a transformer. What is kept is found by all that rewriting
depends on: the graph with its names, what may be overwritten, the rewrites, PyTensor's settings and
the versions of everything. Graphs that `flatgraph` cannot write are rewritten in every process.
"""

from __future__ import annotations

import io
import logging
import os
import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytensor

from downhill_rms.compiling import pieces
from downhill_rms.compiling.flatgraph import flat, restore
from downhill_rms.compiling.inplace import protected_inputs
from downhill_rms.compiling.internals import GraphRewriter, Mode
from downhill_rms.compiling.machine import marker
from downhill_rms.compiling.selfcheck import source_key

log = logging.getLogger(__name__)

KEPT = 32  # graphs on disk, the newest


class CachingMode(Mode):  # type: ignore[misc]
    """A mode that rewrites a large graph once."""

    @property
    def optimizer(self) -> Any:
        """What rewrites a graph, or finds it rewritten."""
        return RewriteOnce(super().optimizer)


class RewriteOnce(GraphRewriter):  # type: ignore[misc]
    """Rewrites a graph, unless it is on disk as another rewriter leaves it.

    Parameters
    ----------
    rewriter : GraphRewriter
        The other.
    """

    def __init__(self, rewriter: Any) -> None:
        self.rewriter = rewriter

    def add_requirements(self, fgraph: Any) -> None:
        """Have the graph watched as the other needs it."""
        self.rewriter.add_requirements(fgraph)

    def apply(self, fgraph: Any) -> Any:
        """Rewrite the graph."""
        return self.rewriter.apply(fgraph)

    def rewrite(self, fgraph: Any, *args: Any, **kwargs: Any) -> Any:
        """Rewrite the graph, or put what is on disk in its place."""
        path = self._path(fgraph)
        if path is None:
            return self.rewriter.rewrite(fgraph, *args, **kwargs)
        with suppress(OSError):
            content = path.read_bytes()
            try:
                restore(content, fgraph)
            except Exception:  # of a damaged file, any
                log.debug("what is kept in %s cannot be read", path, exc_info=True)
            else:
                return None
        profile = self.rewriter.rewrite(fgraph, *args, **kwargs)
        rewritten = flat(fgraph)
        if rewritten is not None:
            _write(path, rewritten)
            # The order of its operations is that of the graph that the next process finds.
            restore(rewritten, fgraph)
        return profile

    def _path(self, fgraph: Any) -> Path | None:
        """Where a graph is kept; None if it is not."""
        if len(fgraph.apply_nodes) <= pieces.SMALL or not pytensor.config.numba__cache:
            return None
        content = flat(fgraph)
        if content is None:
            return None
        updates = sorted((fgraph.update_mapping or {}).items())
        protected = protected_inputs(fgraph)
        overwritten = [variable not in protected for variable in fgraph.inputs]
        settings = pytensor.config.get_config_hash()
        given = sha256(content).hexdigest(), updates, overwritten
        return marker("graph", *given, self._rewrites(), settings, source_key())

    def _rewrites(self) -> str:
        """A hash of what rewrites, without addresses."""
        summary = io.StringIO()
        self.rewriter.print_summary(summary)
        text = re.sub(r"id=\d+|0x[0-9a-f]+|_\d{6,}", "", summary.getvalue())
        return sha256(text.encode()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
        kept = sorted(path.parent.glob("downhill_rms-*.graph"), key=os.path.getmtime)
        for old in kept[:-KEPT]:
            old.unlink()
