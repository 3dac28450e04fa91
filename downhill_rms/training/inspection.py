"""Look at data before a graph computes with them: shapes, indices, NaN and infinity.

Compiled code checks little: Numba reads foreign memory behind an index that is out of range, and
JAX takes the nearest. What the graph demands is read from it (`read_bounds`), and compared with
arrays once, when they are bound; with data that are read as they come batch by batch. Whatever
looks wrong is computed uncompiled before it is refused: PyTensor's own code is the judge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from downhill_rms.compiling import evaluator, rehearse
from downhill_rms.data import (
    ArraySource,
    Batch,
    BoundDataset,
    Dataset,
    Inputs,
    Selection,
    first_infinite,
    parts,
)
from downhill_rms.rule import (
    Conflict,
    Index,
    LossGraph,
    Reading,
    label,
    read_bounds,
    variables_in_order,
    warn,
    warn_of_data,
    warn_of_outer_broadcast,
    without_dimensions,
)

# Shapes of ready batches that are looked at one by one; further ones are left to the compiled code.
SHAPES = 16

log = logging.getLogger(__name__)

Shapes = tuple[tuple[int | None, ...], ...]


class Inspection:
    """What a graph demands of its data, compared with what it gets.

    Parameters
    ----------
    inputs : sequence of Variable
        What minibatches feed.
    outputs : sequence of Variable
        What is computed from them, the loss first.
    params : mapping of str to SharedVariable
        The parameters by name.
    gradients : sequence of Variable
        Those of the loss.
    graph : LossGraph, optional
        What the data are compared with where parameters or the order of inputs were guessed.
    carried : mapping of SharedVariable to Variable
        What a batch hands to the next; the number of samples in a batch has to fit too then.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        params: Mapping[str, Any],
        gradients: Sequence[Any] = (),
        graph: LossGraph | None = None,
        carried: Mapping[Any, Any] | None = None,
    ) -> None:
        self.carried = list(carried or ())
        self.inputs = list(inputs)
        self.outputs = [*outputs, *(carried or {}).values()]
        doubtful = graph is not None and not graph.inputs_said
        self.specs = Inputs(inputs, warn if doubtful else None)
        self._unseen = graph  # until training data have shown how many rows data have
        self.gradients = list(gradients)
        variables = variables_in_order(self.outputs)
        self.shared = [v for v in variables if isinstance(v, SharedVariable)]
        self.names = {v: f"shared variable {label(v)!r}" for v in self.shared}
        self.names |= {v: f"carried variable {label(v)!r}" for v in self.carried}
        self.names |= {v: f"parameter {name!r}" for name, v in params.items()}
        self.names |= {v: _input_name(v, i) for i, v in enumerate(inputs)}
        self._known: dict[Shapes, Demands] = {}
        self._finite: WeakValueDictionary[int, Any] = WeakValueDictionary()  # by id
        self._warned = False

    @classmethod
    def of_graph(
        cls, graph: LossGraph, outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Inspection:
        """That of training: of the loss and the monitors, and what else a step assigns."""
        new = dict(graph.updates)
        assigned = [new[variable] for variable in graph.assigned]
        params = dict(zip(graph.param_names, graph.params, strict=True))
        carried = {variable: new[variable] for variable in graph.carried}
        return cls(graph.inputs, [*outputs, *assigned], params, gradients, graph, carried)

    def bind(
        self, dataset: Dataset, *, train: bool = False, finite: bool = False, epoch: int = 0
    ) -> BoundDataset:
        """Check and cast data for the inputs, and compare them with what the graph demands.

        What is not in memory has its batches compared as they come.

        Parameters
        ----------
        dataset : Dataset
            The data.
        train : bool
            Whether gradients will be computed too.
        finite : bool
            Whether NaN and infinity are refused, where the loss is not finite with them.
        epoch : int
            The number that functions of the epoch are first called with.

        Raises
        ------
        ValueError
            If they do not fit the graph, or are not finite.
        """
        data = dataset.bind(self.specs, epoch)
        if train and self._unseen is not None:
            graph, self._unseen = self._unseen, None
            warn_of_data(graph, data.n_samples, data.shapes)
        if train and self.carried and data.sampler is not None and data.sampler.shuffle:
            warn(
                f"{data.name} is shuffled, and {', '.join(map(label, self.carried))} is carried "
                "from minibatch to minibatch: minibatches should follow one another. Give "
                "Dataset(..., shuffle=None), or cut a series by sequences(...)."
            )
        if self.inputs:
            self._look_at(data, train, finite)
        return data

    def _look_at(self, data: BoundDataset, train: bool, finite: bool) -> None:
        source = data.source
        if not isinstance(source, ArraySource):
            data.look = BatchInspection(self, data.name, data.axis)
            return
        column_shapes = [column.shape for column in source.columns]
        for samples in _batch_sizes(data):
            self.check_declared(data.name, data.axis, column_shapes, samples)
        demands = self.demands(_shapes(column_shapes, data.axis))
        if demands.suspect or demands.reading.unbounded:
            batch, _ = next(iter(data.in_order()))
            self.refuse(batch, f"the first batch of {data.name}", demands)
        if self.carried:
            for first, samples in zip((0, source.n_samples), _batch_sizes(data), strict=False):
                start = max(first - samples, 0)  # the first batch, and one that is shorter
                batch = source.take(slice(start, start + samples))
                self.check_whole(batch, f"a batch of {data.name}")
        if not source.in_memory:
            if demands.checks:  # a thread that reads ahead must not be the first to build them
                batch, _ = next(iter(data.in_order()))
                for check in demands.checks:
                    check.fails(batch)
            data.look = BatchInspection(self, data.name, data.axis, rehearsed=True)
            return
        if demands.checks:
            self._look_at_indices(data, source, demands.checks)
            if any(column.is_index for column in source.scalars.values()):
                data.look = BatchInspection(self, data.name, data.axis, rehearsed=True)
        if finite:
            self._look_for_infinite(data, source, train)

    def warn_of_schedules(self, data: BoundDataset, name: str, judge: Any) -> None:
        """Warn where the expression that judges a run is another function in each epoch."""
        behind = variables_in_order([judge])
        changing = [i for i in data.scheduled if self.inputs[i] in behind]
        if changing:
            fed = ", ".join(str(self.specs[i]) for i in changing)
            warn(
                f"{data.name} feeds {fed} from a function of the epoch, and {name!r} depends on "
                "it: validations are compared with one another, and should measure one thing. "
                "Give valid= with a number there, or monitor= another one."
            )

    def check_whole(self, batch: Batch, where: str) -> None:
        """Refuse a batch whose number of samples does not fit what is carried, or the reverse.

        Raises
        ------
        ValueError
            If they do not fit.
        """
        demands = self.demands(_full_shapes(batch))
        if demands.suspect:
            self.refuse(batch, where, demands)
        after = demands.reading.outputs[-len(self.carried) :]
        for variable, new in zip(self.carried, after, strict=False):  # none of a graph not read
            shape = variable.get_value(borrow=True).shape
            if any(n not in (None, m) for m, n in zip(shape, new.type.shape, strict=True)):
                raise ValueError(
                    f"{self.names[variable]} of shape {shape} is given the value of shape "
                    f"{new.type.shape} by {where}: it keeps its shape. Mend its expression, or "
                    "its first value."
                )

    def demands(self, shapes: Shapes) -> Demands:
        """What the graph demands of data of these shapes."""
        if shapes not in self._known and len(self._known) >= SHAPES:
            shapes = tuple((None,) * len(shape) for shape in shapes)
        if shapes not in self._known:
            self._known[shapes] = Demands(self, self._read(shapes))
        return self._known[shapes]

    def forget(self) -> None:
        """Read the graph anew when it is needed: a shared variable has another shape."""
        self._known.clear()

    def _read(self, shapes: Shapes) -> Reading:
        known: dict[Any, Any] = dict(zip(self.inputs, shapes, strict=True))
        for variable in self.shared:
            if hasattr(variable.type, "ndim"):
                known[variable] = np.shape(variable.get_value(borrow=True))
        try:
            reading = read_bounds(self.outputs, self.inputs, known, self.names)
        except Exception:  # a graph like no other: its data are judged by rehearsal
            log.debug("the graph could not be read", exc_info=True)
            return Reading([], {}, None, (), ("the loss",))
        if not self._warned:
            self._warned = warn_of_outer_broadcast(reading.outputs[0], {})
        return reading

    def refuse(self, batch: Batch, where: str, demands: Demands | None = None) -> None:
        """Compute the outputs of a batch uncompiled, and say what fails.

        Raises
        ------
        ValueError
            If an operation fails.
        """
        demands = demands or self.demands(_full_shapes(batch))
        if failure := rehearse(self.inputs, self.outputs, batch, self.names):
            raise ValueError(demands.misfit(where, failure))
        demands.suspect = False

    def explain(self, batch: Batch, error: Exception) -> None:
        """Say in the user's words why a call failed, if the batch is to blame.

        Raises
        ------
        ValueError
            If the same fails uncompiled.
        """
        if failure := rehearse(self.inputs, self.outputs, batch, self.names):
            demands = self.demands(_full_shapes(batch))
            raise ValueError(demands.misfit("a batch", failure)) from error

    def explained(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose errors are said in the user's words."""

        def call(*batch: Any) -> Any:
            try:
                return function(*batch)
            except Exception as error:
                self.explain(list(batch), error)
                raise

        return call

    def check_declared(
        self, name: str, axis: int, shapes: Sequence[tuple[int, ...]], samples: int | None = None
    ) -> None:
        """Compare shapes with those that inputs declare, which compiled code relies on.

        Raises
        ------
        ValueError
            If they differ.
        """
        for variable, spec, shape in zip(self.inputs, self.specs, shapes, strict=True):
            for place, declared in enumerate(spec.shape or ()):
                given = shape[place] if samples is None or place != axis else samples
                if declared not in (None, given):
                    raise ValueError(
                        f"{name}: {self.names[variable]} is given batches of length {given} along "
                        f"axis {place}, and declares {declared}. Compiled code relies on what an "
                        "input declares. Give such data, or declare None there."
                    )

    def _look_at_indices(
        self, data: BoundDataset, source: ArraySource, checks: Sequence[IndexCheck]
    ) -> None:
        for selection in parts(source):
            batch = source.take(selection)
            for check in checks:
                if check.fails(batch):
                    if check.is_scalar:
                        self.judge(check, batch, source.take(slice(0, 1)), data.name, data.axis)
                        continue
                    row = check.first_row(batch, data.axis)
                    if row is None:
                        continue
                    # The whole minibatch is judged: it may take others along.
                    size = source.n_samples if data.sampler is None else data.sampler.batch_size
                    first = (selection.start + row) // size * size
                    minibatch = source.take(slice(first, min(first + size, source.n_samples)))
                    place = f"{data.name}, row {selection.start + row}"
                    self.judge(check, _sample(batch, row, data.axis), minibatch, place, data.axis)

    def judge(self, check: IndexCheck, sample: Batch, batch: Batch, place: str, axis: int) -> None:
        """Refuse a batch for an index, if it fails uncompiled too."""
        if rehearse(self.inputs, self.outputs, batch, self.names) is not None:
            raise ValueError(check.explain(sample, place, axis))
        self.forget()

    def _look_for_infinite(self, data: BoundDataset, source: ArraySource, train: bool) -> None:
        for variable, column in zip(self.inputs, source.columns, strict=True):
            if not column.shape:  # a scalar may be infinite, as a bound is, and NaN was refused
                continue
            if self._finite.get(id(column.values)) is column.values:
                continue  # a user's loop may call minimize for each epoch
            found = first_infinite(column)
            if found is None:
                self._finite[id(column.values)] = column.values
                continue
            place, value = found
            row = place[data.axis]
            size = source.n_samples if data.sampler is None else data.sampler.batch_size
            first = row // size * size
            minibatch = source.take(slice(first, min(first + size, source.n_samples)))
            where = f"{data.name}, row {row}{_columns(place, data.axis)} of {self.names[variable]}"
            if self._is_finite(minibatch, train):
                log.info("%s is %s, and the loss is finite: it is taken to be masked", where, value)
                continue
            raise ValueError(
                f"{where} is {value}. A loss of NaN or infinite data is not finite, unless it "
                "masks them, as by pt.switch(pt.isnan(x), 0, x). Clean the data, or mask them."
            )

    def _is_finite(self, batch: Batch, train: bool) -> bool:
        wanted = [self.outputs[0], *(self.gradients if train else ())]
        try:
            values = evaluator(self.inputs, wanted)(*batch)
        except Exception:  # cannot be told: training will
            return True
        return all(bool(np.isfinite(np.asarray(value)).all()) for value in values)


class Demands:
    """What a graph demands of data of certain shapes, ready to be compared.

    Attributes
    ----------
    reading : Reading
        As it was read from the graph.
    checks : list of IndexCheck
        One for each index.
    suspect : bool
        Whether operands seem not to fit, and no rehearsal has shown that they do.
    """

    def __init__(self, inspection: Inspection, reading: Reading) -> None:
        self.reading = reading
        self.checks = [IndexCheck(index, inspection, reading) for index in reading.indices]
        self.suspect = reading.conflict is not None
        self._carried = inspection.carried

    def misfit(self, where: str, failure: Conflict) -> str:
        """Say what fails: inside a scan only the reading knows what meets what."""
        conflict = self.reading.conflict if failure.inside and self.reading.conflict else failure
        shapes = [f"{label(v)} {v.get_value(borrow=True).shape}" for v in self._carried]
        rows = f" Every minibatch has the rows of what is carried: {', '.join(shapes)}."
        return f"{where} does not fit the loss: {conflict}{rows if shapes else ''}"


class BatchInspection:
    """Compare batches with what the graph demands, as they come.

    Parameters
    ----------
    inspection : Inspection
        That of the graph.
    name : str
        What errors call the data.
    axis : int
        The axis that counts samples.
    rehearsed : bool
        Whether a batch was computed uncompiled already, where the graph needs that.
    """

    def __init__(
        self, inspection: Inspection, name: str, axis: int = 0, rehearsed: bool = False
    ) -> None:
        self.inspection, self.name, self.axis = inspection, name, axis
        self._rehearsed = rehearsed
        self._seen: Shapes | None = None

    def __call__(
        self, batch: Batch, number: int | None = None, selection: Selection | None = None
    ) -> None:
        """Check one batch.

        Raises
        ------
        ValueError
            If it does not fit the graph.
        """
        shapes = _shapes([array.shape for array in batch], self.axis)
        demands = self.inspection.demands(shapes)
        new = _full_shapes(batch) if self.inspection.carried else shapes
        if new != self._seen:
            self._look_at_shapes(batch, demands, self._called(number))
            self._seen = new
        for check in demands.checks:
            if check.fails(batch):
                self._refuse(check, batch, number, selection)

    def _look_at_shapes(self, batch: Batch, demands: Demands, where: str) -> None:
        self.inspection.check_declared(where, self.axis, [array.shape for array in batch])
        if demands.suspect or (demands.reading.unbounded and not self._rehearsed):
            self.inspection.refuse(batch, where, demands)
            self._rehearsed = True
        if self.inspection.carried:
            self.inspection.check_whole(batch, where)

    def _refuse(
        self, check: IndexCheck, batch: Batch, number: int | None, selection: Selection | None
    ) -> None:
        place, sample = self._called(number), batch
        row = None if check.is_scalar else check.first_row(batch, self.axis)
        if row is not None:
            sample = _sample(batch, row, self.axis)
            if isinstance(selection, slice):
                place = f"{self.name}, row {selection.start + row}"
            elif selection is not None:
                place = f"{self.name}, row {selection[row]}"
            else:
                place = f"{place}, row {row}"
        self.inspection.judge(check, sample, batch, place, self.axis)

    def _called(self, number: int | None) -> str:
        return self.name if number is None else f"batch {number} of {self.name}"


class IndexCheck:
    """Whether integers that a batch gives index what is there.

    Parameters
    ----------
    index : Index
        What they index.
    inspection : Inspection
        That of the graph.
    reading : Reading
        Where the index was found.
    """

    def __init__(self, index: Index, inspection: Inspection, reading: Reading) -> None:
        self.index = index
        self.names = [inspection.names[inspection.inputs[place]] for place in index.inputs]
        # Computed from inputs without dimensions alone, it belongs to no sample.
        self.is_scalar = not any(inspection.inputs[place].type.ndim for place in index.inputs)
        leaf = without_dimensions(index.values)
        places = [reading.leaves.get(variable) for variable in inspection.inputs]
        # Most are an input itself.
        self.place = places.index(leaf) if leaf in places else None
        self._values: Callable[[Batch], Any] = self._given
        if self.place is None:
            self._values = _expression(index, inspection, reading)

    def _given(self, batch: Batch) -> Any:
        return batch[self.place]  # type: ignore[index]

    def fails(self, batch: Batch) -> bool:
        """Whether an index is out of range."""
        values, extent = self._values(batch), self.index.extent
        return bool(values.size and (values.min() < -extent or values.max() >= extent))

    def first_row(self, batch: Batch, axis: int) -> int | None:
        """The first sample with such an index; None if no sample has one alone."""
        low, high = 0, max(array.shape[axis] for array in batch if array.ndim > axis)
        while high - low > 1:
            middle = (low + high) // 2
            if self.fails(_samples(batch, slice(low, middle), axis)):
                high = middle
            elif self.fails(_samples(batch, slice(middle, high), axis)):
                low = middle
            else:
                return None
        return low

    def explain(self, batch: Batch, place: str, axis: int) -> str:
        """Say what is wrong with a batch, the sample that is to blame if that is known."""
        values, extent = np.asarray(self._values(batch)), self.index.extent
        bad = tuple(np.argwhere((values < -extent) | (values >= extent))[0])
        if self.place is not None:
            place += _columns(bad, axis)
            what = f"{self.names[0]} is {values[bad]}"
        else:
            what = f"an index computed from {' and '.join(self.names) or 'shapes'} is {values[bad]}"
        return (
            f"{place}: {what}, and axis {self.index.axis} of {self.index.tensor} has {extent} "
            f"entries. An index is from {-extent} to {extent - 1}. Correct the data (labels and "
            "words are counted from 0), or enlarge what they index."
        )


def _expression(index: Index, inspection: Inspection, reading: Reading) -> Callable[[Batch], Any]:
    """A function of a batch that computes an index from what it needs of it."""
    needed = set(variables_in_order([index.values]))
    leaves = {v: leaf for v, leaf in reading.leaves.items() if leaf in needed}
    places = [place for place, v in enumerate(inspection.inputs) if v in leaves]
    shared = [v for v in inspection.shared if v in leaves]
    variables = [*(inspection.inputs[place] for place in places), *shared]
    function = evaluator([leaves[v] for v in variables], [index.values])

    def values(batch: Batch) -> Any:
        constant = [v.get_value(borrow=True) for v in shared]
        return np.asarray(function(*(batch[place] for place in places), *constant)[0])

    return values


def _batch_sizes(data: BoundDataset) -> list[int]:
    """The numbers of samples that batches of arrays have, that of a shorter last one behind."""
    assert data.sampler is not None
    size, rest = data.sampler.batch_size, data.sampler.n_samples % data.sampler.batch_size
    return [size, rest] if rest else [size]


def _input_name(variable: Any, place: int) -> str:
    return f"input {variable.name!r}" if variable.name else f"input {place}"


def _full_shapes(batch: Batch) -> Shapes:
    return tuple(tuple(array.shape) for array in batch)


def _shapes(shapes: Sequence[tuple[int, ...]], axis: int) -> Shapes:
    """Shapes without the number of samples."""
    return tuple([(*shape[:axis], None, *shape[axis + 1 :])[: len(shape)] for shape in shapes])


def _sample(batch: Batch, row: int, axis: int) -> Batch:
    return _samples(batch, slice(row, row + 1), axis)


def _samples(batch: Batch, selection: slice, axis: int) -> Batch:
    place = (slice(None),) * axis + (selection,)
    return [array[place] if array.ndim > axis else array for array in batch]


def _columns(place: Sequence[int], axis: int) -> str:
    """Where in a sample an entry is."""
    rest = [int(i) for dimension, i in enumerate(place) if dimension != axis]
    if not rest:
        return ""
    return f", column {rest[0]}" if len(rest) == 1 else f", entry {rest}"
