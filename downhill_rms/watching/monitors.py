"""Monitors: named scalar expressions, and their means over a pass through the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from downhill_rms.rule import check_list, shown

Values = dict[str, float]  # monitor name -> mean over a pass, "loss" first


def named_expressions(
    monitors: Mapping[str, Any] | Iterable[tuple[str, Any]],
) -> dict[str, Any]:
    """Bring monitors into one form and check them.

    Parameters
    ----------
    monitors : mapping or iterable of (str, Variable)
        Names and scalar expressions.

    Returns
    -------
    dict of str to Variable
        In the order given.

    Raises
    ------
    TypeError
        If something is not a pair of a name and a scalar expression.
    ValueError
        If a name occurs twice or is ``"loss"``, which every pass reports first.
    """
    given = monitors.items() if isinstance(monitors, Mapping) else monitors
    pairs = check_list("monitors", given, "pairs (name, expression)")
    named: dict[str, Any] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                f"monitors has {shown(pair)}: it takes pairs of a name and an expression. "
                "Write {'error': expression}."
            )
        name, expression = pair
        if name == "loss" or name in named:
            raise ValueError(
                f"monitors has {name!r} again: their names differ, also from 'loss'. Rename it."
            )
        kind: Any = getattr(expression, "type", None)
        ndim = getattr(kind, "ndim", None)
        if ndim != 0 or not hasattr(expression, "owner"):
            raise TypeError(
                f"monitors has {name!r}, which is {shown(expression)} of {ndim} dimensions: a "
                "monitor is a symbolic scalar. Reduce it, for example with .mean()."
            )
        if np.dtype(kind.dtype).kind not in "biuf":
            raise TypeError(
                f"monitors has {name!r} of dtype {kind.dtype}: a monitor is real. Take abs() of "
                "it, or its real part."
            )
        named[name] = expression
    return named


class PassMean:
    """Means over a pass, each minibatch weighted by its number of samples.

    Values are kept as they come and converted together, so that an accelerator is not waited for
    after every minibatch.

    Parameters
    ----------
    names : sequence of str
        The monitors, in the order of each minibatch's values.
    """

    BLOCK = 1024  # minibatches that are kept before they are summed

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.sums = np.zeros(len(names))
        self.samples = 0.0
        self._values: list[Sequence[Any]] = []
        self._weights: list[int] = []

    def add(self, values: Sequence[Any], samples: int) -> None:
        """Take one minibatch's values, means over ``samples`` samples, or vectors of several."""
        self._values.append(values)
        self._weights.append(samples)
        if len(self._values) >= self.BLOCK:
            self._sum()

    def _sum(self) -> None:
        if self._values:
            for row in self._values:
                for value in row:
                    if hasattr(value, "copy_to_host_async"):  # all transfers at once
                        value.copy_to_host_async()
            lengths = [np.size(values[0]) for values in self._values]
            terms = np.empty((1 + sum(lengths), len(self.names)))
            terms[0] = self.sums
            if np.ndim(self._values[0][0]):
                first = 1
                for values, weight, length in zip(
                    self._values, self._weights, lengths, strict=True
                ):
                    block = terms[first : first + length]
                    for column, value in enumerate(values):
                        block[:, column] = value
                    block *= weight
                    first += length
            else:
                terms[1:] = [[float(value) for value in values] for values in self._values]
                terms[1:] *= np.array(self._weights)[:, None]
            # One after the other, so that the sum does not depend on where blocks end.
            self.sums = terms.cumsum(axis=0)[-1]
            self.samples += sum(w * n for w, n in zip(self._weights, lengths, strict=True))
            self._values.clear()
            self._weights.clear()

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        self._sum()
        return {"sums": self.sums.copy(), "samples": float(self.samples)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums that `state_dict` returned."""
        self.sums, self.samples = np.array(state["sums"]), state["samples"]

    def result(self) -> Values:
        """The means so far."""
        self._sum()
        means = self.sums / max(self.samples, 1.0)
        return dict(zip(self.names, means.tolist(), strict=True))
