"""The order in which the samples of a data set are visited."""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from downhill_rms.data.generators import generator_state, set_generator_state
from downhill_rms.data.sources import Selection
from downhill_rms.data.windows import Pass, Rows, Window

SHUFFLES = ("samples", "batches", None)
IN_ORDER = 1 << 16  # rows that are read together where nothing is shuffled, about
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

    SIZES: tuple[str, ...] = ("n_samples", "batch_size", "n_batches", "shuffle")
    PLACE: tuple[str, ...] = ("cursor", "position")
    window: int | None = None

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
            if self.cursor == 0:
                self._begin_pass()
            count = 1 if together == 1 else self._count_alike(min(together, limit))
            limit -= count
            selection = self._select(self.cursor, count)
            self.cursor = (self.cursor + count) % self.pass_size
            self.position = (self.position + count) % self.n_batches
            yield selection
            if self.position == 0:
                return

    def in_order(self) -> Iterator[Selection]:
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
        faults = [
            f"{name} is {getattr(self, name)} instead of {state.get(name)}"
            for name in dict.fromkeys((*self.SIZES, "window"))
            if state.get(name) != getattr(self, name)
        ]
        try:
            set_generator_state(copy.deepcopy(self.rng), state["generator"])
        except (KeyError, TypeError, ValueError):
            kind = type(self.rng.bit_generator).__name__
            faults.append(f"the generator of the order is another than {kind}")
        return faults

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        for name in self.PLACE:
            setattr(self, name, int(state[name]))
        self.permutation = state.get("permutation")
        set_generator_state(self.rng, state["generator"])

    def _begin_pass(self) -> None:
        if self.shuffle:
            count = self.n_samples if self.shuffle == "samples" else self.pass_size
            self.permutation = self.rng.permutation(count)

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


