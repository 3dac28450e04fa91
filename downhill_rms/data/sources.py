"""Where samples come from: arrays in memory, on disk or sparse, callables, iterables.

Whatever a source is, what leaves it is one kind of minibatch: a list of arrays, C-contiguous,
writable and of exactly the inputs' dtypes, since every other layout makes Numba compile again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from downhill_rms.data.frames import column_to_array, is_table, table_to_array
from downhill_rms.data.scalars import ScalarColumn, as_scalar, is_scalar, refuse_array

Selection = slice | np.ndarray  # consecutive samples, or the indices of any
Batch = list[Any]  # one array for each input

SPARSE_KINDS = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix}


@dataclass(frozen=True)
class InputSpec:
    """What an input accepts.

    Attributes
    ----------
    name : str or None
        Its name, by which a dict can feed it.
    dtype : str
        Its dtype.
    ndim : int
        Its number of dimensions.
    sparse : {None, "csr", "csc"}
        The format of a sparse input; None for a dense one.
    shape : tuple of int or None, optional
        The shape that it declares, None where it leaves an extent open; None if it declares none.
    """

    name: str | None
    dtype: str
    ndim: int
    sparse: str | None = None
    shape: tuple[int | None, ...] | None = None

    @classmethod
    def of(cls, variable: Any) -> InputSpec:
        """What a symbolic variable accepts."""
        kind = variable.type
        if not hasattr(kind, "ndim") or not hasattr(kind, "dtype"):
            raise TypeError(
                f"inputs has {variable!r} of type {kind}: an input is a dense or sparse tensor. "
                "Make it with pytensor.tensor or pytensor.sparse."
            )
        declared = any(extent is not None for extent in getattr(kind, "shape", ()))
        shape = kind.shape if declared else None
        return cls(variable.name, kind.dtype, kind.ndim, getattr(kind, "format", None), shape)

    def __str__(self) -> str:
        name = repr(self.name) if self.name else "an unnamed input"
        return f"{name} ({self.ndim}-dimensional {self.dtype})"


class Inputs(list[InputSpec]):
    """What inputs accept, in their order.

    Parameters
    ----------
    variables : iterable of Variable
        The symbolic inputs.
    doubt : callable, optional
        Given a text, once, when data come by position although inputs could be exchanged. Left
        out where the user has said the order.
    """

    def __init__(self, variables: Iterable[Any], doubt: Callable[[str], Any] | None = None) -> None:
        super().__init__(InputSpec.of(variable) for variable in variables)
        self._doubt = doubt

    def taken_by_position(self) -> None:
        """Doubt the order, unless there is one way alone to feed these inputs."""
        doubt, self._doubt = self._doubt, None
        kinds = [(spec.ndim, np.dtype(spec.dtype).kind) for spec in self]
        alike = [str(s) for s, kind in zip(self, kinds, strict=True) if kinds.count(kind) > 1]
        if doubt is None or not alike:
            return
        order = ", ".join(spec.name or "an unnamed input" for spec in self)
        doubt(
            f"Data come by position, and {' and '.join(alike)} could be exchanged. They are fed in "
            f"the order of first use in the graph: {order}. Say the order with inputs=[...], or "
            "give the data by name, in a dict."
        )


def conform(value: Any, spec: InputSpec | None) -> Any:
    """Bring one array into the form that an input accepts, without a copy where it has it.

    Parameters
    ----------
    value : array_like or scipy.sparse array
        The data.
    spec : InputSpec or None
        The input; None leaves dtype and dimensions as they are.

    Returns
    -------
    ndarray or scipy.sparse array
        C-contiguous, aligned and writable, of the input's dtype.

    Raises
    ------
    ValueError
        If the number of dimensions is wrong, values are masked, or integers do not fit.
    TypeError
        If the dtype cannot be cast safely.
    """
    if scipy.sparse.issparse(value):
        if spec is None:
            return value
        _check_kind(value, spec)
        if spec.sparse is not None:
            _check_range(value.data, spec)
            # PyTensor multiplies with *, which is a matrix product for matrices alone.
            return SPARSE_KINDS[spec.sparse](value, dtype=spec.dtype)
        value = value.toarray()
    if spec is not None and spec.ndim == 0:
        return as_scalar(value, spec)
    _refuse_masked(value, spec)
    array = np.asarray(value)
    if spec is not None:
        _check_kind(array, spec)
        _check_range(array, spec)
        array = array.astype(spec.dtype, order="C", copy=False)
        if spec.sparse is not None:
            return SPARSE_KINDS[spec.sparse](array)
    return np.require(array, requirements=["C", "A", "W"])


def _refuse_masked(value: Any, spec: InputSpec | None) -> None:
    """Refuse values that a mask hides: a plain array would show what is behind it."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        masked = int(np.ma.getmaskarray(value).sum())
        raise ValueError(
            f"{masked} of {value.size} values for {spec or 'an array'} are masked. Training sees "
            "no mask. Fill them with array.filled(value), leave those samples out, or give the "
            "mask, ~np.ma.getmaskarray(array), to an input of its own that the loss multiplies by."
        )


