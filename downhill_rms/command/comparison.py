"""Several runs beside each other: which was the best, and in what they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from downhill_rms.watching.rundirectory import RunDirectory, RunDirectoryError, best_record, number

# Columns of `compare` in the order in which a narrow terminal leaves them out, the first last.
IMPORTANT = ("run", "best valid loss", "best epoch")
LESS_IMPORTANT = ("stopped", "epochs", "seconds", "updates", "time per update")


def only_runs(paths: Sequence[str]) -> tuple[list[RunDirectory], list[str]]:
    """The run directories among some paths, and a line for each that is none.

    Raises
    ------
    RunDirectoryError
        If none is, or one that is cannot be read.
    """
    runs, skipped, error = [], [], None
    for path in paths:
        directory = RunDirectory(path)
        try:
            directory.read_config()
        except RunDirectoryError as problem:
            if directory.config_path.exists():
                raise
            error = error or problem
            skipped.append(f"skipped {path}: no run directory")
        else:
            runs.append(directory)
    if error is not None and not runs:
        raise error
    return runs, skipped


def compare(
    directories: Sequence[RunDirectory], monitor: str | None = None, highest_first: bool = False
) -> list[dict[str, str]]:
    """Results of several runs, the best first, and in what the runs differ.

    Parameters
    ----------
    directories : sequence of RunDirectory
        The runs.
    monitor : str, optional
        The monitor, at each run's best validation, that orders them; by default the one that
        judged the first of them.
    highest_first : bool
        Whether a higher value is the better one. Where it was while training, it is here.

    Returns
    -------
    list of dict of str to str
        A row for each run, the more important columns first. A run without that value is last.

    Raises
    ------
    ValueError
        If no run has this monitor.
    """
    judge, higher = directories[0].judge()
    monitor = judge if monitor is None else monitor
    values = [_at_best(directory) for directory in directories]
    names = dict.fromkeys(name for row in values for name in row)
    if monitor not in names and any(values):
        raise ValueError(
            f"No run has a monitor {monitor!r}, only {', '.join(names)}. Sort by one of these."
        )
    sign = -1 if highest_first or (monitor == judge and higher) else 1
    keys = [sign * row.get(monitor, math.nan) for row in values]
    order = sorted(range(len(keys)), key=lambda i: (math.isnan(keys[i]), keys[i]))
    rows = _rows(directories, values, [name for name in names if name != "loss"])
    return [rows[index] for index in order]


def differing_number(directories: Sequence[RunDirectory]) -> tuple[str, list[float]] | None:
    """The one setting in which runs differ, with its values, if it is a number."""
    different = _different([directory.settings() for directory in directories])
    if len(different) != 1:
        return None
    values = [directory.settings().get(different[0], "") for directory in directories]
    try:
        return different[0], [float(value) for value in values]
    except ValueError:
        return None


def _rows(
    directories: Sequence[RunDirectory],
    values: Sequence[dict[str, float]],
    monitors: Sequence[str],
) -> list[dict[str, str]]:
    settings = [directory.settings() for directory in directories]
    different = _different(settings)
    rows = []
    for directory, given, at_best in zip(directories, settings, values, strict=True):
        results = directory.results()
        if "best train loss" in results:  # it has the column of the others, and says so
            results["best valid loss"] = f"{results['best train loss']} (train)"
        row = {name: results[name] for name in IMPORTANT}
        row |= {name: given.get(name, "-") for name in different}
        row |= {f"valid {name}": number(at_best.get(name, math.nan)) for name in monitors}
        rows.append(row | {name: results[name] for name in LESS_IMPORTANT})
    return rows


def _different(settings: Sequence[dict[str, str]]) -> list[str]:
    names = dict.fromkeys(name for values in settings for name in values)
    return [n for n in names if len({values.get(n, "-") for values in settings}) > 1]


def _at_best(directory: RunDirectory) -> dict[str, float]:
    best = best_record(directory.read_history())
    return {} if best is None else dict(best.valid)
