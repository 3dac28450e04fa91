"""Look through whole arrays, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse

from downhill_rms.data.sources import ArraySource, Column

PART = 4 << 20  # bytes that are looked at together: they stay in the processor's cache


def parts(source: ArraySource) -> Iterator[slice]:
    """The samples of a source in parts of about equal size in memory."""
    bytes_each = max(_bytes(column) for column in source.columns) // source.n_samples
    step = max(PART // max(bytes_each, 1), 1)
    for start in range(0, source.n_samples, step):
        yield slice(start, min(start + step, source.n_samples))


def first_infinite(column: Column) -> tuple[tuple[int, ...], float] | None:
    """Place and value of the first entry that is NaN or infinite; None if there is none."""
    array = column.values
    if scipy.sparse.issparse(array):
        entries = array.tocoo()
        found = _first(entries.data)
        if found is None:
            return None
        place = (int(entries.row[found[0]]), int(entries.col[found[0]]))
        return place, float(entries.data[found])
    if array.dtype.kind not in "fc":
        return None
    rows = array.reshape(1) if array.ndim == 0 else array
    step = max(PART // max(rows[:1].nbytes, 1), 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        found = _first(part)
        if found is not None:
            return (start + found[0], *found[1:]), part[found]
    return None


def _first(part: np.ndarray) -> tuple[int, ...] | None:
    # One pass without an array beside it; a sum of finite numbers may overflow, no more.
    with np.errstate(all="ignore"):
        if part.dtype.kind not in "fc" or np.isfinite(part.sum()):
            return None
    bad = np.flatnonzero(~np.isfinite(part))
    if not bad.size:
        return None
    return tuple(int(i) for i in np.unravel_index(bad[0], part.shape))


def _bytes(column: Column) -> int:
    array = column.values
    return int(array.data.nbytes if scipy.sparse.issparse(array) else array.nbytes)
