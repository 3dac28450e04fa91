"""Data sets: from anything that a user has to minibatches."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from numbers import Number
from typing import Any, Protocol

import numpy as np

from downhill_rms.data import parquet
from downhill_rms.data.ahead import read_ahead
from downhill_rms.data.sampler import Sampler, Shuffle, WindowSampler
from downhill_rms.data.sources import (
    ArraySource,
    Batch,
    BatchSource,
    InputSpec,
    Selection,
    as_column,
)
from downhill_rms.data.streaming import WindowedArrays, WindowSource
from downhill_rms.data.windows import Rows

CALLABLE_EPOCH = 100  # minibatches in an epoch of a callable without a length, as in downhill


class Dataset:
    """Minibatches from anything that a user has.

    Parameters
    ----------
    inputs : object
        One of:

        - an array, or a list, tuple or dict of arrays with the same samples: numpy arrays and
          memory maps, h5py and zarr data sets, scipy sparse matrices, PyTensor shared variables;
          frames, series, tables and arrays of pandas, polars and Arrow, whose columns of numbers
          and truth values stand beside each other in one matrix;
        - among these, for an input without dimensions: a number; a PyTensor shared scalar, which
          is read anew for each call; or a function of the epoch, called once for each with the
          epochs trained so far, 0 at first. Samples are counted by the arrays. Without an array
          an epoch is one update;
        - the path of a Parquet file, or of a folder with such files, or a pyarrow data set, which
          are read by windows;
        - a callable that returns a batch;
        - an iterable of batches that can be iterated again: a list of batches, a torch
          DataLoader;
        - None, for a loss without inputs.

        A batch is one array, a list or tuple of one for each input, or a dict by input name.
    name : str, optional
        What errors and logs call it.
    batch_size : int
        Samples in a minibatch (32); 0 or less for all. The last minibatch of a pass is shorter
        where the division leaves a rest. Callables and iterables make their own batches.
    iteration_size : int, optional
        Minibatches in an epoch. By default one pass; for a callable its ``len()``, or 100.
    axis : int
        The axis that counts samples, in arrays and in ready batches.
    rng : int or Generator, optional
        Seed of the shuffling.
    shuffle : {"samples", "batches", None}
        Permute the samples before every pass, the order of fixed minibatches (as ``downhill``
        did; faster for data on disk), or nothing. Callables and iterables are not shuffled, nor
        is a minibatch that holds every sample.
    prefetch : int
        Minibatches that a thread reads ahead of training (0). It helps where reading waits
        without holding Python's lock: the network, decompression, h5py and zarr. Where there are
        windows, any number above 0 has a thread read the next window while one is in use.
    window : int, optional
        Samples in memory together, for data that are larger than it: of Parquet (by default as
        many as take 32 MiB in the file's numbers) and of memory maps, h5py and zarr data
        sets (by default none: every minibatch is read from disk by itself). Blocks of samples
        that the file keeps together, such as row groups and chunks, come in random order, and
        the samples of each window are permuted. It is rounded up to whole minibatches.
    local : bool
        Whether the batches of a callable or an iterable are this process's part of each
        minibatch, where several processes train together (False: each process makes whole
        minibatches, the same ones, and takes its part). Every process makes parts of the same
        shapes.

    Raises
    ------
    TypeError
        If ``inputs`` is none of the above.
    ValueError
        If there are no samples, or arrays of different lengths.

    Examples
    --------
    >>> import numpy as np
    >>> data = Dataset([np.zeros((100, 3)), np.zeros(100)], batch_size=32, rng=0)
    >>> [len(x) for x, y in data]
    [32, 32, 32, 4]
    """

    def __init__(
        self,
        inputs: Any,
        name: str | None = None,
        batch_size: int = 32,
        iteration_size: int | None = None,
        axis: int = 0,
        rng: int | np.random.Generator | None = None,
        shuffle: Shuffle = "samples",
        prefetch: int = 0,
        window: int | None = None,
        local: bool = False,
    ) -> None:
        if shuffle is not None and (
            not isinstance(shuffle, str) or shuffle not in ("samples", "batches")
        ):
            raise ValueError(
                f"shuffle is {shuffle!r:.80}: it takes 'samples', 'batches' or None. Give one."
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name is {name!r:.80}: it takes a text. Give a str.")
        check_int("batch_size", batch_size)
        check_int("axis", axis, low=0)
        check_int("prefetch", prefetch, low=0)
        for size_name, size in (("iteration_size", iteration_size), ("window", window)):
            if size is not None:
                check_int(size_name, size, low=1)
        self.name = name or "dataset"
        self.axis, self.prefetch = axis, prefetch
        generator = _generator(rng)
        with told(self.name):
            self.source = open_source(inputs, axis, window, ahead=prefetch > 0)
            if isinstance(self.source, WindowSource) and shuffle == "batches":
                raise ValueError(
                    "shuffle is 'batches' for data that are read by windows: those have samples "
                    "permuted in each. Give 'samples' or None."
                )
        if not isinstance(local, bool | np.bool_):
            raise TypeError(f"local is {local!r:.80}: it takes True or False. Give one.")
        self.local = bool(local)
        if self.local and isinstance(self.source, ArraySource):
            raise ValueError(
                f"local is given with {self.name}, which is made from arrays: of these each "
                "process reads its own samples by itself. Leave it out."
            )
        self.sampler: Sampler | None = None
        self._by_hand: Sampler | None = None
        self._epochs_by_hand = 0
        if isinstance(self.source, ArraySource):
            how = (batch_size, iteration_size, shuffle, generator)
            if isinstance(self.source, WindowSource):
                self.sampler = WindowSampler(self.source.starts, self.source.window, *how)
            elif self.source.is_scalar:  # as a loss without inputs: there is nothing to divide
                self.sampler = Sampler(iteration_size or 1, 1, iteration_size, None, generator)
            else:
                self.sampler = Sampler(self.source.n_samples, *how)
            self.iteration_size: int | None = self.sampler.n_batches
            self._by_hand = copy.deepcopy(self.sampler)
        else:
            self.iteration_size = iteration_size or _own_length(inputs)
            if self.iteration_size == 0:
                raise ValueError(
                    f"{self.name} has length 0: a data set holds at least one batch. Check how it "
                    "was made."
                )

    def __repr__(self) -> str:
        if isinstance(self.source, ArraySource) and self.sampler is not None:
            shapes = ", ".join(str(column.shape or column) for column in self.source.columns)
            batches = f"{self.iteration_size} minibatches of {self.sampler.batch_size}"
            order = f"shuffle={self.sampler.shuffle!r}"
            if self.sampler.window is not None:
                order += f", window={self.sampler.window}"
            return f"Dataset({self.name!r}, arrays {shapes}, {batches}, {order})"
        count = (
            "as many minibatches as come"
            if self.iteration_size is None
            else (f"{self.iteration_size} minibatches")
        )
        return f"Dataset({self.name!r}, ready batches, {count} an epoch)"

    def __len__(self) -> int:
        """Minibatches in an epoch."""
        if self.iteration_size is None:
            raise TypeError(
                f"{self.name} has no length: its batches come from an iterable without one. "
                "Give iteration_size=."
            )
        return self.iteration_size

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, as lists of arrays of their own dtypes.

        Each begins where an epoch of the one before ends, and has an order of its own: that of
        training stays where it is.
        """
        bound = self.bind(None)
        bound.begin_epoch(self._epochs_by_hand)
        self._epochs_by_hand += 1
        if isinstance(bound.source, WindowSource):
            bound.source = bound.source.apart()
        if self._by_hand is not None:
            bound.sampler = copy.deepcopy(self._by_hand)
            for _ in self._by_hand.epoch():
                pass
        return (batch for batch, _ in bound.epoch())

    def bind(self, specs: Sequence[InputSpec] | None, epoch: int = 0) -> BoundDataset:
        """Check and cast the data, once, for these inputs.

        Parameters
        ----------
        specs : sequence of InputSpec or None
            The inputs; None for the data as they are.
        epoch : int
            The number that functions of the epoch are first called with.

        Returns
        -------
        BoundDataset
            It shares this data set's order: an epoch of either moves both on.
        """
        with told(self.name):
            source = self.source if specs is None else self.source.bind(specs, epoch)
            return BoundDataset(self, source)


def as_dataset(
    data: Any,
    name: str,
    batch_size: int | None = None,
    iteration_size: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> Dataset:
    """Make a `Dataset` of whatever it accepts; one that is ready keeps its own sizes and order.

    Raises
    ------
    ValueError
        If a size or a seed is given with a `Dataset` that is ready.
    """
    if not isinstance(data, Dataset):
        size = 32 if batch_size is None else batch_size
        return Dataset(data, name, size, iteration_size, rng=seed)
    if seed is not None:
        raise ValueError(
            f"seed={seed!r} is given with {data.name}, a Dataset that has an order of its own. "
            "Give the seed to Dataset(..., rng=...) instead."
        )
    if batch_size is not None or iteration_size is not None:
        raise ValueError(
            f"batch_size={batch_size} and iteration_size={iteration_size} are given with "
            f"{data.name}, a Dataset that has its own sizes. Give them to Dataset(...) instead."
        )
    return data


class Feed(Protocol):
    """How minibatches come to the devices of several processes."""

    processes: int

    def rows(self, samples: int) -> slice:
        """Which of a minibatch's samples this process reads."""

    def place(self, own: Batch, samples: int, axis: int) -> Batch:
        """A minibatch of which this process has its own samples, where functions take it."""


class BoundDataset:
    """A data set whose minibatches a compiled function takes as they come."""

    def __init__(self, dataset: Dataset, source: ArraySource | BatchSource) -> None:
        self.name, self.axis, self.prefetch = dataset.name, dataset.axis, dataset.prefetch
        self.source, self.sampler = source, dataset.sampler
        self.iteration_size = dataset.iteration_size
        # Given what is read as it comes, batch by batch: its number, and the samples if known.
        self.look: Callable[[Batch, int, Selection | None], Any] | None = None
        self.local = dataset.local
        self.feed: Feed | None = None  # by which minibatches come to many devices

    def begin_epoch(self, epoch: int) -> None:
        """Go on to another epoch, whose number some scalars are made from."""
        if isinstance(self.source, ArraySource):
            with told(self.name):
                self.source.begin_epoch(epoch)

    @property
    def scheduled(self) -> list[int]:
        """The places of the inputs that functions of the epoch feed."""
        scalars = self.source.scalars if isinstance(self.source, ArraySource) else {}
        return [place for place, column in scalars.items() if column.is_schedule]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the arrays; none for ready batches."""
        columns = self.source.columns if isinstance(self.source, ArraySource) else []
        return [column.shape for column in columns]

    @property
    def n_samples(self) -> int | None:
        """Samples in all; None where they are read as they come."""
        return self.source.n_samples if isinstance(self.source, ArraySource) else None

    def epoch(
        self, delivered: int = 0, together: int = 1, limit: float = math.inf
    ) -> Iterator[tuple[Batch, int]]:
        """Minibatches of an epoch in training order, each with its number of samples.

        Parameters
        ----------
        delivered : int
            Minibatches of this epoch that were delivered before, as a restored run knows.
            Arrays know their place themselves; an iterable is iterated up to it.
        together : int
            Above 1, up to so many minibatches of one size are delivered at once: their arrays
            have one more dimension in front, which counts them; without arrays, one of zeros has
            that dimension alone. The number of samples is that of one minibatch.
        limit : float
            Minibatches after which nobody asks for more.
        """
        if isinstance(self.source, ArraySource) and self.sampler is not None:
            if delivered and self.sampler.position == 0:
                return iter(())  # the epoch had come to its end
            # The thread that reads a window ahead is the window's own.
            ahead = self.prefetch and self.sampler.window is None
            take = self._take_ahead if ahead else self._take_epoch
            taken = take(self.source, self.sampler, together, limit)
            if self.source.scalars:
                taken = self.source.with_scalars(taken, together > 1)
            return self._fed(taken, stacked=together > 1)
        batches = self._ready_batches(delivered)
        if together > 1:
            batches = _stack(batches, together, limit)
        if self.prefetch:
            batches = read_ahead(batches, self.prefetch)
        batches = self._looked_at(batches, delivered, stacked=together > 1)
        return self._fed(batches, stacked=together > 1)

    def in_order(self) -> Iterator[tuple[Batch, int]]:
        """The same in the data's own order; the training order stays where it was."""
        if isinstance(self.source, ArraySource) and self.sampler is not None:
            source = self.source
            if isinstance(source, WindowSource):
                source = source.apart()
            return self._fed(self._take(source, self.sampler.in_order()))
        return self._fed(self._looked_at(self._ready_batches()))

    def _fed(
        self, batches: Iterator[tuple[Batch, int]], stacked: bool = False
    ) -> Iterator[tuple[Batch, int]]:
        """The same, as many devices take them."""
        return batches if self.feed is None else self._feed(self.feed, batches, stacked)

    def _feed(
        self, feed: Feed, batches: Iterator[tuple[Batch, int]], stacked: bool
    ) -> Iterator[tuple[Batch, int]]:
        axis = self.axis + stacked
        is_whole = isinstance(self.source, BatchSource) and not self.local
        for batch, samples in batches:
            if self.local:
                samples *= feed.processes
            elif is_whole:
                places = (slice(None),) * axis + (feed.rows(samples),)
                batch = [array[places] if array.ndim > axis else array for array in batch]
            yield feed.place(batch, samples, axis), samples

    def _take(
        self, source: ArraySource, selections: Iterable[Selection]
    ) -> Iterator[tuple[Batch, int]]:
        take = source.take if self.feed is None else partial(self._take_own, self.feed, source)
        for number, selection in enumerate(selections):
            if isinstance(selection, slice):
                samples = selection.stop - selection.start
            else:
                samples = len(selection)
            batch = take(selection)
            if self.look is not None:
                self.look(batch, number, selection)
            yield batch, samples

    def _take_own(self, feed: Feed, source: ArraySource, selection: Any) -> Batch:
        """What this process reads of samples that are one minibatch, or several together."""
        assert self.sampler is not None
        is_slice = isinstance(selection, slice)
        samples = selection.stop - selection.start if is_slice else len(selection)
        size = min(self.sampler.batch_size, samples)
        rows = feed.rows(size)
        if rows.stop - rows.start == size:
            return source.take(selection)
        if size == samples and isinstance(selection, Rows):
            selection = selection.part(rows)
            return source.take(selection)
        if size == samples and is_slice:
            first = selection.start
            return source.take(slice(first + rows.start, first + rows.stop))
        mine = np.arange(samples).reshape(-1, size)[:, rows].ravel()
        if isinstance(selection, Rows):  # several minibatches of a window, which is in memory
            before = (slice(None),) * self.axis
            batch = source.take(selection)  # type: ignore[arg-type]
            return [a[(*before, mine)] if a.ndim > self.axis else a for a in batch]
        return source.take(mine + selection.start if is_slice else selection[mine])

    def _take_epoch(
        self, source: ArraySource, sampler: Sampler, together: int, limit: float
    ) -> Iterator[tuple[Batch, int]]:
        batches = self._take(source, sampler.epoch(together, limit))
        return batches if together == 1 else _split(batches, sampler.batch_size, self.axis)

    def _take_ahead(
        self, source: ArraySource, sampler: Sampler, together: int, limit: float
    ) -> Iterator[tuple[Batch, int]]:
        # The thread follows a copy of the order, so that the order itself stands where training
        # is, which is what a checkpoint keeps.
        batches = self._take_epoch(source, copy.deepcopy(sampler), together, limit)
        with contextlib.closing(read_ahead(batches, self.prefetch)) as ahead:
            for item, _ in zip(ahead, sampler.epoch(together, limit), strict=True):
                yield item

    def _ready_batches(self, delivered: int = 0) -> Iterator[tuple[Batch, int]]:
        assert isinstance(self.source, BatchSource)
        skip = 0 if self.source.endless else delivered
        count = delivered - skip
        while self.iteration_size is None or count < self.iteration_size:
            left = None if self.iteration_size is None else self.iteration_size - count
            before = count
            for batch in islice(self.source.batches(), left):
                count += 1
                if count > skip:
                    yield batch, self._count_samples(batch)
            if count == before:
                raise ValueError(
                    f"{self.name} gave no batch: a data set holds at least one. If it is an "
                    "iterator that is used up, give a list or a callable."
                )
            if self.iteration_size is None:
                return

    def _looked_at(
        self, batches: Iterator[tuple[Batch, int]], number: int = 0, stacked: bool = False
    ) -> Iterator[tuple[Batch, int]]:
        """The same, seen by whoever looks before they are handed on, in the thread that asks."""
        for batch, samples in batches:
            if self.look is not None:
                for one in zip(*batch, strict=True) if stacked else [batch]:
                    # Of a stack of scalars there come numbers, which are no arrays.
                    self.look([np.asarray(a) for a in one] if stacked else batch, number, None)
                    number += 1
            yield batch, samples

    def _count_samples(self, batch: Batch) -> int:
        arrays = [array for array in batch if array.ndim > self.axis]
        if not arrays:
            return 1
        # Behind other axes, time for example, samples are counted by what has them all: beside
        # (time, samples, features) there may be labels of (samples, classes).
        whole = max(arrays, key=lambda array: array.ndim) if self.axis else arrays[0]
        samples = int(whole.shape[self.axis])
        if samples == 0:
            raise ValueError(
                f"{self.name} gave a batch of shape {whole.shape}: a batch holds at least one "
                "sample. Leave empty batches out."
            )
        return samples


def _split(
    batches: Iterable[tuple[Batch, int]], batch_size: int, axis: int
) -> Iterator[tuple[Batch, int]]:
    """Make stacks of minibatches out of samples that were taken together."""
    for batch, samples in batches:
        size = min(batch_size, samples)
        yield [_split_array(array, samples // size, axis) for array in batch], size


def _split_array(array: np.ndarray, count: int, axis: int) -> np.ndarray:
    shape = array.shape
    if not shape:
        return np.full(count, array)
    parts = array.reshape(*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(parts, axis, 0))


def _stack(
    batches: Iterator[tuple[Batch, int]], together: int, limit: float
) -> Iterator[tuple[Batch, int]]:
    """Make stacks of minibatches that follow one another and have the same shapes."""
    while chunk := list(islice(batches, int(min(together, max(limit, 1))))):
        limit -= len(chunk)
        for _, alike in groupby(chunk, lambda item: [array.shape for array in item[0]]):
            group = list(alike)
            columns = zip(*(batch for batch, _ in group), strict=True)
            stacks = [np.stack(arrays) for arrays in columns]
            yield stacks or [np.zeros(len(group), dtype="int64")], group[0][1]


def open_source(
    inputs: Any, axis: int, window: int | None = None, ahead: bool = False
) -> ArraySource | BatchSource:
    """Tell files, arrays, callables and iterables apart, and read by windows where asked to."""
    if parquet.is_parquet(inputs):
        if axis:
            raise ValueError(
                f"axis is {axis} for Parquet files: their rows are samples. Leave it out."
            )
        return parquet.ParquetSource(parquet.ParquetFiles(inputs), window, ahead)
    source = _open_source(inputs, axis)
    if window is None:
        return source
    if not isinstance(source, ArraySource) or source.is_scalar:
        raise ValueError(
            f"window is {window} for batches that come ready: windows are for arrays and Parquet "
            "files. Leave it out."
        )
    return WindowedArrays(source, window, ahead)


def _open_source(inputs: Any, axis: int) -> ArraySource | BatchSource:
    if inputs is None:
        return BatchSource(lambda: iter([[]]))
    is_number = isinstance(inputs, Number)
    if hasattr(inputs, "shape") or hasattr(inputs, "to_numpy") or is_number:  # Arrow has no shape
        return ArraySource([as_column(inputs, axis)], None)
    if isinstance(inputs, Mapping) and inputs:
        return ArraySource([as_column(v, axis) for v in inputs.values()], list(inputs))
    if isinstance(inputs, list | tuple) and inputs and not all(map(_is_batch, inputs)):
        return ArraySource([as_column(value, axis) for value in inputs], None)
    if callable(inputs):
        return BatchSource(lambda: _call_forever(inputs), endless=True)
    if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes):
        raise TypeError(
            f"The data are of type {type(inputs).__name__}: a data set is made from arrays, a "
            "callable that returns a batch, or an iterable of batches. Give one of these."
        )
    if isinstance(inputs, Iterator):
        raise TypeError(
            f"The data are an iterator ({type(inputs).__name__}), which is used up after one "
            "epoch: batches are iterated once an epoch. Give a list or a callable."
        )
    if isinstance(inputs, list | tuple | Mapping) and not inputs:
        raise ValueError(
            "The data are empty: a data set holds at least one array or batch. Give one."
        )
    return BatchSource(lambda: iter(inputs))


def _is_batch(item: Any) -> bool:
    """Whether an element of a list is a batch of arrays rather than an array."""
    if not isinstance(item, list | tuple | Mapping):
        return False
    values = item.values() if isinstance(item, Mapping) else item
    # NumPy's scalars have a shape too, but a list of them is an array.
    arrays = [v for v in values if hasattr(v, "shape") and not isinstance(v, np.generic)]
    return len(item) == 0 or len(arrays) > 0


def _call_forever(function: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield function()


def _own_length(inputs: Any) -> int | None:
    if inputs is None:
        return 1
    try:
        return len(inputs)
    except TypeError:
        return CALLABLE_EPOCH if callable(inputs) else None


def check_int(name: str, value: Any, low: int | None = None) -> None:
    """Refuse what is no integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r:.80}: it takes an integer. Give an int.")
    if low is not None and value < low:
        raise ValueError(f"{name} is {value!r:.80}: it is at least {low}. Give a larger one.")
    if value > sys.maxsize:
        raise ValueError(f"{name} is {value!r:.80}: nothing has so many. Give a smaller one.")


def _generator(rng: Any) -> np.random.Generator:
    try:
        if isinstance(rng, bool):
            raise TypeError("a bool")
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng is {rng!r:.80}: it takes a seed or a generator ({error}). Give an int of at "
            "least 0, or np.random.default_rng(...)."
        ) from error


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Begin errors with the name of the data that they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error
