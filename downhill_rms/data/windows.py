"""Windows: which rows are in memory together when not all can be, and in what order they come.

Rows are read in blocks, such as the row groups of a Parquet file. A pass puts the blocks in random
order, cuts what follows one another into windows, and permutes the rows of each window. All of it
follows from one number, so that a checkpoint keeps that number and no permutation of all rows.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

SAMPLE = 64  # numbers whose permutation tells whether NumPy still shuffles as it did


class Pass:
    """The order of one pass through rows.

    Parameters
    ----------
    starts : ndarray of int64
        The first row of each block, and behind them the number of rows.
    size : int
        Rows in a window; the last one of the pass may have fewer.
    seed : int or None
        What the order follows from; None for the data's own.
    """

    def __init__(self, starts: np.ndarray, size: int, seed: int | None) -> None:
        self.size, self.seed, self.n_rows = size, seed, int(starts[-1])
        lengths = np.diff(starts)
        order = np.arange(len(lengths)) if seed is None else self.shuffled(0, len(lengths))
        self._starts, self._lengths = starts[:-1][order], lengths[order]
        self._ends = np.cumsum(self._lengths)

    def shuffled(self, number: int, count: int) -> np.ndarray:
        """A permutation of so many numbers, the ``number``-th that the pass has."""
        return np.random.default_rng((self.seed or 0, number)).permutation(count)

    @property
    def checksum(self) -> int:
        """What another order has another of, as where another NumPy shuffles otherwise."""
        sample = self.shuffled(1, SAMPLE)
        return zlib.crc32(np.concatenate([self._starts, sample]).astype("<i8").tobytes())

    def window(self, number: int) -> Window:
        """One window of this pass, of which the first is number 0."""
        first = number * self.size
        last = min(first + self.size, self.n_rows)
        block = int(np.searchsorted(self._ends, first, side="right"))
        pieces: list[slice] = []
        while first < last:
            end = int(self._ends[block])
            start = int(self._starts[block]) + first - (end - int(self._lengths[block]))
            stop = start + min(end, last) - first
            if pieces and pieces[-1].stop == start:  # two blocks that stand together in the data
                start = pieces.pop().start
            if stop > start:
                pieces.append(slice(start, stop))
            first, block = min(end, last), block + 1
        return Window(self, number, pieces)


@dataclass(frozen=True, eq=False)
class Window:
    """Rows that are in memory together.

    Attributes
    ----------
    whole : Pass
        The pass that it is part of.
    number : int
        Its place there.
    pieces : list of slice
        Its rows as they stand in the data, in the order in which they are read.
    """

    whole: Pass
    number: int
    pieces: list[slice]

    def __len__(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)

    @property
    def key(self) -> tuple[int | None, int, int]:
        """What windows of the same rows in the same order have in common."""
        return self.whole.seed, self.whole.size, self.number

    @cached_property
    def order(self) -> np.ndarray | None:
        """The places of rows in the window as they come; None if they come as they were read."""
        if self.whole.seed is None:
            return None
        return self.whole.shuffled(self.number + 1, len(self))

    def following(self) -> Window | None:
        """The next window of the pass; None behind the last."""
        if (self.number + 1) * self.whole.size >= self.whole.n_rows:
            return None
        return self.whole.window(self.number + 1)

    def row(self, place: int) -> int:
        """Where in the data a row of the window is."""
        ends = list(accumulate(piece.stop - piece.start for piece in self.pieces))
        piece = bisect_right(ends, place)
        return int(self.pieces[piece].stop - ends[piece] + place)


@dataclass(frozen=True, eq=False)
class Rows:
    """The samples of one minibatch: those that come from ``first`` to ``last`` in a window.

    Its length and its items are those of an array of indices, each item a row of the data.
    """

    window: Window
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def part(self, places: slice) -> Any:
        """Some that follow one another, as a minibatch."""
        return Rows(self.window, self.first + places.start, self.first + places.stop)

    def __getitem__(self, index: int) -> int:
        order, place = self.window.order, self.first + index
        return self.window.row(place if order is None else int(order[place]))
