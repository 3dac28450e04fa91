"""Where arrays live, and who decides: on one device, in one process.

Here everything is at hand and nobody has to agree with anybody. Training on several devices or in
several processes puts another `Placement` in its place, that of the room ``parallel``; the loop
and the steps ask it the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from downhill_rms.data import Batch, BoundDataset, InputSpec
from downhill_rms.saving import Checkpoint
from downhill_rms.training.signals import StopSignals


class Placement:
    """One device of one process.

    Attributes
    ----------
    leads : bool
        Whether this process is the one that writes and shows.
    several : bool
        Whether there are other processes.
    divides : bool
        Whether work is divided among devices.
    """

    leads = True
    divides = False
    several = False

    def mode(self, mode: Any) -> Any:
        """The mode that functions are compiled in, for the one that the user asked for."""
        return mode

    def begin(self, variables: Iterable[Any]) -> None:
        """Give every process the same values of shared variables."""

    def check(self, specs: Sequence[InputSpec]) -> None:
        """Refuse inputs that cannot be fed."""

    def data(self, bound: BoundDataset, train: bool = False) -> BoundDataset:
        """The same minibatches, where the compiled functions take them."""
        return bound

    def batch(self, batch: Batch) -> Batch:
        """One minibatch that every process has as a whole, where the functions take it."""
        return batch

    def host(self, value: Any) -> Any:
        """An array as a whole, in the memory of this process."""
        return value

    def signals(self) -> StopSignals:
        """What takes note of signals during a run."""
        return StopSignals()

    def checkpoint(self, own: Checkpoint | None) -> Checkpoint | None:
        """The directory of a run's checkpoints, as every process has it."""
        return own

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def by_leader(self, act: Callable[[], Any]) -> None:
        """Have one process act; if it fails, all fail."""
        act()

    def fall_out(self, error: BaseException | None = None) -> None:
        """Wait for nobody any more: this process has failed where others may not have.

        Raises
        ------
        RuntimeError
            If the error is that others cannot be reached, which it says in the user's words.
        """
