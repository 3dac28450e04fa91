"""What a sweep found, as data."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from downhill_rms.rule import check_path
from downhill_rms.sweeping.members import SweptRun, as_json
from downhill_rms.watching.history import data_frame

Row = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes
    ----------
    runs : list of SweptRun
        All of them, in the order in which they were asked for.
    monitor : str
        What they were judged by.
    higher_is_better : bool
        Whether it was to rise.
    state : dict
        That of the best run at its end, as ``Trainer.state_dict`` returns it: with
        ``load_state_dict`` training goes on from there. Empty if no run has a best.
    seconds : float
        What the sweep took.
    """

    runs: list[SweptRun]
    monitor: str
    higher_is_better: bool
    state: dict[str, Any] = field(repr=False)
    seconds: float

    def __repr__(self) -> str:
        best = self.best
        if best is None:
            return f"Sweep({len(self.runs)} runs, none with a finite {self.monitor})"
        found = f"best {self.monitor} {self.value(best):.6g} of {best.name}: {_settings(best)}"
        return f"Sweep({len(self.runs)} runs, {found})"

    @property
    def best(self) -> SweptRun | None:
        """The run with the best validation of all."""
        first = self.sorted()[:1]
        return first[0] if first and first[0].best is not None else None

    def value(self, run: SweptRun) -> float:
        """A run's best value of the monitor; NaN if it has none."""
        return math.nan if run.best is None else run.best.monitors[self.monitor]

    def sorted(self) -> list[SweptRun]:
        """The runs, best first; those without a best last."""
        sign = -1 if self.higher_is_better else 1

        def key(run: SweptRun) -> tuple[bool, float]:
            value = self.value(run)
            return math.isnan(value), sign * value if not math.isnan(value) else 0.0

        return sorted(self.runs, key=key)

    def table(self) -> list[Row]:
        """A record for each run, best first.

        Returns
        -------
        list of dict
            ``run``, the hyperparameters that differ, ``seed``, ``best MONITOR``, ``best epoch``,
            ``stopped``, ``epochs``, ``updates`` and ``seconds``.
        """
        return [self._row(run) for run in self.sorted()]

    def _row(self, run: SweptRun) -> Row:
        last = run.history[-1] if len(run.history) else None
        return {
            "run": run.name,
            **as_json(run.settings),
            **({} if run.seed is None else {"seed": run.seed}),
            f"best {self.monitor}": self.value(run),
            "best epoch": None if run.best is None else run.best.epoch,
            "stopped": None if run.stop_reason is None else str(run.stop_reason),
            "epochs": 0 if last is None else last.epoch,
            "updates": 0 if last is None else last.updates,
            "seconds": math.nan if last is None else last.seconds,
        }

    def summary(self) -> list[Row]:
        """A record for each combination of hyperparameters, over its seeds; best mean first.

        Returns
        -------
        list of dict
            The hyperparameters that differ, ``mean MONITOR`` and ``spread`` (the standard
            deviation over seeds; NaN for one) of the best values, ``seeds``, and ``diverged``,
            how many of them did. A combination of which every run diverged is last.
        """
        groups: dict[str, list[SweptRun]] = {}
        for run in self.runs:
            groups.setdefault(repr(as_json(run.settings)), []).append(run)
        rows = [self._summed(runs) for runs in groups.values()]
        sign, name = (-1 if self.higher_is_better else 1), f"mean {self.monitor}"
        return sorted(rows, key=lambda r: (math.isnan(r[name]), sign * r[name]))

    def _summed(self, runs: Sequence[SweptRun]) -> Row:
        values = [self.value(run) for run in runs]
        known = [value for value in values if not math.isnan(value)]
        return {
            **as_json(runs[0].settings),
            f"mean {self.monitor}": statistics.fmean(known) if known else math.nan,
            "spread": statistics.stdev(known) if len(known) > 1 else math.nan,
            "seeds": len(runs),
            "diverged": sum(run.stop_reason == "diverged" for run in runs),
        }

    def to_pandas(self) -> Any:
        """The table as a frame of pandas, a row for each run.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return data_frame(self.table(), "table")

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as comma-separated values.

        Parameters
        ----------
        path : path
            The file.
        """
        check_path("path", path).write_text(csv_of(self.table()), encoding="utf-8")


def csv_of(rows: Sequence[Row]) -> str:
    """Records as comma-separated values."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _settings(run: SweptRun) -> str:
    parts = [f"{name}={value}" for name, value in as_json(run.settings).items()]
    parts += [] if run.seed is None else [f"seed={run.seed}"]
    return ", ".join(parts) or "one run"
