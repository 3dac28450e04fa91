"""What processes tell each other while they train, so that all do the same at the same update.

A signal comes to one process, and time passes differently in each. So every call of a compiled
function takes an array of flags along, one row for each device, and returns their sum: the message
travels with the gradients, and every process sees it after the same call.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from downhill_rms.saving import Checkpoint, CheckpointError
from downhill_rms.training.signals import SIGNALS, StopSignals

if TYPE_CHECKING:
    from downhill_rms.parallel.placement import MeshPlacement

LAG = 4  # calls after which flags are looked at: to look at once is to wait for the device
SAVE = len(SIGNALS)  # the flag behind those of the signals: a checkpoint is due by the clock


class Flags:
    """Flags that any process raises and all see after the same call.

    Parameters
    ----------
    placement : MeshPlacement
        Where the processes' devices are.
    """

    def __init__(self, placement: MeshPlacement) -> None:
        self._placement = placement
        self._arrays: dict[bytes, Any] = {}
        self.clear()

    def clear(self) -> None:
        """Forget what was raised."""
        self._raised = np.zeros(SAVE + 1, "float32")
        self._seen = np.zeros(SAVE + 1, "float32")
        self._coming: deque[Any] = deque()
        self._late = 0  # calls whose flag SAVE is of before the last checkpoint

    def lift(self, flag: int) -> None:
        """Tell all processes, with the next call."""
        self._raised[flag] = 1

    def is_up(self, flag: int) -> bool:
        """Whether any process has told, some calls ago."""
        return bool(self._seen[flag])

    def take_down_save(self) -> None:
        """A checkpoint is being made: whatever asked for it is answered."""
        self._raised[SAVE] = self._seen[SAVE] = 0
        self._late = len(self._coming)

    def outgoing(self) -> Any:
        """The flags of this process, as its rows of an array of all devices; made once for each."""
        key = self._raised.tobytes()
        if key not in self._arrays:
            place = self._placement
            rows = place.rows(place.size)
            mine = np.tile(self._raised, (rows.stop - rows.start, 1))
            (self._arrays[key],) = place.place([mine], place.size, 0)
        return self._arrays[key]

    def incoming(self, sums: Any) -> None:
        """Take what a call has returned, and look at what an earlier one has."""
        self._coming.append(sums)
        if len(self._coming) > LAG:
            self._seen = np.array(self._coming.popleft())
            if self._late:
                self._late -= 1
                self._seen[SAVE] = 0


class AgreedSignals(StopSignals):
    """A signal that comes to one process stops all of them, at the same update.

    Parameters
    ----------
    flags : Flags
        How they agree.
    """

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        flags.clear()
        super().__init__()

    @property
    def received(self) -> int | None:
        """The signal that all processes know of."""
        return next((n for i, n in enumerate(SIGNALS) if self._flags.is_up(i)), None)

    @received.setter
    def received(self, number: int | None) -> None:
        if number is not None:
            self._flags.lift(SIGNALS.index(number))


class AgreedCheckpoint(Checkpoint):
    """A directory of checkpoints that the leader writes and every process reads.

    Parameters
    ----------
    own : Checkpoint
        The directory; in the leader it is held, and in the others only read.
    placement : MeshPlacement
        How they agree.
    """

    def __init__(self, own: Checkpoint, placement: MeshPlacement) -> None:
        self._own, self._placement = own, placement
        self.directory = own.directory

    def begin(self) -> None:
        """Hold the directory for a run."""
        self._placement.by_leader(self._own.begin)

    def end(self) -> None:
        """Let go of the directory."""
        if self._placement.leads:
            self._own.end()

    def start(self, updates: int, epochs: int) -> None:
        """Count from here to the next checkpoint."""
        self._own.start(updates, epochs)

    def due(self, updates: int, epochs: int, now: float | None = None) -> bool:
        """Whether it is time for a checkpoint: by the counts, or by the leader's clock."""
        flags, own = self._placement.flags, self._own
        if self._placement.leads and own.due_by_clock(updates, epochs, now):
            flags.lift(SAVE)
        due = own.due_by_count(updates, epochs) or flags.is_up(SAVE)
        if due:
            flags.take_down_save()
            own.count_from(updates, epochs, now)
        return due

    def mark(self, lines: Callable[[int], Iterable[str]]) -> dict[str, Any]:
        """Metadata by which a checkpoint knows the lines of a history."""
        return self._own.mark(lines) if self._placement.leads else {}

    def save(
        self, state: Mapping[str, Any], update: int, metadata: Mapping[str, Any] | None = None
    ) -> Path:
        """Have the leader write a checkpoint."""
        self._placement.by_leader(lambda: self._own.save(state, update, metadata))
        return self.directory / f"step-{update:09d}.npz"

    def save_best(
        self, state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> Path:
        """Have the leader write the best so far."""
        self._placement.by_leader(lambda: self._own.save_best(state, metadata))
        return self.directory / "best.npz"

    def steps(self) -> list[Path]:
        """All checkpoints that the leader sees, oldest first."""
        names = [path.name for path in self._own.steps()] if self._placement.leads else []
        return [
            self.directory / name
            for name in json.loads(self._placement.from_leader(json.dumps(names)))
        ]

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that verifies, the same in every process."""
        found = self._own.latest() if self._placement.leads else None
        name = self._placement.from_leader("" if found is None else found[0].name)
        if not name or self._placement.leads:
            return found
        path = self.directory / name
        if not path.exists():
            raise CheckpointError(
                f"{path} is not there for process {jax.process_index()}: every process reads the "
                "checkpoint that the leading one has written. Give a directory that all of them "
                "see."
            )
        return path, self._own.read(path)
