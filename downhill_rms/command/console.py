"""What the command line does with logs and errors: where they go, and how they look."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np

from downhill_rms.parallel import LostProcessesError, end_if_others_wait, exit_code
from downhill_rms.rule import parse_schedule
from downhill_rms.sweeping import loguniform, uniform
from downhill_rms.watching import History
from downhill_rms.watching.figures import is_logarithmic

RANGES = {"loguniform": loguniform, "uniform": uniform}
RANGE = re.compile(r"((?:log)?uniform)\(([^()]*)\)")
COMMA = re.compile(r",(?![^()]*\))")  # outside of brackets
PICTURES = (".png", ".svg", ".pdf")
CONSTANTS = {"true": True, "false": False, "none": None}
BLOCKS = "▁▂▃▄▅▆▇█"
TEXT_COLUMNS = 30  # of a curve in blocks, at most
LEAST_COLUMNS = 8  # where the terminal is narrow
COLOURS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class TerminalHandler(logging.Handler):
    """Write records to standard error, coloured, and never into a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        colour = COLOURS.get(record.levelno)
        with _above_the_bar():
            click.secho(self.format(record), fg=colour, err=True)


def _above_the_bar() -> Any:
    if "tqdm" not in sys.modules:
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)


@contextlib.contextmanager
def logging_to_terminal(level: int) -> Iterator[None]:
    """Show the library's log from this level on, and Python's warnings, in the terminal.

    Lines for each epoch are not even made if they are below this level.
    """
    logger, former = logging.getLogger("downhill_rms"), warnings.showwarning
    epochs = logging.getLogger("downhill_rms.epochs")
    before = logger.level, logger.propagate, epochs.level
    terminal = TerminalHandler(level)

    def show(message: Warning | str, *details: Any, **options: Any) -> None:
        logger.warning("%s", message)

    logger.addHandler(terminal)
    logger.setLevel(logging.INFO)
    epochs.setLevel(level)
    logger.propagate = False
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former
        logger.removeHandler(terminal)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        epochs.setLevel(before[2])


@contextlib.contextmanager
def ctrl_c_ends_at_once() -> Iterator[None]:
    """Have Ctrl-C end the process where all that matters is saved.

    A KeyboardInterrupt in a destructor shows a traceback, and nobody can catch it.
    """
    former = signal.getsignal(signal.SIGINT)
    _end_at_ctrl_c()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _end_at_ctrl_c() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody else's business
        signal.signal(signal.SIGINT, _end_process)


def _end_process(number: int, frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"\nstopped by Ctrl-C\n")
    os._exit(128 + number)


