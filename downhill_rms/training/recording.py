"""A run that leaves everything that it is in a directory."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from downhill_rms.rule import Hyperparameters, Schedule
from downhill_rms.saving import Checkpoint
from downhill_rms.training.loop import Loop
from downhill_rms.watching import HistoryFile, RunDirectory, Values

PACKAGES = ("downhill_rms", "pytensor", "numpy", "numba")
SECONDS_BETWEEN_CHECKPOINTS = 10.0


class Recording:
    """The files that a run writes while it goes on.

    Parameters
    ----------
    directory : RunDirectory
        Where, and what was asked for.
    checkpoint : Checkpoint
        The directory's own.

    Attributes
    ----------
    history_file : HistoryFile
        An observer that writes every epoch down.
    """

    def __init__(self, directory: RunDirectory, checkpoint: Checkpoint) -> None:
        self.directory, self.checkpoint = directory, checkpoint
        self.config = {**(directory.config or {}), "versions": versions()}
        self.history_file = HistoryFile(directory.history_path)
        self._begun = False

    def begin(self) -> None:
        """Write down what was asked for: a run that is refused before leaves all as it was."""
        self.directory.begin(self.config)
        self._begun = True

    def follow(
        self, loop: Loop, epochs: Iterator[tuple[Values, Values]]
    ) -> Iterator[tuple[Values, Values]]:
        """The same epochs, with what happened and how it ended written down."""
        self.directory.create()
        # Held before anything in the directory is touched: another process may train there.
        with self.checkpoint, self.history_file:
            try:
                yield from in_log(self.directory.log_path, epochs)
            except GeneratorExit:
                self._finish(loop)
                raise
            except Exception as error:
                if self._begun:
                    with suppress(OSError):  # a full disk may be what ended the run
                        self.directory.write_result(_result(loop, error))
                raise
            self._finish(loop)

    def _finish(self, loop: Loop) -> None:
        self.directory.finish(loop.history, _result(loop))


def checkpoint_in(directory: RunDirectory) -> Checkpoint:
    """The checkpoints of a run directory."""
    return Checkpoint(directory.checkpoints_path, every_seconds=SECONDS_BETWEEN_CHECKPOINTS)


def in_json(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Hyperparameters as ``config.json`` keeps them."""
    values = dict(hyperparameters)
    learning_rate = values["learning_rate"]
    if isinstance(learning_rate, Schedule):
        values["learning_rate"] = repr(learning_rate)
    elif not isinstance(learning_rate, float):
        values["learning_rate"] = None  # an expression, which the program itself holds
    return values


def versions() -> dict[str, str]:
    """Those of Python and of what numbers depend on."""
    packages = {name: import_module(name).__version__ for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def _result(loop: Loop, error: Exception | None = None) -> dict[str, Any]:
    """How a run ended, as ``result.json`` keeps it."""
    result = {"stop_reason": loop.stop_reason, "updates": loop.steps.update_count}
    return result if error is None else {**result, "error": f"{type(error).__name__}: {error}"}


def in_log(path: Path, epochs: Iterator[tuple[Values, Values]]) -> Iterator[tuple[Values, Values]]:
    """The same epochs, with what the library logs in the run's own time appended to a file.

    Between two epochs nothing is: others may take their turns.
    """
    try:
        while True:
            with logging_to_file(path):
                values = next(epochs, None)
            if values is None:
                return
            yield values
    finally:
        with logging_to_file(path):
            epochs.close()  # type: ignore[attr-defined]


@contextmanager
def logging_to_file(path: Path) -> Iterator[None]:
    """Append the library's log to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("downhill_rms")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
