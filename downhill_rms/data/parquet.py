"""Parquet files that are larger than memory: rows by windows, columns to inputs by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from downhill_rms.data.ahead import read_ahead
from downhill_rms.data.datafiles import (
    INDEX,
    DataFileError,
    Table,
    fits,
    listed,
    no_numbers,
    unfit_cell,
    unreadable,
)
from downhill_rms.data.frames import NUMBERS
from downhill_rms.data.sources import InputSpec
from downhill_rms.data.streaming import WindowSource

SUFFIX = ".parquet"
STREAMED = 1 << 28  # bytes of a file that is not read as a whole
WINDOW = 1 << 25  # bytes of a file's numbers in a window by default
PART = 1 << 17  # rows that are decoded together: few calls, and small beside a window
BUFFER = 1 << 20  # bytes of each column that are read from disk at a time


def is_parquet(value: Any) -> bool:
    """Whether something is a path of Parquet files, or a data set of pyarrow."""
    if not isinstance(value, str | os.PathLike):
        return hasattr(value, "get_fragments")
    path = os.fspath(value)
    if not isinstance(path, str) or not path:
        return False
    return Path(path).suffix.lower() in (SUFFIX, "") or os.path.isdir(path)


def is_streamed(path: str | os.PathLike[str]) -> bool:
    """Whether a data file is better read by windows: a folder, or a large Parquet file."""
    if os.path.isdir(path):
        return True
    large = Path(path).suffix.lower() == SUFFIX and os.path.isfile(path)
    # Without pyarrow, polars can read the file as a whole.
    return large and os.path.getsize(path) > STREAMED and find_spec("pyarrow") is not None


@dataclass(frozen=True)
class Group:
    """A row group: its file, its number there, and the row of the file that it begins with."""

    file: int
    number: int
    first: int


class ParquetFiles:
    """Parquet files behind each other, as one table.

    Parameters
    ----------
    files : path or pyarrow.dataset.Dataset
        A file, a folder with files, or a data set of pyarrow.

    Attributes
    ----------
    name : str
        What errors call them.
    kinds : dict of str to pyarrow.DataType
        The types of the columns.
    groups : list of Group
        The row groups in order.
    starts : ndarray of int64
        The first row of each, and behind them the number of rows.
    """

    def __init__(self, files: Any) -> None:
        is_path = isinstance(files, str | os.PathLike)
        self.name = str(files) if is_path else "the data set of pyarrow"
        with _reading(self.name):
            dataset = _open(Path(files)) if is_path else files
            self._fragments = list(dataset.get_fragments())
        self.kinds: dict[str, Any] = {field.name: field.type for field in dataset.schema}
        self.table = Table(Path(self.name), list(dataset.schema.names), (), str)
        self.groups: list[Group] = []
        starts = [0]
        for file, fragment in enumerate(self._fragments):
            first = 0
            for group in self._row_groups(fragment):
                self.groups.append(Group(file, group.id, first))
                first += group.num_rows
                starts.append(starts[-1] + group.num_rows)
        self.starts = np.array(starts, "int64")
        if not starts[-1]:
            raise DataFileError(
                f"{self.name} has no rows: a data set holds at least one sample. Write a row for "
                "each."
            )

    def _row_groups(self, fragment: Any) -> list[Any]:
        if not hasattr(fragment, "row_groups"):
            raise DataFileError(
                f"{self.name} consists of {type(fragment).__name__}: it is read if its files are "
                "Parquet. Write such files, or give a callable that returns batches."
            )
        with _reading(fragment.path):
            return list(fragment.row_groups)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, but for those of a frame's index."""
        return [name for name in self.table.names if not INDEX.fullmatch(name)]

    @property
    def default_window(self) -> int:
        """Rows of which the numbers take `WINDOW` bytes."""
        dtypes = map(self.dtype, self.columns)
        size = sum(dtype.itemsize for dtype in dtypes if dtype is not None)
        return max(WINDOW // max(size, 1), 1)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """NumPy's dtype of a column of numbers or truth values; None for another."""
        try:
            dtype = np.dtype(self.kinds[name].to_pandas_dtype())
        except (NotImplementedError, TypeError):  # pyarrow knows none
            return None
        return dtype if dtype.kind in NUMBERS else None

    def path(self, file: int) -> str:
        """Where a file is."""
        return str(self._fragments[file].path)

    def open(self, file: int, columns: Sequence[str]) -> Any:
        """A file that has these columns."""
        from pyarrow.parquet import ParquetFile

        fragment = self._fragments[file]
        # Read beforehand, all of a row group's bytes would be in memory.
        options = {"metadata": fragment.metadata, "pre_buffer": False, "buffer_size": BUFFER}
        opened = ParquetFile(fragment.open(), **options)
        names = opened.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise DataFileError(
                f"{fragment.path} has no {listed(missing)}, only {listed(names)}: the files of a "
                "data set have the same columns. Write it again, or take it away."
            )
        return opened


def _open(path: Path) -> Any:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _counts(file, path))
        if not found:
            raise DataFileError(
                f"{path} has no file whose name ends in {SUFFIX}: a folder of data holds at least "
                "one. Give another."
            )
    elif os.path.isfile(path):
        found = [path]
    else:
        raise DataFileError(f"{path} is not there. Give a Parquet file, or a folder of them.")
    try:
        from pyarrow import dataset
    except ImportError as error:
        raise ImportError(
            f"pyarrow is not installed, and {path} is read by it. Run "
            'pip install "downhill_rms[parquet]".'
        ) from error
    return dataset.dataset([str(file) for file in found], format="parquet")


