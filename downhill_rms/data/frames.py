"""Frames and tables: columns of several dtypes become one array.

pandas, polars and Arrow are told by what they can do, so that none of them is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

NUMBERS = "biuf"


def is_table(value: Any) -> bool:
    """Whether something has columns with names: a frame, or an Arrow table."""
    frame = hasattr(value, "columns") and hasattr(value, "to_numpy")
    return frame or (hasattr(value, "column_names") and hasattr(value, "num_rows"))


def table_to_array(table: Any) -> np.ndarray:
    """Put the columns of a table beside each other.

    Parameters
    ----------
    table : pandas or polars DataFrame, or Arrow Table or RecordBatch
        Columns of numbers and truth values.

    Returns
    -------
    ndarray, shape (rows, columns)
        Of the dtype that holds all columns: bool beside float64 is float64.

    Raises
    ------
    TypeError
        If a column holds something else, by its name.
    ValueError
        If values are missing in a column that has no NaN, by its name.
    """
    columns = [column_to_array(column, name) for name, column in _columns(table)]
    if not columns:
        return np.empty(table.shape)
    result = np.empty((len(columns[0]), len(columns)), np.result_type(*columns))
    for index, column in enumerate(columns):
        result[:, index] = column
    return result


def column_to_array(column: Any, name: Any = None) -> np.ndarray:
    """The numbers of one column, or of an array-like that knows how to become one.

    Parameters
    ----------
    column : object with ``to_numpy``
        A pandas or polars series, an Arrow array.
    name : object, optional
        What errors call it; by default its own name.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        As for `table_to_array`.
    """
    name = getattr(column, "name", None) if name is None else name
    missing = _count_missing(column)
    if missing:
        raise ValueError(
            f"{missing} values are missing in column {name!r}. Training needs all of them: drop "
            "these rows, or fill them."
        )
    values = np.asarray(column)
    kind: Any = getattr(column, "dtype", getattr(column, "type", values.dtype))
    if values.dtype.kind == "O" and getattr(kind, "kind", "O") in NUMBERS:
        values = column.to_numpy(dtype=kind.numpy_dtype)  # a nullable dtype of pandas
    if values.dtype.kind not in NUMBERS + "c":
        raise TypeError(
            f"Column {name!r} holds {kind}. Columns of numbers and truth values can be trained "
            "on: leave it out, or encode it, for example with pandas.get_dummies."
        )
    return values


def _columns(table: Any) -> Iterator[tuple[Any, Any]]:
    """Columns in order, also of a frame that has two of one name."""
    if hasattr(table, "iloc"):
        for index, name in enumerate(table.columns):
            yield name, table.iloc[:, index]
    else:
        for name in getattr(table, "column_names", None) or table.columns:
            yield name, table[name]


def _count_missing(column: Any) -> int:
    """Values that are missing; a NaN among floats is a value, which is looked at with the rest."""
    if hasattr(column, "isna"):
        plain = isinstance(column.dtype, np.dtype) and column.dtype.kind != "O"
        return 0 if plain else int(column.isna().sum())
    count = getattr(column, "null_count", 0)
    return int(count() if callable(count) else count)
