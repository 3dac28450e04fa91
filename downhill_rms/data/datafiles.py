"""Data files: arrays and tables on disk, read for the inputs of a loss."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from downhill_rms.data.frames import NUMBERS
from downhill_rms.data.sources import ArrayColumn, InputSpec

# Columns that pandas writes for a frame's index: without a name in text, with this one in Parquet.
INDEX = re.compile(r"|__index_level_\d+__")
SHOWN = 12  # names in a message, the most


class DataFileError(ValueError):
    """A data file that cannot be read, or does not fit the inputs."""


def read_data(path: str | PathLike[str], specs: Sequence[InputSpec]) -> list[Any]:
    """Read a data file for the inputs of a loss.

    Parameters
    ----------
    path : path
        The file, of a kind that its name's ending says:

        - ``.npz``: arrays under the inputs' names, others being left alone; or without names, as
          many as there are inputs and in their order;
        - ``.npy``: the array of the only input, memory-mapped;
        - ``.csv``, ``.tsv``: a table in UTF-8 whose first line names the columns;
        - ``.parquet``: a table, read by pyarrow or polars.

        In a table a vector ``y`` takes the column ``y``, and a matrix ``x`` the columns ``x0``,
        ``x1`` and so on (``x_0``, ``x.0`` and ``x[0]`` will do too) in the order of their
        numbers. If one matrix finds none, it takes all columns that no other input takes, in
        the file's order. A column without a name, such as a frame's index, feeds no input.
    specs : sequence of InputSpec
        The inputs.

    Returns
    -------
    list of ndarray
        One array for each input, as `Dataset` takes them, its samples along the first axis.

    Raises
    ------
    DataFileError
        If the file cannot be read, or does not hold numbers that the inputs take without loss.
        Decimal fractions are rounded to a floating-point input's precision.
    ImportError
        If neither pyarrow nor polars is installed for a Parquet file.
    """
    path = Path(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataFileError(
            f"{path} is of no kind that is read: a data file's name ends in {', '.join(READERS)}. "
            "Write one of these."
        )
    if not path.is_file():
        found = "a directory" if path.is_dir() else "not there"
        raise DataFileError(f"{path} is {found}. Give the path of a data file.")
    if not specs:
        raise DataFileError(
            f"{path} is given for a loss without inputs: a data file feeds inputs. Leave it out."
        )
    try:
        arrays = read(path, specs)
    except (DataFileError, ImportError):
        raise
    except Exception as error:  # each reader has exceptions of its own for a broken file
        raise unreadable(path, path.suffix, error) from error
    _check_lengths(path, arrays, specs)
    return arrays


def unreadable(path: Any, kind: str, error: Exception) -> DataFileError:
    """What is raised for a file that its reader does not take."""
    text = str(error).strip().partition("\n")[0]
    return DataFileError(
        f"{path} cannot be read as {kind} ({type(error).__name__}: {text}). Write it again."
    )


def _check_lengths(path: Path, arrays: Sequence[Any], specs: Sequence[InputSpec]) -> None:
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1 or not lengths[0]:
        received = ", ".join(f"{n} for {spec}" for n, spec in zip(lengths, specs, strict=True))
        raise DataFileError(
            f"{path} has {received}: a data file holds as many samples for each input, and one "
            "at least. Write a row for each sample."
        )


def _read_npz(path: Path, specs: Sequence[InputSpec]) -> list[Any]:
    # Not np.load, which takes whatever is no archive for a pickle.
    with open(path, "rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
        names = [spec.name for spec in specs]
        unnamed = [f"arr_{i}" for i in range(len(specs))]  # as np.savez(path, X, Y) calls them
        if set(file) == set(unnamed):
            names = list(unnamed)
        for name, spec in zip(names, specs, strict=True):
            if name not in file:
                raise DataFileError(
                    f"{path} has no array for {spec}, only {listed(list(file))}: an .npz file has "
                    "one for each input. Name the arrays after the inputs."
                )
        return [
            _conform(np.asarray(file[str(name)]), spec, f"{path}, array {name!r}")
            for name, spec in zip(names, specs, strict=True)
        ]


def _read_npy(path: Path, specs: Sequence[InputSpec]) -> list[Any]:
    if len(specs) != 1:
        raise DataFileError(
            f"{path} cannot feed {len(specs)} inputs ({', '.join(map(str, specs))}): an .npy file "
            "holds the array of one. Write an .npz file, by np.savez."
        )
    array = np.lib.format.open_memmap(path, mode="r")
    return [_conform(array, specs[0], str(path))]


def _conform(array: Any, spec: InputSpec, what: str) -> Any:
    """Check and cast an array as `Dataset` does, but with the name of the file."""
    try:
        return ArrayColumn(array, 0, spec).array
    except (TypeError, ValueError) as error:
        raise DataFileError(f"{what}: {error}") from error


@dataclass(frozen=True)
class Table:
    """Named columns with a row for each sample.

    Attributes
    ----------
    path : Path
        The file.
    names : sequence of str
        Names of the columns.
    columns : sequence
        One for each name: a tuple of texts, or a column of pyarrow or polars.
    place : callable
        Where a person finds the row of an index: ``"line 3"``.
    """

    path: Path
    names: Sequence[str]
    columns: Sequence[Any]
    place: Callable[[int], str]

    def __post_init__(self) -> None:
        named = [name for name in self.names if not INDEX.fullmatch(name)]
        doubled = sorted({name for name in named if named.count(name) > 1})
        if doubled:
            raise DataFileError(
                f"{self.path} has several columns called {listed(doubled)}: those of a table have "
                "different names. Rename or remove them."
            )

    def arrays(self, specs: Sequence[InputSpec]) -> list[Any]:
        """One array for each input."""
        arrays = []
        for spec, names in zip(specs, self.assign(specs), strict=True):
            columns = [self.numbers(name, spec) for name in names]
            arrays.append(columns[0] if spec.ndim == 1 else np.stack(columns, axis=1))
        return arrays

    def assign(self, specs: Sequence[InputSpec]) -> list[list[str]]:
        """Names of the columns that each input takes."""
        _check_inputs(self.path, specs)
        free = [name for name in self.names if not INDEX.fullmatch(name)]
        taken: dict[int, list[str]] = {}
        # A vector x1 comes before a matrix x, and so does a matrix x1 before it.
        order = [(spec.ndim, -len(spec.name or ""), i) for i, spec in enumerate(specs)]
        for *_, i in sorted(order):
            taken[i] = _own_columns(self.path, free, specs[i])
            free = [name for name in free if name not in taken[i]]
        vectors = [i for i in taken if not taken[i] and specs[i].ndim == 1]
        matrices = [i for i in taken if not taken[i] and specs[i].ndim == 2]
        if vectors or len(matrices) > 1 or (matrices and not free):
            raise DataFileError(
                f"{self.path} has no columns for "
                f"{', '.join(str(specs[i]) for i in vectors or matrices)}, only "
                f"{listed(self.names)}: a table has some for each input. Name the column of a "
                "vector y y, and those of a matrix x x0, x1 and so on."
            )
        taken.update((i, free) for i in matrices)
        return [taken[i] for i in range(len(specs))]

    def numbers(self, name: str, spec: InputSpec) -> np.ndarray:
        """A column in the dtype of its input.

        Raises
        ------
        DataFileError
            If a cell is empty, no number, or a number that this dtype cannot hold.
        """
        column, dtype = self.columns[self.names.index(name)], np.dtype(spec.dtype)
        if isinstance(column, tuple):
            values, valid = _parse(column, dtype.kind in "iub")
        else:
            values, valid = column.to_numpy(), ~column.is_null().to_numpy()
            if values.dtype.kind not in NUMBERS:
                kind = getattr(column, "type", None) or column.dtype
                raise no_numbers(self.path, name, kind, spec)
        valid &= fits(values, dtype)
        if not valid.all():
            row = int(np.argmin(valid))
            raise unfit_cell(f"{self.path}, {self.place(row)}", name, column[row], spec)
        return values.astype(dtype)


def no_numbers(path: Any, name: str, kind: Any, spec: InputSpec | None) -> DataFileError:
    """What is raised for a column of another kind."""
    return DataFileError(
        f"{path}, column {name!r} holds {kind} for {spec or 'an array'}: it takes numbers. "
        "Remove it, or write it as numbers."
    )


def unfit_cell(place: str, name: str, cell: Any, spec: InputSpec | None) -> DataFileError:
    """What is raised for a cell that an input cannot take."""
    whole = "whole " if spec is not None and np.dtype(spec.dtype).kind in "iub" else ""
    return DataFileError(
        f"{place}, column {name!r} holds {_shown(cell)}: its input, {spec or 'an array'}, takes a "
        f"{whole}number that it can hold. Mend it, or leave out the row or the column."
    )


def _check_inputs(path: Path, specs: Sequence[InputSpec]) -> None:
    for spec in specs:
        if spec.ndim not in (1, 2):
            raise DataFileError(
                f"{path} cannot feed {spec}: a table feeds vectors and matrices. Write an .npz or "
                ".npy file."
            )
    names = [spec.name for spec in specs if spec.name]
    if len(set(names)) < len(names):
        raise DataFileError(
            f"{path} is for inputs of one name ({', '.join(map(str, specs))}): those that a table "
            "feeds have different names. Rename them."
        )


def _own_columns(path: Path, names: Sequence[str], spec: InputSpec) -> list[str]:
    """The columns that are called after an input."""
    if spec.name is None:
        return []
    if spec.ndim == 1:
        return [name for name in names if name == spec.name]
    pattern = re.compile(rf"{re.escape(spec.name)}(?:[_.]?(\d+)|\[(\d+)\])")
    found = [(match, name) for name in names if (match := pattern.fullmatch(name))]
    numbered: dict[int, str] = {}
    for match, name in found:
        number = int(match[1] or match[2])
        if number in numbered:
            raise DataFileError(
                f"{path} has {numbered[number]!r} and {name!r} for {spec}: the columns of a matrix "
                "have different numbers. Rename one."
            )
        numbered[number] = name
    return [numbered[number] for number in sorted(numbered)]


def _parse(cells: Sequence[str], whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Texts as numbers, without loss for whole ones, and which of them are numbers."""
    kind = int if whole else float
    try:
        return np.fromiter(map(kind, cells), kind, len(cells)), np.ones(len(cells), bool)
    except (ValueError, OverflowError):  # a wrong cell, or a whole number that is written 3.0
        numbers = [_number(cell, whole) for cell in cells]
    values = np.array([number or 0 for number in numbers], object if whole else float)
    return values, np.array([number is not None for number in numbers])


