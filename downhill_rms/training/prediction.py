"""Values of symbolic outputs for every sample of a data set, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from downhill_rms.data import Batch


class Rows:
    """The values of one output, sample by sample.

    Parameters
    ----------
    name : str
        What errors call the output.
    n_samples : int or None
        Samples that will come. The array is made once where this is known; otherwise what came
        is joined at the end, which takes twice the memory for that moment.
    axis : int
        The axis that counts samples.
    """

    def __init__(self, name: str, n_samples: int | None, axis: int) -> None:
        self.name, self.n_samples, self.axis = name, n_samples, axis
        self._array: np.ndarray | None = None
        self._parts: list[np.ndarray] = []
        self._filled = 0

    def add(self, values: Any, samples: int) -> None:
        """Take the values of one minibatch.

        Raises
        ------
        ValueError
            If they do not have one entry for each sample.
        """
        values = np.asarray(values)
        if values.ndim <= self.axis or values.shape[self.axis] != samples:
            raise ValueError(
                f"{self.name} has shape {values.shape} for {samples} samples. An output to predict "
                f"has one entry for each sample along axis {self.axis}. Leave out the reduction, "
                "or make it a monitor and call evaluate, which gives its mean."
            )
        if self.n_samples is None:
            self._parts.append(values.copy())  # a compiled function may return its own buffer
            return
        if self._array is None:
            shape = list(values.shape)
            shape[self.axis] = self.n_samples
            self._array = np.empty(shape, values.dtype)
        place = (slice(None),) * self.axis + (slice(self._filled, self._filled + samples),)
        self._array[place] = values
        self._filled += samples

    def result(self) -> np.ndarray:
        """All values that came."""
        if self._array is not None:
            return self._array
        return np.concatenate(self._parts, axis=self.axis)


def predict(
    function: Callable[..., Sequence[Any]],
    batches: Iterable[tuple[Batch, int]],
    rows: Sequence[Rows],
) -> list[np.ndarray]:
    """Call a function on every minibatch, and join what it returns.

    Parameters
    ----------
    function : callable
        Of a minibatch.
    batches : iterable of (list of ndarray, int)
        Minibatches in order, each with its number of samples.
    rows : sequence of Rows
        Where each of its outputs goes.

    Returns
    -------
    list of ndarray
        One array for each output.
    """
    for batch, samples in batches:
        for row, values in zip(rows, function(*batch), strict=True):
            row.add(values, samples)
    return [row.result() for row in rows]


def named_outputs(outputs: Any) -> dict[Any, Any]:
    """Outputs by name or by place: of one variable, a sequence of them, or a mapping.

    Raises
    ------
    TypeError
        If there is none, or one is no symbolic variable.
    """
    if isinstance(outputs, Mapping):
        named = dict(outputs)
    else:
        several = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        named = dict(enumerate(several))
    if not named:
        raise TypeError("outputs is empty. There is something to predict: give an expression.")
    for key, output in named.items():
        if not hasattr(output, "owner") or not hasattr(output, "type"):
            raise TypeError(
                f"outputs has {output!r:.80} at {key!r}. What is predicted is a symbolic "
                "expression of the inputs and the parameters: give that, as in the loss."
            )
    return named