def _check_kind(array: Any, spec: InputSpec) -> None:
    """Refuse what no value of this array could mend: its dimensions and its kind of dtype."""
    if array.ndim != spec.ndim:
        raise ValueError(
            f"An array of shape {array.shape} is given for {spec}: it has its input's number of "
            "dimensions. Reshape the data or change the input."
        )
    if not np.can_cast(array.dtype, spec.dtype, casting="same_kind"):
        raise TypeError(
            f"An array of {array.dtype} is given for {spec}: it is cast to its input's dtype where "
            "nothing is lost in kind. Convert the data with .astype, or change the input."
        )


def _check_range(array: np.ndarray, spec: InputSpec) -> None:
    target = np.dtype(spec.dtype)
    if array.dtype == target:
        return
    if target.kind in "iu" and array.dtype.itemsize >= target.itemsize and array.size:
        low, high = np.iinfo(target).min, np.iinfo(target).max
        if array.min() < low or array.max() > high:
            raise ValueError(
                f"The values from {array.min()} to {array.max()} for {spec} are beyond its dtype: "
                "integers fit it. Use an input with a wider one."
            )


def by_input(batch: Any, specs: Sequence[InputSpec] | None) -> list[Any]:
    """Put a batch, however it is given, in the order of the inputs.

    Parameters
    ----------
    batch : array_like, sequence of array_like or mapping
        One array for the only input, one for each input, or one under each input's name.
    specs : sequence of InputSpec or None
        The inputs; None keeps the given order.

    Returns
    -------
    list
        One value for each input.
    """
    if isinstance(batch, Mapping):
        return list(batch.values()) if specs is None else _by_name(batch, specs)
    values = list(batch) if isinstance(batch, tuple | list) else [batch]
    if isinstance(specs, Inputs):
        specs.taken_by_position()
    if specs is not None and len(values) != len(specs):
        raise ValueError(
            f"A batch has {len(values)} arrays for {len(specs)} inputs "
            f"({', '.join(map(str, specs)) or 'the loss has none'}): it holds one for each. Give "
            "as many; a list of batches has every batch in a list or tuple of its own."
        )
    return values


def _by_name(batch: Mapping[str, Any], specs: Sequence[InputSpec]) -> list[Any]:
    names = [spec.name for spec in specs]
    if None in names:
        raise ValueError(
            f"An input has no name ({', '.join(map(str, specs))}), and data are given by name. "
            "Name it, as in pt.matrix('x')."
        )
    doubled = sorted({str(name) for name in names if names.count(name) > 1})
    if doubled:
        warnings.warn(
            f"{', '.join(doubled)} is the name of several inputs, which all receive the same data. "
            "Inputs that are fed by name should have different names: rename them or feed a list.",
            stacklevel=4,
        )
    if set(batch) != set(names):
        raise ValueError(
            f"Data are given by the names {sorted(map(str, batch))} for inputs {names}: they hold "
            "one array for each. Use the inputs' names."
        )
    return [batch[name] for name in names if name is not None]


class ArrayColumn:
    """One array of a data set, in memory or memory-mapped."""

    def __init__(self, array: np.ndarray, axis: int, spec: InputSpec | None = None) -> None:
        self.array, self.axis, self.spec = array, axis, spec
        self.shape = array.shape
        if spec is not None:
            _refuse_masked(array, spec)
            _check_kind(array, spec)
        # Memory-mapped data, and those of sparse inputs, are cast a minibatch at a time; the
        # rest is cast here, once.
        self.in_memory = not _is_memory_mapped(array)
        self.exact = spec is not None and spec.sparse is None and self.in_memory
        if self.exact:
            self.array = conform(array, spec)

    @property
    def values(self) -> Any:
        """All that it holds."""
        return self.array

    def bind(self, spec: InputSpec) -> ArrayColumn:
        """The same data, checked and cast for an input."""
        return ArrayColumn(self.array, self.axis, spec)

    def take(self, selection: Selection) -> Any:
        """The samples of one minibatch."""
        if not isinstance(selection, slice):
            batch = self.array.take(selection, axis=self.axis)
        else:
            batch = self.array[(slice(None),) * self.axis + (selection,)]
            if self.axis:
                batch = batch.copy(order="C")
        return batch if self.exact else conform(batch, self.spec)


