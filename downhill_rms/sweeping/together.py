"""Runs that go together: one call for all of them, with a leading axis of runs in every variable.

PyTensor's ``vectorize_graph`` makes the update of one run into that of many. Each run keeps its own
loop: the first that asks for an update has it made for all, and the others are handed theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.builders import OpFromGraph
from pytensor.graph.replace import vectorize_graph
from pytensor.scan.op import Scan
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.type import DenseTensorType, TensorType

from downhill_rms.compiling import stack_steps
from downhill_rms.data import Batch, BoundDataset
from downhill_rms.rule import Hyperparameters, label, variables_in_order
from downhill_rms.saving import Checkpoint
from downhill_rms.sweeping.members import Member, Shared
from downhill_rms.sweeping.minibatches import SharedDataset, stack_length
from downhill_rms.training import Loop, Run, Steps
from downhill_rms.training.signals import SharedSignals, StopSignals
from downhill_rms.watching import Values


def obstacle(steps: Steps) -> str | None:
    """Why the runs of a loss cannot go together; None if they can."""
    graph = steps.graph
    if graph.carried:
        return f"{', '.join(map(label, graph.carried))} is carried from minibatch to minibatch"
    updated = [v for v, _ in (*graph.updates, *graph.evaluation_updates)]
    if random := [v for v in updated if isinstance(v.type, RandomType)]:
        return f"the random generator {label(random[0])} would be the same for all"
    expressions = [*steps.outputs, *steps.gradients, *(new for _, new in graph.updates)]
    for variable in variables_in_order(expressions):
        if isinstance(variable.type, TensorType) and not isinstance(variable.type, DenseTensorType):
            return f"{variable.type} is sparse"
        op = None if variable.owner is None else variable.owner.op
        # Softmax and its like are of a subclass, and PyTensor knows what to do with them.
        if isinstance(op, Scan) or type(op) is OpFromGraph:
            return f"{type(op).__name__} is slow with an axis of runs"
    for variable in (*graph.inputs, *steps.parameters.variables.values(), *graph.assigned):
        if not isinstance(variable.type, DenseTensorType):
            return f"{label(variable)} is no dense array"
    return None


class Together:
    """The variables and functions of runs that go together.

    Parameters
    ----------
    steps : Steps
        What the runs have in common.
    given : Hyperparameters
        Those of one of them.
    varying : sequence of str
        The numbers in which they differ.
    updates_per_call : int
        Minibatches that a call takes.

    Attributes
    ----------
    done : int
        Stacks of minibatches that the values of all runs have been through.
    """

    def __init__(
        self, steps: Steps, given: Hyperparameters, varying: Sequence[str], updates_per_call: int
    ) -> None:
        self.per_call = updates_per_call
        single = copy.copy(steps)
        single.updates_per_call = 1
        inputs, outputs, updates = single._call(given)
        changed = [variable for variable, _ in updates]
        numbers = [steps.state.numbers[name] for name in varying]
        held = dict.fromkeys([*changed, *numbers, steps.state.update_count])
        self.wide = {variable: _with_axis(variable) for variable in held}
        self._storages = [variable.container.storage for variable in self.wide]
        self._averages = steps.state.averages() if given.average else {}
        self._parameters = steps.parameters.variables
        new = [v.type.filter_variable(value) for v, value in updates]
        vectors = vectorize_graph([*outputs, *new], self.wide)
        count = next(iter(self.wide.values())).shape[0]
        losses = [_with_runs(v, count) for v in vectors[: len(outputs)]]
        pairs = [
            (self.wide[v], _fitting(value, self.wide[v], count))
            for v, value in zip(changed, vectors[len(outputs) :], strict=True)
        ]
        call: Any = (list(inputs), losses, pairs)
        if updates_per_call > 1:
            call = stack_steps(*call)
        self._update = steps._function("RMSProp update of many runs", *call)
        monitors = [_with_runs(v, count) for v in vectors[: len(steps.outputs)]]
        self._evaluation = steps._function("evaluation of many runs", list(inputs), monitors, [])
        self._count = len(steps.specs)

    @classmethod
    def of(cls, steps: Steps, members: Sequence[Member], updates_per_call: int) -> Together:
        """Runs that go together from now on, by functions that are made once.

        Parameters
        ----------
        steps : Steps
            What the runs have in common.
        members : sequence of Member
            The runs, all of one structure, each with its values.
        updates_per_call : int
            Minibatches that a call takes.

        Raises
        ------
        Exception
            Of many kinds, if PyTensor cannot vectorise the graph.
        """
        numbers = [member.hyperparameters.numbers for member in members]
        varying = tuple(n for n in numbers[0] if len({given[n] for given in numbers}) > 1)
        known: dict[Any, Together] = vars(steps).setdefault("_together", {})
        key = (varying, updates_per_call)
        if key not in known:
            known[key] = cls(steps, members[0].hyperparameters, varying, updates_per_call)
        together = known[key]
        together.begin(members)
        return together

    def begin(self, members: Sequence[Member]) -> None:
        """Take the values of the runs, which no longer hold them."""
        for variable, wide in self.wide.items():
            values = [np.asarray(member.values.pop(variable)) for member in members]
            wide.container.storage[0] = np.stack(values).astype(variable.type.dtype, copy=False)
        self.rows = {member.name: row for row, member in enumerate(members)}
        self.length: int | None = None  # of the stacks
        self._left: set[str] = set()
        self._look_again()
        self.done = 0
        self._records: dict[int, Record] = {}
        self._evaluated: tuple[int, np.ndarray, dict[int, Any]] | None = None
        self._due = (-1, False)

    def end(self) -> None:
        """Let go of the values of all runs; the functions stay."""
        for wide in self.wide.values():
            storage = wide.container.storage
            storage[0] = np.array(np.asarray(storage[0])[:1])
        self._records, self._evaluated = {}, None
        self._look_again()

    def _look_again(self) -> None:
        """Forget the runs' parts of arrays that may have been replaced."""
        self._arrays = [np.asarray(wide.container.storage[0]) for wide in self.wide.values()]
        self._parts: dict[str, list[np.ndarray]] = {}

    def parts(self, whose: str) -> list[np.ndarray]:
        """A run's part of each wide variable; not copies."""
        if whose not in self._parts:
            row = self.rows[whose]
            self._parts[whose] = [array[row, ...] for array in self._arrays]
        return self._parts[whose]

    def show(self, whose: str) -> None:
        """Have the variables of one run hold its parts."""
        for storage, part in zip(self._storages, self.parts(whose), strict=True):
            storage[0] = part

    def set_row(self, whose: str, variable: Any, value: Any) -> None:
        """Give a variable of one run another value."""
        storage = self.wide[variable].container.storage
        if not (isinstance(storage[0], np.ndarray) and storage[0].flags.writeable):
            storage[0] = np.array(storage[0])  # JAX's cannot be written to
            self._look_again()
        storage[0][self.rows[whose], ...] = value

    def leave(self, whose: str, number: int) -> dict[Any, np.ndarray]:
        """Let a run go that has been handed so many stacks; its values."""
        values = {v: np.array(part) for v, part in zip(self.wide, self.parts(whose), strict=True)}
        self._left.add(whose)
        del self._parts[whose]
        for later in [n for n in self._records if n >= number]:
            self._hand_over(later)
        return values

    def _compact(self) -> None:
        """Go on without those that have left: nothing is compiled."""
        if not self._left:
            return
        kept = [whose for whose in self.rows if whose not in self._left]
        rows = [self.rows[whose] for whose in kept]
        for wide in self.wide.values():
            storage = wide.container.storage
            storage[0] = np.ascontiguousarray(np.asarray(storage[0])[rows])
        self.rows = {whose: row for row, whose in enumerate(kept)}
        self._left.clear()
        self._look_again()

    def update(self, whose: str, number: int, stack: Batch) -> list[np.ndarray]:
        """The outputs of one run for the ``number``-th stack of minibatches, one for each.

        Parameters
        ----------
        whose : str
            Which run asks.
        number : int
            How many it has asked for before.
        stack : list of ndarray
            The minibatches.
        """
        if number == self.done:
            self._compact()
            outputs = self._call(stack)
            self._look_again()
            self._records[number] = Record(outputs, dict(self.rows), len(self.rows))
            self.done += 1
        record = self._records[number]
        row = record.rows[whose]
        self._hand_over(number)
        return [column[:, row] for column in record.outputs]

    def _hand_over(self, number: int) -> None:
        """Let go of outputs when everybody has them."""
        record = self._records[number]
        record.left -= 1
        if not record.left:
            del self._records[number]

    def _call(self, stack: Batch) -> list[np.ndarray]:
        length = len(stack[0])
        arrays = stack[: self._count]
        if self.per_call > 1:
            parts = [
                self._update(*[array[first : first + self.per_call] for array in stack])
                for first in range(0, length, self.per_call)
            ]
            return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        update = self._update
        rows = [update(*[array[index, ...] for array in arrays]) for index in range(length)]
        return [np.asarray(column) for column in zip(*rows, strict=True)]

    def evaluate(
        self, whose: str, data: BoundDataset, epoch: int
    ) -> tuple[np.ndarray, tuple[int, Batch, float] | None]:
        """The means of one run over data, and the first batch whose loss is not finite."""
        if self._evaluated is None or self._evaluated[0] != self.done:
            self._evaluated = (self.done, *self._evaluate(data, epoch))
        _, means, infinite = self._evaluated
        return means[:, self.rows[whose]], infinite.get(self.rows[whose])

    def _evaluate(self, data: BoundDataset, epoch: int) -> tuple[np.ndarray, dict[int, Any]]:
        sums, weight = np.zeros(()), 0.0
        infinite: dict[int, Any] = {}
        data.begin_epoch(epoch)
        with self._averaged():
            for number, (batch, samples) in enumerate(data.in_order()):
                values = np.array([np.asarray(v) for v in self._evaluation(*batch)], dtype=float)
                for row in np.flatnonzero(~np.isfinite(values[0])):
                    infinite.setdefault(int(row), (number, batch, float(values[0, row])))
                sums = sums + samples * values
                weight += samples
        return sums / weight, infinite

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Have the averages of the parameters in their place for a while, if they are kept."""
        pairs = [(self._parameters[name], average) for name, average in self._averages.items()]
        storages = [tuple(self.wide[v].container.storage for v in pair) for pair in pairs]
        for one, other in storages:
            one[0], other[0] = other[0], one[0]
        try:
            yield
        finally:
            for one, other in storages:
                one[0], other[0] = other[0], one[0]

    def is_due(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether all runs save their states at the end of this epoch: all or none."""
        if self._due[0] != run.epochs:
            self._due = run.epochs, checkpoint.due(run.updates, run.epochs)
        return self._due[1]


