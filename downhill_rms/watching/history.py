"""What happened: one record for each epoch, in memory and in files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from downhill_rms.rule import check_path
from downhill_rms.watching.monitors import Values
from downhill_rms.watching.notebook import html_table

COUNTS: dict[str, type] = {
    "epoch": int,
    "updates": int,
    "seconds": float,
    "learning_rate": float,
    "validated": bool,
    "best": bool,
}
SHOWN = 12  # epochs in a notebook's table
FIELDS = {**COUNTS, "train": dict, "valid": dict, "valid_is_train": bool}
ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

log = logging.getLogger(__name__)


class HistoryError(ValueError):
    """A file that holds no history, or that cannot be written."""


@dataclass(frozen=True)
class Record:
    """One epoch.

    Attributes
    ----------
    epoch : int
        Epochs of the trainer so far, this one included.
    updates : int
        Updates of the trainer so far.
    seconds : float
        Wall time since the run began, in seconds.
    train, valid : dict of str to float
        Means over the epoch's minibatches, and over the most recent validation.
    validated : bool
        Whether that validation was made at the end of this epoch.
    best : bool
        Whether it was the best of the run so far.
    learning_rate : float
        The learning rate of the epoch's last update.
    valid_is_train : bool
        Whether the training data were validated on, for want of others.

    Examples
    --------
    >>> Record(1, 10, 0.5, {"loss": 2.0}, {"loss": 3.0}).train
    {'loss': 2.0}
    """

    epoch: int
    updates: int
    seconds: float
    train: Values
    valid: Values
    validated: bool = False
    best: bool = False
    learning_rate: float = math.nan
    valid_is_train: bool = False

    def __str__(self) -> str:
        text = f"epoch {self.epoch:4d}  update {self.updates:6d}  train {format_values(self.train)}"
        if self.validated:
            mark = "best " if self.best else "     "
            text += f"\n{mark:>27}valid {format_values(self.valid)}"
        return text

    def to_json(self) -> str:
        """One line of strict JSON: NaN and infinities are strings."""
        try:
            return ENCODER.encode(vars(self))
        except ValueError:  # something is not finite
            strict = json.loads(json.dumps(vars(self)), parse_constant=str)
            return json.dumps(strict, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record that `to_json` wrote.

        Raises
        ------
        ValueError, KeyError, TypeError, OverflowError or RecursionError
            If it is none.
        """
        return cls.from_dict(json.loads(line))

    @classmethod
    def from_dict(cls, record: Any) -> Record:
        """The record whose fields JSON gave, or raise as `from_json` does."""
        values = {name: _checked(FIELDS[name], v) for name, v in _checked(dict, record).items()}
        for part in ("train", "valid"):
            values[part] = {name: _checked(float, v) for name, v in values[part].items()}
        return cls(**values)


def _cells(record: Record, train: Sequence[str], valid: Sequence[str]) -> list[str]:
    """One row of a table of epochs; a validation shows where it was made."""
    counts = [str(record.epoch), str(record.updates), f"{record.seconds:.1f}"]
    trained = [record.train.get(name, math.nan) for name in train]
    judged = [record.valid.get(name, math.nan) if record.validated else math.nan for name in valid]
    values = ["" if math.isnan(value) else f"{value:.4g}" for value in (*trained, *judged)]
    return [*counts, *values, "✓" if record.best else ""]


def format_values(values: Values) -> str:
    """Monitors on one line, four significant digits each, in columns."""
    return " ".join(f"{name}={value:<9.4g}" for name, value in values.items()).rstrip()