def _number(cell: str, whole: bool) -> float | None:
    try:
        if not whole:
            return float(cell)
        number = Decimal(cell)
        # No dtype holds more than twenty digits, and 1e999999 would take its time.
        exact = number.adjusted() < 20 and number == number.to_integral_value()
        return int(number) if exact else None
    except (ValueError, ArithmeticError):
        return None


def fits(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Which values a dtype can hold."""
    if dtype.kind not in "iub":
        with np.errstate(over="ignore"):
            lost: np.ndarray = np.isfinite(values) & ~np.isfinite(values.astype(dtype))
            return ~lost
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    inside: np.ndarray = (values >= low) & (values < high + 1)
    if values.dtype.kind == "f":
        inside &= values == np.floor(values)
    return inside


def _read_text(path: Path, delimiter: str) -> Table:
    cells, lines = [], []
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        names = [name.strip() for name in next(rows, [])]
        _check_header(path, names)
        for row in rows:
            if len(row) == len(names):
                cells.append(row)
                lines.append(rows.line_num)
            elif row:  # no blank line
                raise DataFileError(
                    f"{path}, line {rows.line_num} has {len(row)} cells for {len(names)} columns: "
                    "a row has one for each. Mend it."
                )
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(names)
    return Table(path, names, columns, lambda row: f"line {lines[row]}")


def _check_header(path: Path, names: Sequence[str]) -> None:
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return
    if numbers != list(range(len(names))) or not names:  # a frame's columns may be called 0, 1, 2
        raise DataFileError(
            f"{path} begins with {listed(names) or 'nothing'}: a table's first line names the "
            "columns. Add such a line."
        )


def _read_parquet(path: Path) -> Table:
    columns = _parquet_columns(path)
    names = [name for name, _ in columns]
    return Table(path, names, [column for _, column in columns], lambda row: f"row {row + 1}")


def _parquet_columns(path: Path) -> list[tuple[str, Any]]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        pass
    else:
        with ParquetFile(path) as file:
            table = file.read()
        return list(zip(table.column_names, table.columns, strict=True))
    try:
        import polars
    except ImportError as error:
        raise ImportError(
            f"Neither pyarrow nor polars is installed, and {path} is read by one of them. Run "
            'pip install "downhill_rms[parquet]".'
        ) from error
    return [(column.name, column) for column in polars.read_parquet(path, glob=False).get_columns()]


def _shown(cell: Any) -> str:
    """A cell for a message, from a text, pyarrow or polars."""
    value = cell.as_py() if hasattr(cell, "as_py") else cell
    return "nothing" if value is None or not str(value).strip() else repr(value)


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first of them if they are many."""
    rest = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*map(repr, names[:SHOWN]), *rest])


READERS: dict[str, Callable[[Path, Sequence[InputSpec]], list[Any]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".csv": lambda path, specs: _read_text(path, ",").arrays(specs),
    ".tsv": lambda path, specs: _read_text(path, "\t").arrays(specs),
    ".parquet": lambda path, specs: _read_parquet(path).arrays(specs),
}