@dataclass
class Record:
    """What a stack of minibatches gave.

    Attributes
    ----------
    outputs : list of ndarray
        A row for each minibatch, a column for each run.
    rows : dict of str to int
        The runs' columns.
    left : int
        How many have not asked for theirs yet.
    """

    outputs: list[np.ndarray]
    rows: dict[str, int]
    left: int


class StepsTogether(Steps):
    """One run's share in what happens to a minibatch."""

    together: Together
    number: int  # stacks so far
    whose: str

    @classmethod
    def of(cls, steps: Steps, together: Together, whose: str) -> StepsTogether:
        """The same steps, made for all runs at once."""
        new = cls.__new__(cls)
        vars(new).update(vars(steps), together=together, number=0, whose=whose)
        return new

    def use(self, keywords: Mapping[str, Any], updates_per_call: int | None = None) -> None:
        """Put numbers in force; what shapes the graph is that of all."""
        new = self.changed(keywords)
        if updates_per_call is not None:
            self.updates_per_call = updates_per_call
        self.state.assign(new)
        self.hyperparameters = new
        self.state.update_count.set_value(np.array(self.update_count, dtype="int64"))

    @property
    def is_behind(self) -> bool:
        """Whether the values are those after minibatches that this run has not been handed."""
        return self.number < self.together.done

    def update(self, batch: Batch) -> list[Any]:
        """The outputs of updates that are made for all runs."""
        outputs = self.together.update(self.whose, self.number, batch)
        self.number += 1
        self.together.show(self.whose)
        if self.update_count == 0:
            first = self._of_stack(batch, 0)
            self.refuse_infinite(outputs[0][0], first, "the first training batch")
        self.update_count += len(outputs[0])
        return outputs