@dataclass(repr=False)
class History:
    """The records of a trainer, oldest first.

    A record is an index away (``history[-1]``); ``to_dict`` gives columns.

    Examples
    --------
    >>> history = History()
    >>> history.append(Record(1, 10, 0.5, {"loss": 2.0}, {"loss": 3.0}))
    >>> history.to_dict()["train_loss"]
    array([2.])
    """

    records: list[Record] = field(default_factory=list)

    def __repr__(self) -> str:
        if not self.records:
            return "History(no epoch yet)"
        last = self.records[-1]
        train, valid = format_values(last.train), format_values(last.valid)
        text = f"History({len(self)} epochs, {last.updates} updates; last: train {train}"
        return f"{text}; valid {valid})" if last.valid else f"{text})"

    def _repr_html_(self) -> str:
        """A notebook shows the last epochs as a table, the newest at the bottom."""
        names = [f"train {name}" for name in self._monitors("train")]
        names += [f"valid {name}" for name in self._monitors("valid")]
        rows = [_cells(r, self._monitors("train"), self._monitors("valid")) for r in self[-SHOWN:]]
        left_out = len(self) - len(rows)
        caption = f"{len(self)} epochs" + (f", the last {len(rows)} of them" if left_out else "")
        return html_table(["epoch", "updates", "seconds", *names, "best"], rows, caption)

    def append(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def to_json(self) -> str:
        """All records as one JSON text; floats come back exactly."""
        return json.dumps([vars(record) for record in self.records])

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history that `to_json` wrote, or raise as `Record.from_json` does."""
        return cls([Record.from_dict(record) for record in _checked(list, json.loads(text))])

    def lines(self, start: int = 0) -> Iterator[str]:
        """The records from a number on, as lines of strict JSON."""
        return (record.to_json() for record in self.records[start:])

    @classmethod
    def from_lines(cls, text: str) -> History:
        """The history whose `lines`, each with its end, make a text."""
        return cls([Record.from_json(line) for line in text.split("\n")[:-1]])

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write a file of JSON lines, one record each: whole, or not at all.

        NaN and infinities, for which JSON has no numbers, are the strings ``"NaN"``,
        ``"Infinity"`` and ``"-Infinity"``.

        Raises
        ------
        HistoryError
            If it cannot be written; a file that was there is intact then.
        """
        _write(check_path("path", path), "".join(line + "\n" for line in self.lines()))

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str]) -> History:
        """Read a file of JSON lines.

        A last line without its end was cut by a crash, and is left out with a line in the log.

        Raises
        ------
        HistoryError
            If the file cannot be read, or another line is no record.
        """
        records, cut = _read(check_path("path", path))
        if cut:
            log.warning("%s: the last line was cut by a crash and is left out", path)
        return cls(records)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table, its columns named as in `to_dict`: whole, or not at all.

        The cell of a monitor that a record does not have is empty. Floats come back exactly.

        Raises
        ------
        HistoryError
            If it cannot be written; a file that was there is intact then.
        """
        train, valid = self._monitors("train"), self._monitors("valid")
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow([*COUNTS, *(f"train_{n}" for n in train), *(f"valid_{n}" for n in valid)])
        for record in self.records:
            counts = [getattr(record, name) for name in COUNTS]
            values = [*map(record.train.get, train), *map(record.valid.get, valid)]
            writer.writerow([*counts, *values])
        _write(check_path("path", path), table.getvalue())

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> History:
        """Read what `to_csv` wrote.

        Raises
        ------
        HistoryError
            If the file cannot be read or is no such table.
        """
        try:
            with open(check_path("path", path), encoding="utf-8", newline="") as file:
                names, *rows = csv.reader(file, strict=True)
            if absent := COUNTS.keys() - names:
                raise ValueError(f"no column {', '.join(sorted(absent))}")
            return cls([_from_row(dict(zip(names, row, strict=True))) for row in rows])
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise HistoryError(
                f"{path} is no history in CSV ({type(error).__name__}: {error}): it is a table "
                "that to_csv wrote. Give such a file."
            ) from error

    def to_dict(self) -> dict[str, np.ndarray]:
        """Columns as arrays; monitors are called ``train_loss``, ``valid_loss`` and so on.

        A monitor that a record does not have is NaN there.
        """
        columns: dict[str, np.ndarray] = {
            name: np.array([getattr(record, name) for record in self.records], dtype)
            for name, dtype in COUNTS.items()
        }
        for part in ("train", "valid"):
            rows: list[Values] = [getattr(record, part) for record in self.records]
            for name in self._monitors(part):
                columns[f"{part}_{name}"] = np.array([row.get(name, math.nan) for row in rows])
        return columns

    def _monitors(self, part: str) -> list[str]:
        """Names of all monitors of any record, in the order in which they came."""
        return list(dict.fromkeys(name for record in self for name in getattr(record, part)))

    def to_pandas(self) -> Any:
        """The columns of `to_dict` as a data frame, its index the epoch.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return data_frame(self.to_dict(), "to_dict").set_index("epoch")


