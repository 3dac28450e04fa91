"""The same minibatches for several runs: read once, and kept for an epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from downhill_rms.data import ArraySource, Batch, BoundDataset, Dataset, InputSpec

STACK = 1 << 25  # bytes of minibatches that are handed over together, at most
LONGEST = 1 << 12  # of them
KEPT = 1 << 27  # bytes of an epoch of arrays, at most; each run reads larger ones by itself


class SharedDataset(Dataset):
    """A data set whose bound form many runs share, each at a place of its own.

    Every run begins with the order that the data set has now, and so sees the same minibatches.

    Parameters
    ----------
    dataset : Dataset
        The data. Its own order does not move.
    """

    def __init__(self, dataset: Dataset) -> None:
        vars(self).update(vars(dataset))
        self._dataset = dataset
        self._bound: list[BoundDataset] = []  # one, once it is there
        self._sampler = copy.deepcopy(dataset.sampler)
        self._epochs: dict[Any, Epoch] = {}

    def bind(self, specs: Sequence[InputSpec] | None, epoch: int = 0) -> BoundDataset:
        """The data at their beginning, cast for these inputs once and for all."""
        if not self._bound:
            self._bound.append(self._dataset.bind(specs, epoch))
        return Share(self._bound[0], _copied(self._sampler), self._epochs)

    @property
    def order(self) -> np.random.Generator | None:
        """What permutes the samples; None for batches that come ready."""
        return None if self._sampler is None else self._sampler.rng

    def in_order_of(self, rng: np.random.Generator) -> SharedDataset:
        """The same data, permuted by another generator."""
        twin = copy.copy(self)
        twin._sampler = copy.deepcopy(self._sampler)
        if twin._sampler is not None:
            twin._sampler.rng = rng
        twin._epochs = {}
        return twin


class Epoch:
    """The minibatches of an epoch as they were read, and where the order stood after each."""

    def __init__(self) -> None:
        self.items: list[tuple[Batch, int, Any]] = []
        self.is_whole = False


class Share(BoundDataset):
    """The data as one of several runs sees them.

    Parameters
    ----------
    bound : BoundDataset
        The data.
    sampler : Sampler or None
        The run's own order.
    epochs : dict of object to Epoch
        What has been read for the latest epoch; of all runs.
    """

    def __init__(self, bound: BoundDataset, sampler: Any, epochs: dict[Any, Epoch]) -> None:
        vars(self).update(vars(bound))
        self.sampler, self._epochs = sampler, epochs
        self._epoch_number = 0
        self._drawn: Any = None

    def begin_epoch(self, epoch: int) -> None:
        """Go on to another epoch."""
        self._epoch_number = epoch
        super().begin_epoch(epoch)

    def epoch(
        self, delivered: int = 0, together: int = 1, limit: float = math.inf
    ) -> Iterator[tuple[Batch, int]]:
        """What another run has read of this epoch, and the rest from the data."""
        over = delivered and self.sampler is not None and self.sampler.position == 0
        if over or not self._is_kept(limit):
            return super().epoch(delivered, together, limit)
        place = delivered if self.sampler is None else (self.sampler.cursor, self.sampler.position)
        return self._shared((self._epoch_number, place, together), delivered, together, limit)

    def _is_kept(self, limit: float) -> bool:
        """Whether the minibatches of an epoch may stay in memory until the next."""
        if not isinstance(self.source, ArraySource):
            return True  # who knows whether they would be the same again
        if self.sampler is None or self.sampler.window is not None or self.n_samples is None:
            return False
        samples = min(self.sampler.n_batches, limit) * self.sampler.batch_size
        row = sum(c.nbytes / max(self.n_samples, 1) for c in self._columns())
        return bool(samples * row <= KEPT)

    def _columns(self) -> list[Any]:
        assert isinstance(self.source, ArraySource)
        return [column for column in self.source.columns if hasattr(column, "nbytes")]

    def _shared(
        self, key: Any, delivered: int, together: int, limit: float
    ) -> Iterator[tuple[Batch, int]]:
        if key not in self._epochs:
            for old in [k for k in self._epochs if k[0] < self._epoch_number]:
                del self._epochs[old]
            self._epochs[key] = Epoch()
        kept = self._epochs[key]
        count = done = 0
        for batch, samples, place in kept.items:
            if done >= limit:
                return
            self._stand_at(place)
            yield batch, samples
            count += 1
            done += self._minibatches(batch, together)
        ends_here = count > 0 and self.sampler is not None and self.sampler.position == 0
        if kept.is_whole or ends_here or done >= limit:
            return
        for batch, samples in super().epoch(delivered + done, together, limit - done):
            kept.items.append((batch, samples, self._place()))
            yield batch, samples
        kept.is_whole = True

    def _minibatches(self, batch: Batch, together: int) -> int:
        return 1 if together == 1 else len(batch[0])

    def _place(self) -> Any:
        sampler = self.sampler
        if sampler is None:
            return None
        # A permutation is replaced and never changed, and what draws it moves with it.
        if self._drawn is None or self._drawn[0] is not sampler.permutation:
            self._drawn = sampler.permutation, copy.deepcopy(sampler.rng)
        return sampler.cursor, sampler.position, *self._drawn

    def _stand_at(self, place: Any) -> None:
        if place is None or self.sampler is None:
            return
        cursor, position, permutation, rng = place
        if permutation is not self.sampler.permutation:
            self.sampler.permutation = permutation
            self.sampler.rng = copy.deepcopy(rng)
        self.sampler.cursor, self.sampler.position = cursor, position


def _copied(sampler: Any) -> Any:
    """An order that moves by itself."""
    twin = copy.copy(sampler)
    if sampler is not None and sampler.shuffle:  # else nothing is drawn
        twin.rng = copy.deepcopy(sampler.rng)
    return twin


def stack_length(data: SharedDataset) -> int:
    """Minibatches that are handed over together: an epoch, unless they are large."""
    bound = data.bind(None)
    count = min(data.iteration_size or LONGEST, LONGEST)
    if data.sampler is None or not isinstance(bound.source, ArraySource) or not bound.n_samples:
        return max(2, min(count, 64))
    columns = [c for c in bound.source.columns if hasattr(c, "nbytes")]
    batch = sum(c.nbytes / max(bound.n_samples, 1) for c in columns) * data.sampler.batch_size
    return max(2, min(count, int(STACK / max(batch, 1))))
