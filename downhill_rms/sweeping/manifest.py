"""What a killed sweep is to know again, in a file beside its runs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downhill_rms.data import generator_state, set_generator_state
from downhill_rms.rule import check_path
from downhill_rms.saving import Checkpoint
from downhill_rms.sweeping.members import as_json, same_json
from downhill_rms.sweeping.ranges import Range, Settings, as_values, is_tried
from downhill_rms.training import StopReason
from downhill_rms.watching import RunDirectory

FORMAT = 1
# How a run ended that had not come to its end.
UNFINISHED = (
    StopReason.INTERRUPTED,
    StopReason.TERMINATED,
    StopReason.ABANDONED,
    StopReason.ERROR,
)


class SweepDirectoryError(ValueError):
    """A directory of a sweep that cannot be used."""


class Manifest:
    """The file ``sweep.json`` in the directory of a sweep.

    Parameters
    ----------
    directory : path or RunDirectory
        Where the runs are, each in a directory of its own; a `RunDirectory` has what their
        ``config.json`` is to say besides.
    resume : bool
        Whether the sweep there goes on.

    Attributes
    ----------
    path, csv_path : Path
        The directory, and the table in it.
    config : dict
        What each run's ``config.json`` says.
    goes_on : bool
        Whether there is a sweep to go on with.
    halved_at : int
        The epoch at which runs were last halved.

    Raises
    ------
    SweepDirectoryError
        If another sweep would be lost, or the file cannot be read.
    """

    def __init__(self, directory: Any, resume: bool) -> None:
        program = {"problem": Path(sys.argv[0]).name or "Python"}
        if isinstance(directory, RunDirectory):
            self.path, self.config = directory.path, dict(directory.config or program)
        else:
            self.path, self.config = check_path("run_directory", directory), program
        self.file, self.csv_path = self.path / "sweep.json", self.path / "sweep.csv"
        self.content: dict[str, Any] = {}
        self.goes_on = resume and self.file.exists()
        if self.file.exists():
            if not resume:
                raise SweepDirectoryError(
                    f"{self.path} holds a sweep already. A new sweep has a directory of its own: "
                    "give --resume (in Python resume=True) to go on with it, or another directory."
                )
            self._read()
        elif RunDirectory(self.path).has_begun():
            raise SweepDirectoryError(
                f"{self.path} holds one run: a sweep has a directory of its own. Give another."
            )

    def _read(self) -> None:
        try:
            self.content = json.loads(self.file.read_text(encoding="utf-8"))
            if self.content["format"] != FORMAT:
                raise ValueError(f"format {self.content['format']!r}")
            self.content["settings"], self.content["halved"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SweepDirectoryError(
                f"{self.file} cannot be read ({type(error).__name__}: {error}): a sweep's file is "
                "as it wrote it. Restore it, or begin in another directory."
            ) from error

    @property
    def halved_at(self) -> int:
        """The epoch at which runs were last halved."""
        return max((epoch for epoch, _ in self.content["halved"]), default=0)

    def settings(self, given: Mapping[str, Any]) -> list[Settings]:
        """The settings that were drawn at random when the sweep began."""
        tried = {n: as_values(n, v) for n, v in given.items() if is_tried(v)}

        def value_of(name: str, text: Any) -> Any:
            values = tried.get(name)
            if isinstance(values, Range) or values is None:
                return text
            return next((v for v in values if as_json({name: v})[name] == text), text)

        rows = self.content["settings"]
        return [{n: value_of(n, text) for n, text in row.items()} for row in rows]

    def begin(
        self,
        settings: Sequence[Settings],
        seeds: Sequence[int],
        given: Mapping[str, Any],
        ways: Mapping[str, Any],
        order: np.random.Generator | None,
    ) -> None:
        """Write what is asked for, or compare it with what the sweep began with.

        The order of the data is put where it was.
        """
        lists = {
            name: [as_json({name: v})[name] for v in value]
            if isinstance(value, list | tuple)
            else str(value)
            for name, value in given.items()
            if is_tried(value)
        }
        wanted = {"lists": lists, **ways, "settings": [*map(as_json, settings)], "seeds": [*seeds]}
        if self.goes_on:
            found = {name: self.content.get(name) for name in wanted}
            different = [n for n in wanted if not same_json(found[n], wanted[n])]
            if different:
                raise SweepDirectoryError(
                    f"{self.path} holds a sweep of other {', '.join(different)}: a sweep goes on "
                    "with the hyperparameters and seeds that it began with. Give those, or "
                    "another directory."
                )
            if order is not None and self.content.get("order"):
                set_generator_state(order, self.content["order"])
            return
        state = None if order is None else generator_state(order)
        self.content = {"format": FORMAT, **wanted, "order": state, "halved": []}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise SweepDirectoryError(
                f"{self.path} cannot be written ({error.strerror}), and a sweep has a directory. "
                "Give another."
            ) from error

    def note(self, name: str, value: Any) -> None:
        """Write something else down."""
        if self.content.get(name) != value:
            self.content[name] = value
            self._write()

    def halve(self, epoch: int, names: Sequence[str]) -> None:
        """Write down which runs leave at an epoch."""
        self.content["halved"].append([epoch, list(names)])
        self._write()

    def leaves_at(self, name: str) -> float:
        """The epoch at which a run is halved away, as far as that has been decided."""
        return next((e for e, names in self.content["halved"] if name in names), math.inf)

    def ended(self, name: str) -> str | None:
        """Why a run ended, as far as the files know.

        One that was to leave when the sweep was killed may not have saved what it came to.
        """
        reason: str | None = RunDirectory(self.path / name).read_result().get("stop_reason")
        return reason

    def _write(self) -> None:
        temporary = self.file.with_name(f".sweep.json.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.file)


def align(paths: Sequence[Path]) -> None:
    """Put runs that go together back to the latest update of which all have a state.

    A run that ended before has its end for that. What is newer is removed: it comes again, bit for
    bit.
    """
    checkpoints = [Checkpoint(RunDirectory(path).checkpoints_path) for path in paths]
    steps = [{_update_of(path): path for path in c.steps()} for c in checkpoints]
    reasons = [RunDirectory(path).read_result().get("stop_reason") for path in paths]
    ended = [reason is not None and reason not in UNFINISHED for reason in reasons]

    def fits(update: int) -> bool:
        return all(
            update in found or (over and found and max(found) <= update)
            for found, over in zip(steps, ended, strict=True)
        )

    common = max((u for u in set().union(*steps) if fits(u)), default=-1)
    for found, path in zip(steps, paths, strict=True):
        newer = [file for update, file in found.items() if update > common]
        for file in newer:
            file.unlink()
        if newer:  # its end is yet to come
            RunDirectory(path).result_path.unlink(missing_ok=True)


def _update_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])
