"""The order in which the samples of a data set are visited."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from downhill_rms.data.generators import generator_state, set_generator_state
from downhill_rms.data.sources import Selection

Shuffle = Literal["samples", "batches"] | None


class Sampler:
    """The order in which samples are visited.

    Parameters
    ----------
    n_samples : int
        Samples in the data set.
    batch_size : int
        Samples in a minibatch; 0 or less for all of them. The last of a pass may be shorter.
    n_batches : int or None
        Minibatches in an epoch; by default one pass. Epochs that are shorter or longer than a
        pass go on where the last one ended.
    shuffle : {"samples", "batches", None}
        What is permuted before every pass.
    rng : Generator
        Where permutations come from.
    """

    SIZES = ("n_samples", "batch_size", "n_batches", "shuffle")
    PLACE = ("cursor", "position")

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        n_batches: int | None,
        shuffle: Shuffle,
        rng: np.random.Generator,
    ) -> None:
        self.n_samples = n_samples
        self.batch_size = n_samples if batch_size <= 0 else min(batch_size, n_samples)
        self.pass_size = -(-n_samples // self.batch_size)
        self.n_batches = n_batches or self.pass_size
        # One minibatch of everything has no order to shuffle, and is given as it is.
        self.shuffle = shuffle if self.pass_size > 1 else None
        self.rng = rng
        self.permutation: np.ndarray | None = None
        self.restart()

    def restart(self) -> None:
        """Begin a new epoch and a new pass."""
        self.cursor = 0  # minibatches visited in this pass
        self.position = 0  # minibatches visited in this epoch

    def epoch(self, together: int = 1, limit: float = math.inf) -> Iterator[Selection]:
        """The rest of the current epoch; a whole one unless the last was left in the middle.

        Parameters
        ----------
        together : int
            Minibatches that are selected at once, if they follow one another in one epoch and
            one pass and have the same size.
        limit : float
            Minibatches after which nobody asks for more: none are selected together beyond it.
        """
        while True:
            if self.cursor == 0 and self.shuffle:
                count = self.n_samples if self.shuffle == "samples" else self.pass_size
                self.permutation = self.rng.permutation(count)
            count = 1 if together == 1 else self._count_alike(min(together, limit))
            limit -= count
            selection = self._select(self.cursor, count)
            self.cursor = (self.cursor + count) % self.pass_size
            self.position = (self.position + count) % self.n_batches
            yield selection
            if self.position == 0:
                return

    def in_order(self) -> Iterator[slice]:
        """An epoch in the data's own order, which leaves no trace."""
        for index in range(self.n_batches):
            yield self._slice(index % self.pass_size, 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands, as plain values and one array."""
        state: dict[str, Any] = {name: getattr(self, name) for name in (*self.SIZES, *self.PLACE)}
        state["generator"] = generator_state(self.rng)
        if self.permutation is not None:
            state["permutation"] = self.permutation.copy()
        return state

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """What differs between this order and the one that a state was taken of."""
        return [
            f"{name} is {getattr(self, name)} instead of {state.get(name)}"
            for name in self.SIZES
            if state.get(name) != getattr(self, name)
        ]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        for name in self.PLACE:
            setattr(self, name, int(state[name]))
        self.permutation = state.get("permutation")
        set_generator_state(self.rng, state["generator"])

    def _count_alike(self, most: float) -> int:
        """Minibatches of one size from here on in this epoch and pass, at least 1."""
        full = self.n_samples // self.batch_size
        left = full - self.cursor
        if self.shuffle == "batches" and self.permutation is not None:
            rest = self.permutation[self.cursor :]
            left = int(np.argmax(rest == full)) if full in rest else len(rest)
        return max(int(min(most, left, self.n_batches - self.position)), 1)

    def _select(self, index: int, count: int) -> Selection:
        if self.shuffle is None or self.permutation is None:
            return self._slice(index, count)
        if self.shuffle == "samples":
            return self.permutation[self._slice(index, count)]
        slices = [self._slice(int(i), 1) for i in self.permutation[index : index + count]]
        if count == 1:
            return slices[0]
        return np.concatenate([np.arange(s.start, s.stop) for s in slices])

    def _slice(self, index: int, count: int) -> slice:
        start = index * self.batch_size
        return slice(start, min(start + count * self.batch_size, self.n_samples))
