"""A run directory: everything that a run is, in files."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downhill_rms.watching.history import History, Record

FORMAT = 1  # of config.json


class RunDirectoryError(ValueError):
    """A run directory that cannot be used."""


# What `results` calls the best loss, and the headline.
JUDGES = {
    "best valid loss": "best validation loss",
    "best train loss": "no validation data; best loss of the training data",
}


class RunDirectory:
    """The files of one run.

    Parameters
    ----------
    path : path
        The directory; it need not be there yet.
    config : mapping, optional
        What was asked of the run, if it is known here better than by the trainer.

    Attributes
    ----------
    config_path, history_path, result_path, log_path, curves_path, checkpoints_path : Path
        ``config.json``, ``history.jsonl``, ``result.json``, ``log.txt``, ``curves.png`` and the
        directory ``checkpoints``.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.config = Path(path), config
        self.config_path = self.path / "config.json"
        self.history_path = self.path / "history.jsonl"
        self.result_path = self.path / "result.json"
        self.log_path = self.path / "log.txt"
        self.curves_path = self.path / "curves.png"
        self.checkpoints_path = self.path / "checkpoints"

    def has_begun(self) -> bool:
        """Whether it holds a run that would be lost: an epoch, or a checkpoint."""
        done = self.history_path, *self.checkpoints_path.glob("*.npz")
        return any(path.exists() and path.stat().st_size for path in done)

    def refuse_if_begun(self) -> None:
        """Raise a `RunDirectoryError` where a new run would destroy another."""
        if self.has_begun():
            raise RunDirectoryError(
                f"{self.path} holds one run already. A new run has a directory of its own: give "
                "--resume (in Python resume=True) to go on with it, or another directory."
            )

    def create(self) -> None:
        """Make the directory if it is not there, or raise a `RunDirectoryError`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path} cannot be made ({error.strerror}), and a run has a directory. Give "
                "another by --out."
            ) from error

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write what was asked for; how a run that goes on had ended holds no longer."""
        self.result_path.unlink(missing_ok=True)
        _write_json(self.config_path, {"format": FORMAT, **config})

    def finish(self, history: History, result: Mapping[str, Any]) -> None:
        """Write all that happened, and how the run ended."""
        history.to_jsonl(self.history_path)
        self.write_result(result)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write how the run ended: ``stop_reason``, ``updates``, and ``error`` if one ended it."""
        _write_json(self.result_path, result)

    def read_config(self) -> dict[str, Any]:
        """What was asked for.

        Raises
        ------
        RunDirectoryError
            If this is no run directory, or one of a later version.
        """
        if not self.config_path.exists():
            raise RunDirectoryError(
                f"{self.path} has no config.json, as a run directory has. Give a directory that "
                "`downhill-rms train` made."
            )
        config = _read_json(self.config_path)
        if config.get("format") != FORMAT:
            raise RunDirectoryError(
                f"{self.path} has format {config.get('format')!r}: a run directory has {FORMAT}. "
                "Use the version of downhill_rms that made it."
            )
        return config

    def read_history(self) -> History:
        """What happened, epoch by epoch; nothing before the first epoch is over."""
        self.read_config()
        return History.from_jsonl(self.history_path) if self.history_path.exists() else History()

    def read_result(self) -> dict[str, Any]:
        """How the run ended; an empty dict for one that goes on, or was killed."""
        return _read_json(self.result_path) if self.result_path.exists() else {}

    def judge(self) -> tuple[str, bool]:
        """The monitor that judged the run, and whether higher was better."""
        options = self.read_config().get("options", {})
        return options.get("monitor", "loss"), options.get("higher_is_better", False)

    def results(self) -> dict[str, str]:
        """How the run went, as texts by name."""
        history = self.read_history()
        best = best_record(history)
        last = history[-1] if len(history) else None
        result = self.read_result()
        # A run may end in the middle of an epoch, of which the history knows nothing.
        updates = result.get("updates", 0 if last is None else last.updates)
        return {
            "run": str(self.path),
            f"best {_judged_on(last)} loss": number(
                math.nan if best is None else best.valid["loss"]
            ),
            "best epoch": "-" if best is None else str(best.epoch),
            "stopped": result.get("stop_reason", "not yet, or killed"),
            **({"error": result["error"]} if "error" in result else {}),
            "epochs": "0" if last is None else str(last.epoch),
            "updates": str(updates),
            "seconds": "-" if last is None else f"{last.seconds:.1f}",
            "time per update": _duration(seconds_per_update(history)),
        }

    def settings(self) -> dict[str, str]:
        """What was asked for, as texts by name; what was not given is left out."""
        config = self.read_config()
        names = ("problem", "seed", "train", "valid", "mode")
        values = {name: config.get(name) for name in names}
        values |= config.get("options", {}) | config["hyperparameters"]
        return {name: str(value) for name, value in values.items() if value is not None}

    def headline(self) -> str:
        """How the run went, in three lines."""
        text = self.results()
        judge = next(name for name in text if name in JUDGES)
        return (
            f"ended ({text['stopped']}) after {text['epochs']} epochs, {text['updates']} updates, "
            f"{text['seconds']} s\n"
            f"{JUDGES[judge]} {text[judge]} at epoch {text['best epoch']}\n"
            f"run directory {self.path}"
        )


def _judged_on(record: Record | None) -> str:
    return "train" if record is not None and record.valid_is_train else "valid"


def best_record(history: History) -> Record | None:
    """The best of the last run in a history, if it had a validation that counts."""
    return next((record for record in reversed(history.records) if record.best), None)


def seconds_per_update(history: History) -> float:
    """Median over epochs of the time from one to the next, validation included; NaN for one.

    The first epoch of a run, which compiles, has none before it and does not count.
    """
    times = [
        (after.seconds - before.seconds) / (after.updates - before.updates)
        for before, after in itertools.pairwise(history)
        if after.seconds > before.seconds and after.updates > before.updates
    ]
    return statistics.median(times) if times else math.nan


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return "-"


def number(value: float) -> str:
    """A value for people; NaN is none."""
    return "-" if math.isnan(value) else f"{value:.6g}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} cannot be read ({error}): a run's files are as it wrote them. Restore it, or "
            "train again in another directory."
        ) from error
    if not isinstance(content, dict):
        raise RunDirectoryError(
            f"{path} holds no JSON object: a run's files are as it wrote them. Restore it, or "
            "train again in another directory."
        )
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
