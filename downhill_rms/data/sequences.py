"""Long series, cut for truncated backpropagation through time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from downhill_rms.data.dataset import Dataset, check_int, told
from downhill_rms.data.scalars import ScalarColumn
from downhill_rms.data.sources import ArrayColumn, as_column

log = logging.getLogger(__name__)


def sequences(
    series: Any,
    length: int,
    batch_size: int,
    *,
    name: str | None = None,
    axis: int = 0,
    prefetch: int = 0,
) -> Dataset:
    """Minibatches of a long series, each of which goes on where the one before ended.

    The series is cut into ``batch_size`` streams of equal length, one for each row of the
    minibatch, and each minibatch holds the next ``length`` steps of every stream. A recurrent
    network whose state is ``carried`` from minibatch to minibatch (see `Trainer`) so reads each
    stream from its beginning to its end, while gradients go back ``length`` steps at most.

    Parameters
    ----------
    series : array_like, str, bytes, or a list, tuple or dict of them
        One series feeds two inputs: its steps, and as their targets the steps that follow each of
        them. Several series, in the inputs' order or by name, are aligned: step t of one belongs
        to step t of the others, and each feeds one input. Steps are along the first axis. Of a
        text each character is a step, as its code point; of ``bytes`` each byte. Memory maps are
        read a minibatch at a time.
    length : int
        Steps in a minibatch. The last one of a pass is shorter where the division leaves a rest.
    batch_size : int
        Streams, which are the rows of every minibatch.
    name : str, optional
        What errors and logs call the data.
    axis : {0, 1}
        The axis that counts steps: 0 for arrays of ``(steps, rows, ...)``, as `pytensor.scan`
        takes them, 1 for ``(rows, steps, ...)``.
    prefetch : int
        Minibatches that a thread reads ahead, as for `Dataset`.

    Returns
    -------
    Dataset
        It is never shuffled. Its samples are steps: means over a pass weight each minibatch by
        its number of steps, so that they are the series' mean of a loss that is a mean over steps
        and rows. Its place is part of a trainer's state, as that of every data set is.

    Raises
    ------
    TypeError
        If a series is no array, no text, or cannot be cut without reading all of it.
    ValueError
        If it has fewer steps than ``batch_size``, or series have different lengths.

    Notes
    -----
    Where ``batch_size`` does not divide the steps, the last ``steps % batch_size`` of them, fewer
    than there are rows, belong to no stream: they are left out, and a log line says so.

    Examples
    --------
    >>> for x, y in sequences(np.arange(9), length=3, batch_size=2):
    ...     print(x.T.tolist(), y.T.tolist())
    [[0, 1, 2], [4, 5, 6]] [[1, 2, 3], [5, 6, 7]]
    [[3], [7]] [[4], [8]]
    """
    for argument, value in (("length", length), ("batch_size", batch_size)):
        check_int(argument, value, low=1)
    check_int("axis", axis, low=0)
    if axis > 1:
        raise ValueError(
            f"axis is {axis}: steps are along axis 0, or along 1 behind the rows. Give one of them."
        )
    name = "series" if name is None else name
    with told(name):
        if isinstance(series, Mapping):
            arrays = {key: _steps(value) for key, value in series.items()}
        elif isinstance(series, list | tuple):
            arrays = dict(enumerate(map(_steps, series)))
        else:
            array = _steps(series)
            arrays = {0: array[:-1], 1: array[1:]}
        _check_lengths(arrays, batch_size)
        streams = {key: _cut(array, batch_size, axis) for key, array in arrays.items()}
    steps = len(next(iter(arrays.values())))
    if rest := steps % batch_size:
        log.info("%s: the last %d of %d steps are left out", name, rest, steps)
    inputs = streams if isinstance(series, Mapping) else list(streams.values())
    return Dataset(inputs, name, length, axis=axis, rng=0, shuffle=None, prefetch=prefetch)


def _steps(series: Any) -> np.ndarray:
    """The array of a series, its steps along the first axis."""
    if isinstance(series, str):
        series = np.frombuffer(series.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    elif isinstance(series, bytes | bytearray):
        series = np.frombuffer(series, dtype="uint8")
    column = as_column(series, 0)
    if isinstance(column, ScalarColumn) and not callable(series):
        raise ValueError("A series is one number: it has steps along its first axis. Give several.")
    if not isinstance(column, ArrayColumn) or column.array.dtype.kind not in "biufc":
        raise TypeError(
            f"A series is of type {type(series).__name__}: it is an array of numbers, a memory map "
            "or a text. Give numpy.asarray(series), or numpy.load(path, mmap_mode='r') of a file."
        )
    return column.array


def _check_lengths(arrays: Mapping[Any, np.ndarray], batch_size: int) -> None:
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) > 1:
        shapes = ", ".join(f"{key!r}: {array.shape}" for key, array in arrays.items())
        raise ValueError(
            f"The series ({shapes}) have different lengths: they are aligned, step by step. Cut "
            "them to one length; a single series, not in a list, is given targets by itself."
        )
    if not lengths:
        raise ValueError("There is no series: a data set holds at least one. Give one.")
    if (steps := lengths.pop()) < batch_size:
        raise ValueError(
            f"The series has {steps} steps (that have a target) for batch_size={batch_size}: every "
            "row has one at least. Give a longer series, or a smaller batch_size."
        )


def _cut(array: np.ndarray, batch_size: int, axis: int) -> np.ndarray:
    """A series as streams beside each other, without a copy."""
    steps = len(array) // batch_size
    rows = array[: steps * batch_size].reshape(batch_size, steps, *array.shape[1:])
    return rows if axis else rows.swapaxes(0, 1)