def data_frame(content: Any, instead: str) -> Any:
    """A data frame of columns by name, or of a list of rows.

    Parameters
    ----------
    content : dict or list of dict
        What pandas makes a frame of.
    instead : str
        The method that returns the same without pandas.

    Raises
    ------
    ImportError
        If pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "pandas is not installed, and to_pandas makes a data frame by it. Run pip install "
            f"pandas, or use {instead}()."
        ) from error
    return pandas.DataFrame(content)


class HistoryFile:
    """Append each record to a file of JSON lines, as an observer of ``iterate``.

    Every line is written at once, so that a crash can cut the last one at most, which reading
    leaves out. Before a record whose epoch the file has already, as after a resume or a rollback,
    and before the first one, the file is rewritten without a cut line and without the epochs
    that are about to come again.

    Parameters
    ----------
    path : path
        The file; it need not be there yet.

    Raises
    ------
    HistoryError
        If the file is there and is no history.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "history.jsonl")
    >>> with HistoryFile(path) as write:
    ...     write(Record(1, 10, 0.5, {"loss": 2.0}, {"loss": 3.0}))
    >>> History.from_jsonl(path)[0].train
    {'loss': 2.0}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path("path", path)
        self._file: io.FileIO | None = None
        self._epoch = 0
        if self.path.exists():  # whatever is wrong with it shows before anything is trained
            History.from_jsonl(self.path)

    def __enter__(self) -> HistoryFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, record: Record) -> None:
        """Append a record.

        Raises
        ------
        HistoryError
            If it cannot be written. The next record finds the cut line and removes it.
        """
        line = (record.to_json() + "\n").encode()
        try:
            if self._file is None or record.epoch <= self._epoch:
                self._file = self._open_before(record.epoch)
            while line:  # once, unless the disk is full: then the next time tells so
                line = line[self._file.write(line) :]
        except OSError as error:
            self.close()
            raise _unwritten(self.path, error) from error
        self._epoch = record.epoch

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_before(self, epoch: int) -> io.FileIO:
        """Open the file with the epochs before this one, and nothing else, in it."""
        self.close()
        if self.path.exists():
            records, cut = _read(self.path)
            kept = [record for record in records if record.epoch < epoch]
            if cut or len(kept) < len(records):
                History(kept).to_jsonl(self.path)
        return open(self.path, "ab", buffering=0)


def _checked(kind: type, value: Any) -> Any:
    """A value that JSON gave, if it is of the kind that a record holds."""
    if kind is float and isinstance(value, str):
        return NOT_FINITE[value]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _read(path: Path) -> tuple[list[Record], bool]:
    """The records of a file of JSON lines, and whether one more was cut."""
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise HistoryError(
            f"{path} cannot be read ({error.strerror}). Give the path of a history file."
        ) from error
    return [_parse(path, number, line) for number, line in enumerate(lines, 1)], bool(rest)


def _parse(path: Path, number: int, line: bytes) -> Record:
    try:
        return Record.from_json(line.decode())
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        problem = getattr(error, "msg", error)  # json's own message counts lines anew
        raise HistoryError(
            f"{path} line {number} is no record ({type(error).__name__}: {problem}): a history "
            "file holds one a line. Remove the line, or restore the file."
        ) from error


def _from_row(row: Mapping[str, str]) -> Record:
    def monitors(part: str) -> Values:
        columns = (name for name in row if name.startswith(f"{part}_") and row[name])
        return {name.removeprefix(f"{part}_"): float(row[name]) for name in columns}

    flags = {"true": True, "false": False}  # spreadsheets write them in capitals
    return Record(
        int(row["epoch"]),
        int(row["updates"]),
        float(row["seconds"]),
        monitors("train"),
        monitors("valid"),
        flags[row["validated"].lower()],
        flags[row["best"].lower()],
        float(row["learning_rate"]),
    )


def _write(path: Path, text: str) -> None:
    """Put a whole file in the place of another."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> HistoryError:
    return HistoryError(
        f"{path} cannot be written ({error.strerror}). Make room, or give another file for the "
        "history."
    )