class LoopTogether(Loop):
    """The loop of one run among several that go together."""

    steps: StepsTogether

    def evaluate(self, data: BoundDataset, must_be_finite: bool = False) -> Values:
        """Means over a data set, taken for all runs at once."""
        steps = self.steps
        means, infinite = steps.together.evaluate(steps.whose, data, self.epoch_count)
        if must_be_finite and infinite is not None:
            number, batch, loss = infinite
            steps.refuse_infinite(loss, batch, f"batch {number} of {data.name}")
        return dict(zip(steps.names, means.tolist(), strict=True))

    def _is_due(self, run: Run, checkpoint: Checkpoint) -> bool:
        # In the middle of an epoch the values are already those of its end.
        return run.means is None and self.steps.together.is_due(run, checkpoint)

    def _save(self, run: Run) -> None:
        if not self.steps.is_behind:  # or else the values are no state of this run
            super()._save(run)


class MemberTogether(Member):
    """One run among several that go together."""

    together: Together
    steps: StepsTogether
    _has_left: bool
    _own: list[Any]  # variables whose values are the same in all calls

    @classmethod
    def of(cls, member: Member, together: Together) -> MemberTogether:
        """The same run, which goes on with the others."""
        new = cls.__new__(cls)
        vars(new).update(vars(member), together=together, _has_left=False)
        new._own = [v for v in member.variables() if v not in together.wide]
        new.steps = new.trainer.steps = StepsTogether.of(member.steps, together, member.name)
        new.loop = new.trainer.loop = LoopTogether(new.steps)
        new.loop.waits = True
        return new

    def stack_length(self, data: SharedDataset) -> int:
        """How many minibatches the runs are handed together."""
        if self.together.length is None:
            self.together.length = stack_length(data)
        return self.together.length

    def heeds(self, signals: StopSignals) -> None:
        """End at what one takes note of for all runs, when this one is where the others are."""
        shared = SharedSignals(signals, lambda: self.steps.is_behind)
        self.steps.placement = Shared(shared)

    def catch_up(self) -> None:
        """Take note of what was computed for this run together with the others."""
        while self.steps.is_behind and self.turn():
            pass

    def put(self) -> None:
        """Have the variables hold this run's values."""
        super().put()
        if not self._has_left:
            self.together.show(self.name)

    def take(self) -> None:
        """Take note of values that were set meanwhile: updates are where they belong."""
        if self._has_left:
            super().take()
            return
        parts = self.together.parts(self.name)
        for variable, part in zip(self.together.wide, parts, strict=True):
            value = variable.container.storage[0]
            if value is not part and not np.may_share_memory(value, part):
                self.together.set_row(self.name, variable, value)
        self.values = {v: v.container.storage[0] for v in self._own}
        if self.loop.stop_reason is not None:
            self._has_left = True
            self.values |= self.together.leave(self.name, self.steps.number)


def _with_axis(variable: Any) -> Any:
    """A shared variable with an axis of runs in front."""
    value = np.asarray(variable.get_value(borrow=True), dtype=variable.type.dtype)
    shape = (None, *variable.type.shape)
    return pytensor.shared(value[None].copy(), name=variable.name, shape=shape)


def _with_runs(value: Any, count: Any) -> Any:
    """A monitor for each run, also where it is the same for all."""
    return value if value.type.ndim else pt.full((count,), value)


def _fitting(value: Any, variable: Any, count: Any) -> Any:
    """What is assigned, with an axis of runs in any case."""
    if value.type.ndim < variable.type.ndim:
        value = pt.broadcast_to(value, (count, *value.shape))
    return variable.type.filter_variable(value)