def _counts(file: Path, folder: Path) -> bool:
    """Whether a file is one of a folder's data; other programs leave notes in hidden ones."""
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    return file.suffix.lower() == SUFFIX and not hidden and file.is_file()


@dataclass(frozen=True)
class Part:
    """Some rows of a file.

    Attributes
    ----------
    batch : pyarrow.RecordBatch
        Their columns.
    path : str
        The file.
    first : int
        Where in the file they begin.
    """

    batch: Any
    path: str
    first: int

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def cut(self, start: int, stop: int | None = None) -> Part:
        """Some of them."""
        batch = self.batch.slice(start, None if stop is None else stop - start)
        return Part(batch, self.path, self.first + start)


class Reader:
    """Rows of Parquet files, decoded from one place on.

    Parameters
    ----------
    files : ParquetFiles
        Where they are.
    columns : sequence of str
        What is read of them.
    """

    def __init__(self, files: ParquetFiles, columns: Sequence[str]) -> None:
        self._files, self._columns = files, list(columns)
        self._row = -1  # where it stands
        self._rest: Part | None = None  # of what was decoded: it comes before the others
        self._coming: Iterator[Part] = iter(())

    def read(self, rows: slice) -> Iterator[Part]:
        """Consecutive rows, in parts.

        A place is looked for in its row group from the beginning; what goes on where the last
        call ended is not looked for.
        """
        if rows.start != self._row:
            self._rest = None
            self._coming = _parts_from(rows.start, self._files, self._columns)
        self._row = -1  # until all is read
        left = rows.stop - rows.start
        while left:
            part, self._rest = self._rest or next(self._coming), None
            if len(part) > left:
                self._rest, part = part.cut(left), part.cut(0, left)
            left -= len(part)
            yield part
        self._row = rows.stop


def _parts_from(row: int, files: ParquetFiles, columns: list[str]) -> Iterator[Part]:
    """All rows from one on."""
    place = int(np.searchsorted(files.starts, row, side="right")) - 1
    skipped = row - int(files.starts[place])
    for file, groups in groupby(files.groups[place:], lambda group: group.file):
        with _reading(files.path(file)):
            opened = files.open(file, columns)
        for group in groups:
            for part in _parts_of(group, opened, files.path(file), columns):
                if skipped < len(part):
                    yield part.cut(skipped)
                skipped = max(skipped - len(part), 0)


def _parts_of(group: Group, opened: Any, path: str, columns: list[str]) -> Iterator[Part]:
    first = group.first
    with _reading(path):
        batches = opened.iter_batches(PART, row_groups=[group.number], columns=columns)
    while True:
        with _reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield Part(batch, path, first)
        first += batch.num_rows


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Say of a file what pyarrow's errors say of none."""
    try:
        yield
    except (DataFileError, ImportError):
        raise
    except Exception as error:  # pyarrow has exceptions of its own for a broken file
        raise unreadable(path, SUFFIX, error) from error


