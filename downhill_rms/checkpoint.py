"""A directory of checkpoints, which one run at a time holds."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from downhill_rms.statefile import CheckpointError, read_state, write_state

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]


class Checkpoint:
    """A directory of checkpoints, held by one run at a time.

    Parameters
    ----------
    directory : path
        Made if it is not there.
    every_updates, every_epochs : int, optional
        Updates and epochs from one checkpoint to the next (1 epoch).
    every_seconds : float, optional
        Seconds from one to the next.
    keep : int
        The newest so many are kept (3); ``best.npz`` is kept besides.

    Examples
    --------
    >>> import tempfile
    >>> checkpoint = Checkpoint(tempfile.mkdtemp(), every_updates=100)
    >>> with checkpoint:
    ...     path = checkpoint.save({"w": np.zeros(3), "count": 100}, update=100)
    >>> path.name
    'step-000000100.npz'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every_updates: int | None = None,
        every_epochs: int | None = 1,
        every_seconds: float | None = None,
        keep: int = 3,
    ) -> None:
        counts = {"every_updates": every_updates, "every_epochs": every_epochs, "keep": keep}
        for name, value in counts.items():
            if value is None and name != "keep":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name} is an integer of at least 1: received {value!r}. Give one."
                )
        if every_seconds is not None and not every_seconds > 0:
            raise ValueError(
                f"every_seconds is a number above 0: received {every_seconds!r}. Give one."
            )
        if every_updates is None and every_epochs is None and every_seconds is None:
            raise ValueError(
                "A checkpoint is due every so many updates, epochs or seconds: received none of "
                "these. Give one."
            )
        self.directory = Path(directory)
        self.every_updates, self.every_epochs = every_updates, every_epochs
        self.every_seconds, self.keep = every_seconds, keep
        self._lock: IO[str] | None = None
        self.start(0, 0)

    def __enter__(self) -> Checkpoint:
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def open(self) -> None:
        """Make the directory if need be, hold it, and find out whether it can be written.

        Raises
        ------
        CheckpointError
            If another process holds it, or it cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._hold()
            probe = self.directory / f".{uuid.uuid4().hex}.tmp"
            probe.write_bytes(b"probe")
            for left in self.directory.glob(".*.tmp"):  # the probe, and what was killed
                left.unlink()
        except OSError as error:
            self.close()
            raise CheckpointError(
                f"A checkpoint directory can be written: {self.directory} cannot ({error}). Give "
                "another, or change its permissions."
            ) from error

    def _hold(self) -> None:
        if self._lock is not None:
            return
        lock = open(self.directory / "lock", "a+")  # noqa: SIM115
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise CheckpointError(
                f"A checkpoint directory has one run at a time: {self.directory} is held by "
                f"process {holder}. Wait for it, or give another directory."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def close(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def start(self, updates: int, epochs: int) -> None:
        """Count from here to the next checkpoint."""
        self._last = (updates, epochs, time.monotonic())

    def due(self, updates: int, epochs: int, now: float | None = None) -> bool:
        """Whether it is time for a checkpoint; if so, count from here."""
        now = time.monotonic() if now is None else now
        done = (updates - self._last[0], epochs - self._last[1], now - self._last[2])
        limits = (self.every_updates, self.every_epochs, self.every_seconds)
        due = any(limit is not None and n >= limit for n, limit in zip(done, limits, strict=True))
        if due:
            self._last = (updates, epochs, now)
        return due

    def save(
        self, state: Mapping[str, Any], update: int, metadata: Mapping[str, Any] | None = None
    ) -> Path:
        """Write a checkpoint and remove those that are too old."""
        path = self.directory / f"step-{update:09d}.npz"
        write_state(path, state, metadata)
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def save_best(
        self, state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the best so far."""
        path = self.directory / "best.npz"
        write_state(path, state, metadata)
        return path

    def steps(self) -> list[Path]:
        """All checkpoints, oldest first."""
        numbered = self.directory.glob("step-[0-9]*.npz")
        return sorted(numbered, key=lambda path: (len(path.name), path.name))

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that verifies, and its state; None if there are none.

        Raises
        ------
        CheckpointError
            If there are some and none verifies.

        Warns
        -----
        UserWarning
            For each damaged one that is passed over.
        """
        paths = self.steps()
        for path in reversed(paths):
            try:
                return path, read_state(path)
            except CheckpointError as error:
                warnings.warn(f"A damaged checkpoint is passed over: {error}", stacklevel=2)
        if paths:
            raise CheckpointError(
                f"A run goes on from a checkpoint that verifies: none of {len(paths)} in "
                f"{self.directory} does. Restore one, or begin in another directory."
            )
        return None