class SlicedColumn:
    """One array of a data set that can only be sliced, such as an h5py or zarr data set."""

    in_memory = False

    def __init__(self, array: Any, axis: int, spec: InputSpec | None = None) -> None:
        self.array, self.axis, self.spec = array, axis, spec
        self.shape = tuple(array.shape)

    @property
    def values(self) -> Any:
        """All that it holds."""
        return self.array

    def bind(self, spec: InputSpec) -> SlicedColumn:
        """The same data, checked and cast for an input."""
        column = SlicedColumn(self.array, self.axis, spec)
        column.take(slice(0, 1))  # a wrong dtype or dimension shows before training
        return column

    def take(self, selection: Selection) -> Any:
        """The samples of one minibatch."""
        if isinstance(selection, slice):
            return conform(self._read(selection), self.spec)
        order = np.argsort(selection)
        wanted = selection[order]
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        blocks = [self._read(slice(int(run[0]), int(run[-1]) + 1)) for run in runs]
        joined = np.concatenate(blocks, axis=self.axis)
        return conform(np.take(joined, np.argsort(order), axis=self.axis), self.spec)

    def _read(self, selection: slice) -> np.ndarray:
        block = (
            self.array[(slice(None),) * self.axis + (selection,)]
            if self.axis
            else self.array[selection]
        )
        _refuse_masked(block, self.spec)
        return np.asarray(block)


class SparseColumn:
    """One scipy sparse matrix of a data set, its samples in rows or in columns."""

    in_memory = True

    def __init__(self, matrix: Any, axis: int, spec: InputSpec | None = None) -> None:
        self.axis, self.spec = axis, spec
        self.matrix = matrix.tocsc() if axis else matrix.tocsr()
        self.shape = matrix.shape

    @property
    def values(self) -> Any:
        """All that it holds."""
        return self.matrix

    def bind(self, spec: InputSpec) -> SparseColumn:
        """The same data, checked and cast for an input."""
        _check_kind(self.matrix, spec)
        _check_range(self.matrix.data, spec)
        return SparseColumn(self.matrix.astype(spec.dtype, copy=False), self.axis, spec)

    def take(self, selection: Selection) -> Any:
        """The samples of one minibatch."""
        batch = self.matrix[:, selection] if self.axis else self.matrix[selection]
        return conform(batch, self.spec)


Column = ArrayColumn | SlicedColumn | SparseColumn | ScalarColumn


def as_column(value: Any, axis: int) -> Column:
    """Open anything that holds an array, or a number."""
    if is_scalar(value):
        return ScalarColumn(value, axis)
    if hasattr(value, "get_value"):  # a PyTensor shared variable
        value = value.get_value(borrow=True)
    elif hasattr(value, "owner") and hasattr(value, "type"):
        raise TypeError(
            f"An array is {value!r:.80}, a symbolic variable: data have values. Give an array, or "
            "a shared variable."
        )
    elif is_table(value):
        value = table_to_array(value)
    elif hasattr(value, "to_numpy"):  # a series, an Arrow array, xarray
        value = column_to_array(value)
    if scipy.sparse.issparse(value):
        return SparseColumn(value, axis)
    sliced_only = hasattr(value, "shape") and not hasattr(value, "__array_interface__")
    if sliced_only and not hasattr(value, "__dlpack__"):
        return SlicedColumn(value, axis)
    # What a mask hides is refused where the array is bound, which knows the input's name.
    is_masked = isinstance(value, np.ma.MaskedArray)
    return ArrayColumn(value if is_masked else np.asarray(value), axis)


def _is_memory_mapped(array: Any) -> bool:
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False


def _bind_column(column: Column, spec: InputSpec, epoch: int) -> Column:
    if isinstance(column, ScalarColumn):
        return column.bind(spec, epoch)
    if spec.ndim == 0:
        refuse_array(column.shape, spec)
    return column.bind(spec)