@dataclass(frozen=True)
class ParquetColumns:
    """The columns that one input takes.

    Attributes
    ----------
    names : list of str
        Of the columns.
    spec : InputSpec or None
        The input.
    shape : tuple of int
        Of the array that they make.
    given : dtype
        Which holds what the files hold.
    """

    names: list[str]
    spec: InputSpec | None
    shape: tuple[int, ...]
    given: np.dtype[Any]
    axis = 0


class ParquetSource(WindowSource):
    """Rows of Parquet files, of which those of a window are in memory.

    Parameters
    ----------
    files : ParquetFiles
        The files.
    window : int or None
        Rows in memory together.
    ahead : bool
        Whether a thread reads the next window while one is in use.
    specs : sequence of InputSpec or None
        The inputs; None for one matrix of all columns.
    """

    columns: list[Any]

    def __init__(
        self,
        files: ParquetFiles,
        window: int | None,
        ahead: bool,
        specs: Sequence[InputSpec] | None = None,
    ) -> None:
        self.files = files
        taken = [files.columns] if specs is None else files.table.assign(specs)
        wanted: Sequence[InputSpec | None] = [None] if specs is None else specs
        columns = [self._column(*pair) for pair in zip(taken, wanted, strict=True)]
        window = files.default_window if window is None else window
        super().__init__(columns, None, files.starts, window, ahead, specs)
        self._reader = self._new_reader()

    def _column(self, names: list[str], spec: InputSpec | None) -> ParquetColumns:
        dtypes = [self.files.dtype(name) for name in names]
        for name, dtype in zip(names, dtypes, strict=True):
            if dtype is None and spec is not None:  # whoever takes all has not chosen it
                raise no_numbers(self.files.name, name, self.files.kinds[name], spec)
        shape = (int(self.files.starts[-1]), len(names))[: 2 if spec is None else spec.ndim]
        return ParquetColumns(names, spec, shape, np.result_type(*filter(None, dtypes), "bool"))

    def _new_reader(self) -> Reader:
        return Reader(self.files, list(dict.fromkeys(n for c in self.columns for n in c.names)))

    def apart(self) -> ParquetSource:
        """The same data, for who goes through them beside others."""
        twin = super().apart()
        assert isinstance(twin, ParquetSource)
        twin._reader = self._new_reader()
        return twin

    def bind(self, specs: Sequence[InputSpec], epoch: int = 0) -> ParquetSource:
        """The same rows, their columns given to the inputs."""
        if not specs:
            raise DataFileError(
                f"{self.files.name} is given for a loss without inputs: a data file feeds inputs. "
                "Leave it out."
            )
        return ParquetSource(self.files, self.window, self.ahead, specs)

    def dtype(self, column: ParquetColumns) -> np.dtype[Any]:
        """Of the array that columns are read into."""
        return column.given if column.spec is None else np.dtype(column.spec.dtype)

    def read(self, pieces: Sequence[slice], arrays: Sequence[np.ndarray]) -> None:
        """Put the rows of some pieces of the table into an array for each input."""
        parts = (part for piece in pieces for part in self._reader.read(piece))
        if self.ahead:  # one thread decodes, and this one puts in place
            parts = read_ahead(parts, 1)
        with closing(parts):
            filled = 0
            for part in parts:
                rows = slice(filled, filled + len(part))
                filled = rows.stop
                for array, column in zip(arrays, self.columns, strict=True):
                    for index, name in enumerate(column.names):
                        out = array[rows] if array.ndim == 1 else array[rows, index]
                        _fill(out, part, name, column.spec)


def _fill(out: np.ndarray, part: Part, name: str, spec: InputSpec | None) -> None:
    """Put the cells of one column into the place that they have in an array."""
    cells = part.batch.column(name)
    if cells.null_count:
        valid = ~cells.is_null().to_numpy(zero_copy_only=False)
    else:
        values = cells.to_numpy(zero_copy_only=False)
        if values.dtype.kind not in NUMBERS:
            raise no_numbers(part.path, name, cells.type, spec)
        if np.can_cast(values.dtype, out.dtype, "safe") or fits(values, out.dtype).all():
            out[...] = values
            return
        valid = fits(values, out.dtype)
    row = int(np.argmin(valid))
    raise unfit_cell(f"{part.path}, row {part.first + row + 1}", name, cells[row], spec)
