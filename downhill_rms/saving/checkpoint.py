"""A directory of checkpoints, which one run at a time holds."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from downhill_rms.saving import journal
from downhill_rms.saving.files import regular
from downhill_rms.saving.journal import Journal, read_checkpoint
from downhill_rms.saving.statefile import CheckpointError, check_path, write_state

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

STEP = re.compile(r"step-(\d{9,})\.npz")
# What `write_state` leaves of these files, and of no one else's, when it is killed.
LEFT = re.compile(r"\.(step-\d+|best|diverged-\d+|probe)\.npz\.[0-9a-f]+\.tmp")

PAUSE = 9  # times what saving took: so that it takes a tenth of the time, unless the user asks

_guard = threading.Lock()
_held: weakref.WeakSet[Checkpoint] = weakref.WeakSet()


def _let_go_in_child() -> None:
    # A forked worker that outlives a killed run would hold the lock on.
    for checkpoint in list(_held):
        checkpoint._opened = checkpoint._in_run = False
        checkpoint._release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class Checkpoint:
    """A directory of checkpoints, held by one run at a time.

    Parameters
    ----------
    directory : path
        Made if it is not there.
    every_updates, every_epochs : int, optional
        Updates and epochs from one checkpoint to the next.
    every_seconds : float, optional
        Seconds from one to the next. Without any of the three there is one after an epoch, after
        every one as long as saving takes a tenth of the time at most.
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
        every_epochs: int | None = None,
        every_seconds: float | None = None,
        keep: int = 3,
    ) -> None:
        counts = {"every_updates": every_updates, "every_epochs": every_epochs, "keep": keep}
        for name, value in counts.items():
            if value is not None or name == "keep":
                _check_count(name, value)
        if every_seconds is not None:
            _check_seconds(every_seconds)
        self.directory = check_path("directory", directory)
        self.every_updates, self.every_epochs = every_updates, every_epochs
        self.every_seconds, self.keep = every_seconds, keep
        self._limits = (every_updates, every_epochs, every_seconds)
        self._lock: IO[str] | None = None
        self._opened = self._in_run = False  # who holds the lock: a program, a run, or both
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
        self._take()
        self._opened = True

    def close(self) -> None:
        """Let go of the directory, unless a run is still at it."""
        self._opened = False
        if not self._in_run:
            self._release()

    def begin(self) -> None:
        """Hold the directory for a run, as `open` does.

        Raises
        ------
        CheckpointError
            If another run has this object or its directory, or it cannot be written.
        """
        with _guard:
            if self._in_run:
                raise CheckpointError(
                    f"This checkpoint of {self.directory} has a run already: it has one at a time. "
                    "Close that run's iterator, or give another directory."
                )
            self._take()
            self._in_run = True

    def end(self) -> None:
        """Let go of the directory at the end of a run, unless the program opened it itself."""
        self._in_run = False
        if not self._opened:
            self._release()

    def _take(self) -> None:
        """Make the directory, lock it, see whether it can be written, and tidy it up."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._hold()
            probe = self.directory / f".probe.npz.{uuid.uuid4().hex}.tmp"
            try:
                probe.write_bytes(b"probe")
            finally:
                probe.unlink(missing_ok=True)
            self._remove_what_is_left()
        except BaseException as error:
            if not (self._opened or self._in_run):
                self._release()
            if not isinstance(error, OSError):
                raise
            raise CheckpointError(
                f"{self.directory} cannot be written ({error}), as a checkpoint directory is. Give "
                "another, or change its permissions."
            ) from error

    def _hold(self) -> None:
        if self._lock is not None:
            return
        lock = open(self.directory / "lock", "a+", opener=regular)  # noqa: SIM115
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        except BlockingIOError:
            holder = _holder(lock)
            lock.close()
            raise CheckpointError(
                f"{self.directory} is held by process {holder}: a checkpoint directory has one run "
                "at a time. Wait for it, or give another directory."
            ) from None
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        _held.add(self)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def start(self, updates: int, epochs: int) -> None:
        """Count from here to the next checkpoint, with a journal that begins anew."""
        self._last = (updates, epochs, time.monotonic())
        self._saving_since: float | None = None
        self._not_before = 0.0
        self._journal: Journal | None = None

    def due(self, updates: int, epochs: int, now: float | None = None) -> bool:
        """Whether it is time for a checkpoint; if so, count from here."""
        now = time.monotonic() if now is None else now
        due = self.due_by_count(updates, epochs) or self.due_by_clock(updates, epochs, now)
        if due:
            self.count_from(updates, epochs, now)
        return due

    def due_by_count(self, updates: int, epochs: int) -> bool:
        """Whether it is time by the number of updates or epochs."""
        done = (updates - self._last[0], epochs - self._last[1])
        pairs = zip(done, self._limits, strict=False)
        return any(limit is not None and n >= limit for n, limit in pairs)

    def due_by_clock(self, updates: int, epochs: int, now: float | None = None) -> bool:
        """Whether it is time by the clock, of which each process has its own."""
        now = time.monotonic() if now is None else now
        if self._limits == (None, None, None):
            return epochs > self._last[1] and now >= self._not_before
        seconds = self._limits[2]
        return seconds is not None and now - self._last[2] >= seconds

    def count_from(self, updates: int, epochs: int, now: float | None = None) -> None:
        """A checkpoint is due now: the next one is counted from here."""
        now = time.monotonic() if now is None else now
        self._last, self._saving_since = (updates, epochs, now), now

    def mark(self, lines: Callable[[int], Iterable[str]]) -> dict[str, Any]:
        """Metadata by which a checkpoint knows all lines of what grows with a run.

        Parameters
        ----------
        lines : callable
            Given a number, returns the lines from that one on. Each is asked for once, and written
            once, to a journal beside the checkpoints, with the next one that is saved.
        """
        if self._journal is None:
            names = os.listdir(self.directory)
            numbers = [int(match[1]) for name in names if (match := journal.NAME.fullmatch(name))]
            self._journal = Journal(self.directory / f"journal-{max(numbers, default=0) + 1}.jsonl")
        return self._journal.add(lines(self._journal.count)).to_metadata()

    def save(
        self, state: Mapping[str, Any], update: int, metadata: Mapping[str, Any] | None = None
    ) -> Path:
        """Write a checkpoint and remove those that are too old."""
        if update < 0:
            raise ValueError(f"update is {update!r}: it counts from 0. Give a count.")
        path = self.directory / f"step-{update:09d}.npz"
        self._write(path, state, metadata)
        try:
            for old in self.steps()[: -self.keep]:
                if old != path:  # those with higher numbers may be the damaged ones passed over
                    old.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"An old checkpoint in {self.directory} could not be removed ({error}): the newest "
                f"{self.keep} are kept. Change its permissions; {path.name} is whole."
            ) from error
        if self._saving_since is not None:  # copying the state and writing the best included
            now = time.monotonic()
            self._not_before = now + PAUSE * (now - self._saving_since)
            self._saving_since = None
        return path

    def save_best(
        self, state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the best so far."""
        path = self.directory / "best.npz"
        self._write(path, state, metadata)
        return path

    def _write(
        self, path: Path, state: Mapping[str, Any], metadata: Mapping[str, Any] | None
    ) -> None:
        if self._journal is not None:  # before what refers to it
            self._journal.flush()
        write_state(path, state, metadata)

    def _remove_what_is_left(self) -> None:
        """Remove what a killed process has not finished, and journals that no checkpoint needs."""
        names = os.listdir(self.directory)
        unwanted = [name for name in names if LEFT.fullmatch(name)]
        # Of a run that goes on, the checkpoints may be yet to come.
        if not self._in_run and any(map(journal.NAME.fullmatch, names)):
            best = [self.directory / "best.npz"] if "best.npz" in names else []
            with contextlib.suppress(CheckpointError):  # who knows what a damaged one needs
                needed = {journal.referred(path) for path in [*self.steps(), *best]}
                unwanted += [n for n in names if journal.NAME.fullmatch(n) and n not in needed]
        for name in unwanted:
            with contextlib.suppress(OSError):
                (self.directory / name).unlink()

    def steps(self) -> list[Path]:
        """All checkpoints, oldest first.

        Raises
        ------
        CheckpointError
            If the directory is there and cannot be read: that is not the same as no checkpoints.
        """
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self.directory} cannot be read ({error}), as a checkpoint directory is. Give "
                "another, or change its permissions."
            ) from error
        numbered = {name: int(match[1]) for name in names if (match := STEP.fullmatch(name))}
        return [self.directory / name for name in sorted(numbered, key=numbered.__getitem__)]

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
                return path, self.read(path)
            except CheckpointError as error:
                warnings.warn(f"A damaged checkpoint is passed over: {error}", stacklevel=2)
        if paths:
            raise CheckpointError(
                f"None of {len(paths)} checkpoints in {self.directory} verifies: a run goes on "
                "from one that does. Restore one, or begin in another directory."
            )
        return None

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """A state, if it is of the update in its name: an older one that was renamed is not.

        Raises
        ------
        CheckpointError
            If it does not verify.
        """
        state = read_checkpoint(path)
        found, match = state.get("update_count"), STEP.fullmatch(path.name)
        if match and isinstance(found, int) and found != int(match[1]):
            raise CheckpointError(
                f"{path} is of update {found}: a checkpoint is named by its update. Rename it."
            )
        return state


def as_checkpoint(value: Any) -> Checkpoint | None:
    """Make a `Checkpoint` of a path; one that is ready, or none, stays as it is.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if value is None or isinstance(value, Checkpoint):
        return value
    return Checkpoint(check_path("checkpoint", value))


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r:.80}: it takes an integer. Give an int.")
    if value < 1:
        raise ValueError(f"{name} is {value!r:.80}: it is at least 1. Give a larger one.")


def _check_seconds(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"every_seconds is {value!r:.80}: it takes a number. Give a float.")
    if not 0 < value < math.inf:
        raise ValueError(
            f"every_seconds is {value!r:.80}: it lies in (0, inf). Give a number in this range."
        )


def _holder(lock: IO[str]) -> str:
    """The process id in a lock that is held; its holder may be about to write it."""
    for _ in range(25):
        lock.seek(0)
        holder = lock.read().strip()
        if _is_alive(holder):
            break
        time.sleep(0.02)
    return holder or "unknown"


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)  # only where there is flock; elsewhere 0 is a real signal
    except PermissionError:
        return True  # another user's
    except (ValueError, OverflowError, OSError):
        return False  # not written yet, or left by a process that was killed
    return True