class Failed(click.ClickException):
    """An error as one line, with the exit code of the program."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Commands(click.Group):
    """Commands that answer every error with one line, and Ctrl-C with exit code 130."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program, and show no traceback for a Ctrl-C that comes while Python ends."""
        try:
            return super().main(*args, **options)
        except SystemExit as end:
            if end.code not in (0, None):  # an error of this process, for which others wait
                end_if_others_wait(1 if isinstance(end.code, str) else end.code)
            raise
        finally:
            if options.get("standalone_mode", True):
                _end_at_ctrl_c()

    def make_context(
        self, info_name: str | None, args: list[str], *rest: Any, **extra: Any
    ) -> click.Context:
        """Take note of the words that were given."""
        words = list(args)
        ctx = super().make_context(info_name, args, *rest, **extra)
        ctx.meta["words"] = words
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.secho("\nstopped by Ctrl-C", fg="yellow", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise Failed(one_line(error), exit_code(error)) from error


def one_line(error: Exception) -> str:
    """An error as one line; those that no check of ours raised say what they are."""
    text = " ".join(str(error).split("\n\n")[0].split())
    ours = isinstance(error, ValueError | TypeError | ImportError | LostProcessesError)
    if ours and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``name=value`` into a name and a number, a truth value, a schedule or a word.

    Whether the name is a hyperparameter's and the value in its range, its own class tells.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise click.BadParameter(f"{text!r} is no hyperparameter: one is given as name=value.")
    if value.lower() in CONSTANTS:
        return name, CONSTANTS[value.lower()]
    if value.endswith(")"):
        try:
            return name, parse_schedule(value)
        except (TypeError, ValueError) as error:
            raise click.BadParameter(str(error)) from error
    try:
        return name, float(value)
    except ValueError:
        return name, value


def parse_values(text: str) -> tuple[str, Any]:
    """The same where a value may be several, ``name=1e-3,1e-2``, or a range to draw from.

    Commas in brackets belong to a schedule or a range.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if found := RANGE.fullmatch(value):
        try:
            ends = [float(end) for end in found[2].split(",")]
            return name, RANGES[found[1]](*ends)
        except (TypeError, ValueError) as error:
            raise click.BadParameter(
                f"{text}: a range is loguniform(low, high) or uniform(low, high). ({error})"
            ) from error
    parts = COMMA.split(value)
    if len(parts) == 1:
        return parse_assignment(text)
    return name, [parse_assignment(f"{name}={part}")[1] for part in parts]


def parse_picture(text: str) -> Path:
    """Check the name of a picture, before anything is trained or drawn."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise click.BadParameter(f"{text} is no picture: its name ends in {', '.join(PICTURES)}.")
    if not path.parent.is_dir():
        raise click.BadParameter(f"{path.parent} is not there: a picture is put in a directory.")
    return path


def text_curves(histories: Mapping[str, History], monitors: Sequence[str], width: int = 80) -> str:
    """Curves for a terminal: a row of blocks for each, with its first, lowest and last value.

    Parameters
    ----------
    histories : mapping of str to History
        Runs by name.
    monitors : sequence of str
        What is shown. All curves of a monitor share an axis, as they do in a picture.
    width : int
        Columns of the terminal.

    Raises
    ------
    ValueError
        If a history has no such monitor.
    """
    found: dict[str, list[tuple[str, str, np.ndarray]]] = {monitor: [] for monitor in monitors}
    for run, history in histories.items():
        columns = history.to_dict()
        for monitor in monitors:
            names = [n for n in (f"train_{monitor}", f"valid_{monitor}") if n in columns]
            if not names:
                known = [n[6:] for n in columns if n.startswith("train_")]
                raise ValueError(
                    f"{run} has no monitor {monitor!r}: it has {', '.join(known) or 'none'}. Give "
                    "one."
                )
            found[monitor] += [(run, name, columns[name]) for name in names]
    rows: list[dict[str, str]] = []
    axes: list[tuple[np.ndarray, np.ndarray]] = []
    for curves in found.values():  # each monitor has an axis, as in the picture
        everything = np.concatenate([values for *_, values in curves])
        axis = everything[np.isfinite(everything)]
        rows += [{"run": run, "curve": name, **_numbers(values)} for run, name, values in curves]
        axes += [(values, axis) for *_, values in curves]
    room = max(LEAST_COLUMNS, min(TEXT_COLUMNS, width - _width(table(rows)) - 2))
    for row, (values, axis) in zip(rows, axes, strict=True):
        parts = np.array_split(values, min(len(values), room)) if len(values) else []
        row["epochs"] = sparkline([float(part[-1]) for part in parts], axis)
    return table(rows)


def _numbers(values: np.ndarray) -> dict[str, str]:
    finite = values[np.isfinite(values)]
    numbers = {"first": values[:1], "lowest": np.sort(finite)[:1], "last": values[-1:]}
    return {name: " ".join(f"{value:.4g}" for value in some) for name, some in numbers.items()}


def sparkline(values: Sequence[float], axis: np.ndarray) -> str:
    """Values as a row of blocks; a gap where one is not finite.

    Parameters
    ----------
    values : sequence of float
        The values.
    axis : ndarray
        All finite values that share the axis: the lowest is at the bottom, the highest at the
        top, and the axis is logarithmic where a picture's is.
    """
    if not len(axis):
        return " " * len(values)
    change = math.log if is_logarithmic(axis) else float
    low, high = change(axis.min()), change(axis.max())
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BLOCKS[round((change(value) - low) * scale)] if math.isfinite(value) else " "
        for value in values
    )


def fitting_table(rows: list[dict[str, str]], width: int) -> str:
    """A table that is no wider than the terminal; columns that have no room are named below it."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def of_columns(count: int) -> str:
        return table([{n: row[n] for n in names[:count] if n in row} for row in rows])

    counts = range(len(names), 1, -1)
    count = next((n for n in counts if _width(of_columns(n)) <= width), 1)
    if count == len(names):
        return of_columns(count)
    note = f"no room for {', '.join(names[count:])}: --csv has all"
    return "\n".join([of_columns(count), *textwrap.wrap(note, width)])


def _width(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def csv_text(rows: list[dict[str, str]]) -> str:
    """Rows of texts as comma-separated values."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return str(file.getvalue()).rstrip("\n")


def table(rows: list[dict[str, str]]) -> str:
    """Rows of texts as columns under their names."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([row.get(name, "-") for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    shown = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in shown)