class ArraySource:
    """Arrays that hold the same samples along one axis, and numbers that all samples share.

    Parameters
    ----------
    columns : list of Column
        The arrays.
    names : list of str or None
        Their names, where they were given in a dict.
    """

    def __init__(self, columns: list[Column], names: list[str] | None) -> None:
        self.columns, self.names = columns, names
        self.scalars = {i: c for i, c in enumerate(columns) if isinstance(c, ScalarColumn)}
        self.n_samples = 1
        if not self.is_scalar:
            self.n_samples = self._count_samples(columns[0].axis)

    def _count_samples(self, axis: int) -> int:
        """Samples that the arrays hold, all as many."""
        columns = [c for i, c in enumerate(self.columns) if i not in self.scalars]
        labels = self.names or [f"array {i}" for i in range(len(self.columns))]
        labels = [label for i, label in enumerate(labels) if i not in self.scalars]
        shapes = ", ".join(f"{n}: {c.shape}" for n, c in zip(labels, columns, strict=True))
        if any(len(column.shape) <= axis for column in columns):
            raise ValueError(
                f"The arrays ({shapes}) have too few dimensions for axis={axis}: every one has "
                "samples along it. Give arrays with that axis, or change axis=."
            )
        lengths = {column.shape[axis] for column in columns}
        if len(lengths) > 1:
            raise ValueError(
                f"The arrays ({shapes}) have different lengths along axis {axis}: all have the "
                "same number of samples. Cut them to one length, or change axis=."
            )
        n_samples: int = lengths.pop()
        if n_samples == 0:
            raise ValueError(
                f"The arrays ({shapes}) are empty along axis {axis}: a data set holds at least one "
                "sample. Check how the data were selected."
            )
        return n_samples

    @property
    def is_scalar(self) -> bool:
        """Whether there are scalars alone, and no samples."""
        return len(self.scalars) == len(self.columns)

    @property
    def in_memory(self) -> bool:
        """Whether every array is there as a whole, and none is read as it comes."""
        return all(column.in_memory for column in self.columns)

    def bind(self, specs: Sequence[InputSpec], epoch: int = 0) -> ArraySource:
        """The same arrays in the order, and cast to the dtypes, of the inputs."""
        given: Any = self.columns
        if self.names is not None:
            given = dict(zip(self.names, self.columns, strict=True))
        columns = by_input(given, specs)
        pairs = zip(columns, specs, strict=True)
        return ArraySource([_bind_column(c, s, epoch) for c, s in pairs], None)

    def begin_epoch(self, epoch: int) -> None:
        """Go on to another epoch, whose number scalars are made from."""
        for column in self.scalars.values():
            column.begin_epoch(epoch)

    def with_scalars(
        self, batches: Iterator[tuple[Batch, int]], stacked: bool
    ) -> Iterator[tuple[Batch, int]]:
        """The same minibatches, or stacks of them, with the scalars as they are now.

        What a thread reads ahead would have those of an earlier moment.
        """
        for batch, samples in batches:
            for place, column in self.scalars.items():
                value = column.values
                batch[place] = np.full(len(batch[place]), value) if stacked else value
            yield batch, samples

    def take(self, selection: Selection) -> Batch:
        """The samples of one minibatch."""
        return [column.take(selection) for column in self.columns]


class BatchSource:
    """Ready minibatches, from a callable or from an iterable that can be iterated again.

    Parameters
    ----------
    open_pass : callable
        Returns an iterator over the batches of a pass, endless for a callable source.
    specs : sequence of InputSpec or None
        The inputs; None leaves the batches as they are.
    endless : bool
        Whether a pass has no end of its own, as with a callable.
    """

    def __init__(
        self,
        open_pass: Callable[[], Iterator[Any]],
        specs: Sequence[InputSpec] | None = None,
        endless: bool = False,
    ) -> None:
        self.open_pass, self.specs, self.endless = open_pass, specs, endless

    def bind(self, specs: Sequence[InputSpec], epoch: int = 0) -> BatchSource:
        """The same batches in the order, and cast to the dtypes, of the inputs."""
        return BatchSource(self.open_pass, specs, self.endless)

    def batches(self) -> Iterator[Batch]:
        """One pass."""
        for batch in self.open_pass():
            values = by_input(batch, self.specs)
            specs: Sequence[InputSpec | None] = self.specs or [None] * len(values)
            yield [conform(v, s) for v, s in zip(values, specs, strict=True)]
