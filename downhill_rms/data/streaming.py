"""Sources that are larger than memory: a window of samples is there at a time.

What a window holds stands in one array for each input, so that a minibatch is one gather.
"""

from __future__ import annotations

import copy
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from downhill_rms.data.scalars import ScalarColumn
from downhill_rms.data.sources import (
    ArraySource,
    Batch,
    InputSpec,
    Selection,
    SparseColumn,
    conform,
)
from downhill_rms.data.windows import Rows, Window

GATHERED = 1 << 20  # bytes that are gathered together: a minibatch alone costs mostly the call
BLOCK = 1 << 20  # bytes that are read as one from data without chunks, about
PARTS = 16  # blocks in a window at least, where chunks allow it


@dataclass
class Held:
    """A window in memory.

    Attributes
    ----------
    window : Window
        Which.
    arrays : list of ndarray
        Its samples as they were read, one array for each input.
    order : ndarray or None
        The places of samples as they come; None if they come as they were read.
    gathered : (int, list of ndarray) or None
        Samples as they come, from which one on.
    """

    window: Window
    arrays: list[np.ndarray]
    order: np.ndarray | None
    gathered: tuple[int, list[np.ndarray]] | None = None

    def gather(self, first: int, last: int, axis: int) -> Batch:
        """Samples as they come, in arrays that are not used again for another window."""
        if self.gathered is None or not self._has(first, last, axis):
            count = last - first
            sized = [array for array in self.arrays if array.ndim]
            bytes_each = sum(array.nbytes // array.shape[axis] for array in sized)
            several = max(GATHERED // max(bytes_each * count, 1), 1) * count
            self.gathered = first, self._copy(first, min(first + several, len(self.window)), axis)
        start, arrays = self.gathered
        places = (slice(None),) * axis + (slice(first - start, last - start),)
        return [np.ascontiguousarray(a[places]) if a.ndim else a for a in arrays]

    def _has(self, first: int, last: int, axis: int) -> bool:
        assert self.gathered is not None
        start, arrays = self.gathered
        count = next(array.shape[axis] for array in arrays if array.ndim)
        return start <= first and last <= start + int(count)

    def _copy(self, first: int, last: int, axis: int) -> list[np.ndarray]:
        if self.order is not None:
            order = self.order[first:last]
            return [a.take(order, axis=axis) if a.ndim else a for a in self.arrays]
        places = (slice(None),) * axis + (slice(first, last),)
        return [a[places].copy(order="C") if a.ndim else a for a in self.arrays]


class WindowSource(ArraySource, ABC):
    """Samples of which those of a window are in memory.

    Parameters
    ----------
    columns : list
        What each input is given, with an ``axis`` and a ``shape``.
    names : list of str or None
        Their names, where they were given in a dict.
    starts : ndarray of int64
        The first sample of each block that is read as one, and behind them the number of samples.
    window : int
        Samples in memory together.
    ahead : bool
        Whether a thread reads the next window while one is in use.
    specs : sequence of InputSpec or None
        The inputs; None leaves the data as they are.
    """

    in_memory = False

    def __init__(
        self,
        columns: list[Any],
        names: list[str] | None,
        starts: np.ndarray,
        window: int,
        ahead: bool,
        specs: Sequence[InputSpec] | None = None,
    ) -> None:
        super().__init__(columns, names)
        self.starts, self.window, self.ahead, self.specs = starts, window, ahead, specs
        self._held: Held | None = None
        self._next: tuple[Window, Future[Held], ThreadPoolExecutor] | None = None
        self._lock, self._reading = threading.Lock(), threading.Lock()

    @abstractmethod
    def read(self, pieces: Sequence[slice], arrays: Sequence[np.ndarray]) -> None:
        """Put the samples of some pieces of the data into an array for each input."""

    @abstractmethod
    def dtype(self, column: Any) -> Any:
        """Of the array that a column is read into."""

    @abstractmethod
    def bind(self, specs: Sequence[InputSpec], epoch: int = 0) -> WindowSource:
        """The same data in the order of the inputs, in windows that are cast to their dtypes."""

    def apart(self) -> WindowSource:
        """The same data, for who goes through them beside others: it holds windows of its own."""
        twin = copy.copy(self)
        twin._held, twin._next = None, None
        twin._lock, twin._reading = threading.Lock(), threading.Lock()
        return twin

    def take(self, selection: Selection | Rows) -> Batch:
        """The samples of one minibatch."""
        if isinstance(selection, Rows):
            with self._lock:  # or another thread might have the window replaced meanwhile
                held = self._hold(selection.window)
                batch = held.gather(selection.first, selection.last, self.columns[0].axis)
        else:
            assert isinstance(selection, slice)
            batch = self._make_arrays(selection.stop - selection.start)
            self._read([selection], batch)
        for place, column in self.scalars.items():
            batch[place] = column.values
        if self.specs is None:
            return batch
        pairs = zip(batch, self.specs, strict=True)
        return [array if spec.sparse is None else conform(array, spec) for array, spec in pairs]

    def _hold(self, window: Window) -> Held:
        """The window's arrays, which stay until another is asked for."""
        if self._held is not None and self._held.window.key == window.key:
            return self._held
        # New arrays for each window would take about as long as reading them.
        spare = None if self._held is None else self._held.arrays
        self._held = None
        following, self._next = self._next, None
        if following is not None and following[0].key == window.key:
            self._held = following[1].result()
            following[2].shutdown()  # nothing is left to do, but for the thread to end
        else:
            self._held, spare = self._load(window, spare), None
        after = window.following() if self.ahead else None
        if after is not None:
            pool = ThreadPoolExecutor(1, "downhill_rms-prefetch")
            self._next = after, pool.submit(self._load, after, spare), pool
            pool.shutdown(wait=False)  # it takes nothing else, and ends also if nobody asks
        return self._held

    def _load(self, window: Window, arrays: list[np.ndarray] | None) -> Held:
        if arrays is None:
            arrays = self._make_arrays(min(window.whole.size, self.n_samples))
        self._read(window.pieces, arrays)
        return Held(window, arrays, window.order)

    def _read(self, pieces: Sequence[slice], arrays: Sequence[np.ndarray]) -> None:
        with self._reading:
            self.read(pieces, arrays)

    def _make_arrays(self, samples: int) -> list[np.ndarray]:
        shapes = [
            (*c.shape[: c.axis], samples, *c.shape[c.axis + 1 :]) if c.shape else ()
            for c in self.columns
        ]
        return [np.empty(s, self.dtype(c)) for s, c in zip(shapes, self.columns, strict=True)]


class WindowedArrays(WindowSource):
    """Arrays on disk, read by windows: memory maps, data sets of h5py and zarr.

    Parameters
    ----------
    source : ArraySource
        The arrays.
    window : int
        Samples in memory together.
    ahead : bool
        Whether a thread reads the next window while one is in use.
    """

    def __init__(
        self,
        source: ArraySource,
        window: int,
        ahead: bool,
        specs: Sequence[InputSpec] | None = None,
    ) -> None:
        if any(isinstance(column, SparseColumn) for column in source.columns):
            raise ValueError(
                "window is given with a sparse matrix of SciPy, which is in memory: windows are "
                "for data on disk. Leave it out."
            )
        starts = _block_starts(source, window)
        super().__init__(source.columns, source.names, starts, window, ahead, specs)

    def bind(self, specs: Sequence[InputSpec], epoch: int = 0) -> WindowedArrays:
        """The same data in the order of the inputs, in windows that are cast to their dtypes."""
        bound = ArraySource(self.columns, self.names).bind(specs, epoch)
        # Windows are dense; those of a sparse input become so minibatch by minibatch.
        pairs = zip(bound.columns, specs, strict=True)
        bound.columns = [
            c if s.sparse is None else c.bind(replace(s, sparse=None)) for c, s in pairs
        ]
        return WindowedArrays(bound, self.window, self.ahead, specs)

    def dtype(self, column: Any) -> Any:
        """Of the array that a column is read into."""
        return column.values.dtype if column.spec is None else column.spec.dtype

    def read(self, pieces: Sequence[slice], arrays: Sequence[np.ndarray]) -> None:
        """Put the samples of some pieces of the data into an array for each input."""
        for column, array in zip(self.columns, arrays, strict=True):
            if isinstance(column, ScalarColumn):
                continue
            filled, before = 0, (slice(None),) * column.axis
            for piece in pieces:
                count = piece.stop - piece.start
                array[(*before, slice(filled, filled + count))] = column.take(piece)
                filled += count


def _block_starts(source: ArraySource, window: int) -> np.ndarray:
    """Blocks of whole chunks, large enough for a disk and small beside the window."""
    sizes = (math.prod(c.shape) * np.dtype(c.values.dtype).itemsize for c in source.columns)
    bytes_each = sum(sizes) // source.n_samples
    chunk = max(_chunk(column.values, column.axis) for column in source.columns)
    wanted = max(min(BLOCK // max(bytes_each, 1), window // PARTS), 1)
    step = -(-wanted // chunk) * chunk
    return np.append(np.arange(0, source.n_samples, step), source.n_samples).astype("int64")


def _chunk(array: Any, axis: int) -> int:
    """Samples that a file format stores together; 1 where it does not."""
    for name in ("shards", "chunks"):  # zarr packs chunks into shards
        shape = getattr(array, name, None)
        if isinstance(shape, tuple) and len(shape) > axis and isinstance(shape[axis], int):
            return max(int(shape[axis]), 1)
    return 1