class WindowSampler(Sampler):
    """The order in which samples are visited that are not all in memory.

    Parameters
    ----------
    starts : ndarray of int64
        The first sample of each block that is read as one, and behind them the number of samples.
    window : int
        Samples that are in memory together, and permuted; rounded up to whole minibatches.
    batch_size, n_batches, shuffle, rng
        As for `Sampler`; minibatches are not permuted as such.
    """

    SIZES = (*Sampler.SIZES, "window", "blocks")
    PLACE = (*Sampler.PLACE, "seed")
    window: int

    def __init__(
        self,
        starts: np.ndarray,
        window: int,
        batch_size: int,
        n_batches: int | None,
        shuffle: Shuffle,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(int(starts[-1]), batch_size, n_batches, shuffle, rng)
        self.starts = starts
        self.blocks = zlib.crc32(starts.astype("<i8").tobytes())
        self.window = self._whole_minibatches(window)
        self.seed = 0  # of this pass
        self._pass = self._make_pass()
        self._window: Window | None = None

    def in_order(self) -> Iterator[Any]:
        """An epoch in the data's own order, which leaves no trace."""
        size = self._whole_minibatches(min(self.window, IN_ORDER))
        whole, window = Pass(self.starts, size, None), None
        for index in range(self.n_batches):
            rows = self._rows(whole, window, index % self.pass_size, 1)
            window = rows.window
            yield rows

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands, as plain values; it does not grow with the data."""
        return {**super().state_dict(), "order": self._pass.checksum}

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """What differs between this order and the one that a state was taken of."""
        faults = super().check(state)
        if state.get("blocks") != self.blocks:
            faults = [fault for fault in faults if not fault.startswith("blocks is ")]
            faults.append("the blocks that samples are read in, such as row groups, are others")
        if not faults and self._make_pass(state["seed"]).checksum != state["order"]:
            faults.append("NumPy shuffles otherwise than the NumPy of then")
        return faults

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        super().load_state_dict(state)
        self._pass, self._window = self._make_pass(), None

    def _whole_minibatches(self, window: int) -> int:
        """Rows of a window in which each minibatch is as a whole."""
        return min(-(-window // self.batch_size), self.pass_size) * self.batch_size

    def _make_pass(self, seed: int | None = None) -> Pass:
        seed = self.seed if seed is None else seed
        return Pass(self.starts, self.window, seed if self.shuffle else None)

    def _begin_pass(self) -> None:
        if self.shuffle:
            self.seed = int(self.rng.integers(2**62))
            self._pass, self._window = self._make_pass(), None

    def _count_alike(self, most: float) -> int:
        in_window = self.window // self.batch_size
        return super()._count_alike(min(most, in_window - self.cursor % in_window))

    def _select(self, index: int, count: int) -> Any:  # rows stand for an array of indices
        rows = self._rows(self._pass, self._window, index, count)
        self._window = rows.window
        return rows

    def _rows(self, whole: Pass, window: Window | None, index: int, count: int) -> Rows:
        samples = self._slice(index, count)
        number = samples.start // whole.size
        if window is None or window.number != number:
            window = whole.window(number)
        first = number * whole.size
        return Rows(window, samples.start - first, samples.stop - first)


def order_faults(state: Mapping[str, Any]) -> list[str]:
    """What is wrong with the state of an order, whatever the data.

    Parameters
    ----------
    state : mapping of str to plain value or ndarray
        What `Sampler.state_dict` returned.

    Returns
    -------
    list of str
        The faults, each of which begins with the field's name.
    """
    kind = WindowSampler if "window" in state else Sampler
    required = {*kind.SIZES, *kind.PLACE, "generator"}
    optional = {"permutation"}
    if kind is WindowSampler:
        required, optional = required | {"order"}, set()
    faults = [f"{name} is missing" for name in sorted(required - set(state))]
    faults += [f"{name} is unknown" for name in set(state) - required - optional]
    if faults:
        return faults
    named = (*kind.SIZES, *kind.PLACE, "order")
    whole = [name for name in named if name in required and name != "shuffle"]
    faults = [f"{name} is {state[name]!r:.80}" for name in whole if not _is_count(state[name])]
    if not (state["shuffle"] is None or isinstance(state["shuffle"], str)):
        faults.append("shuffle is neither a name nor None")
    elif state["shuffle"] not in SHUFFLES:
        faults.append(f"shuffle is {state['shuffle']!r:.80}")
    if fault := _generator_fault(state["generator"]):
        faults.append(f"generator is none ({fault})")
    return faults or _place_faults(state)


def _place_faults(state: Mapping[str, Any]) -> list[str]:
    n_samples, batch_size, n_batches = (state[name] for name in Sampler.SIZES[:3])
    if min(n_samples, batch_size, n_batches) < 1 or batch_size > n_samples:
        return [f"n_samples is {n_samples}, batch_size {batch_size}, n_batches {n_batches}"]
    pass_size = -(-n_samples // batch_size)
    limits = {"cursor": pass_size, "position": n_batches}
    faults = [f"{n} is {state[n]} of {limits[n]}" for n in limits if state[n] >= limits[n]]
    permutation = state.get("permutation")
    if "window" in state:
        whole, rest = divmod(state["window"], batch_size)
        if rest or not 1 <= whole <= pass_size or state["shuffle"] == "batches":
            faults.append(f"window is {state['window']}")
    elif permutation is None:
        if state["shuffle"] and state["cursor"]:
            faults.append("permutation is missing")
    elif not _is_permutation(permutation, n_samples, pass_size, state["shuffle"]):
        faults.append("permutation is none of the samples or minibatches")
    return faults


def _is_count(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 0 <= value < 2**62


def _is_permutation(value: Any, n_samples: int, pass_size: int, shuffle: Shuffle) -> bool:
    wanted = {"samples": n_samples, "batches": pass_size}.get(shuffle or "")
    if not isinstance(value, np.ndarray) or value.dtype != np.int64 or value.shape != (wanted,):
        return False
    if value.min() < 0 or value.max() >= len(value):
        return False
    seen = np.zeros(len(value), dtype=bool)
    seen[value] = True
    return bool(seen.all())


def _generator_fault(text: Any) -> str:
    """Why a text is no state of a generator; the empty string if it is one, or of unknown kind."""
    try:
        kind = getattr(np.random, json.loads(text)["bit_generator"], None)
        if isinstance(kind, type) and issubclass(kind, np.random.BitGenerator):
            set_generator_state(np.random.Generator(kind()), text)
    except Exception as error:  # numpy raises many kinds for what it cannot take
        return f"{type(error).__name__}: {error!s:.80}"
    return ""
