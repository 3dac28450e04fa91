"""What happens to one minibatch: the compiled update, the compiled evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.random.type import RandomType

from downhill_rms.compiling import (
    TIERED,
    CompiledFunction,
    TieredFunction,
    UncompiledFunction,
    check_mode,
    check_stackable,
    is_jax,
    prepare_scans,
    quick_building,
    stack_steps,
)
from downhill_rms.data import Batch, BoundDataset, Dataset, generator_state
from downhill_rms.rule import (
    Hyperparameters,
    LossGraph,
    State,
    Update,
    check_flag,
    check_number,
    fingerprint,
    gradients,
    read_outputs,
    refuse_unknown,
    rmsprop_updates,
    scheduled,
    telemetry_names,
    update_telemetry,
    warn_of_suspects,
)
from downhill_rms.training.divergence import (
    Divergence,
    describe_infinite,
    explain_infinite,
    find_infinite,
)
from downhill_rms.training.inspection import BatchInspection, Inspection
from downhill_rms.training.options import OPTIONS
from downhill_rms.training.parameters import Arrays, Carried, NamedVariables, Parameters
from downhill_rms.training.placement import Placement
from downhill_rms.watching import named_expressions

# Beside a generator's index in the seeds of evaluations: a user's own small seeds are others.
EVALUATION = 0x65766C


class Steps:
    """A loss graph and RMSProp, as functions of a minibatch.

    Parameters
    ----------
    graph : LossGraph
        The loss.
    monitors : dict of str to Variable
        Further outputs.
    monitor_gradients : bool
        Whether the norms of the gradients are outputs too.
    monitor_updates : bool
        Whether an update's telemetry is among its outputs too.
    mode : str or Mode, optional
        How PyTensor compiles.
    placement : Placement
        Where arrays live, and who decides.

    Attributes
    ----------
    names, update_names : list of str
        Names of the outputs of an evaluation and of an update, ``"loss"`` first.
    specs : list of InputSpec
        What the inputs accept.
    parameters : Parameters
        Values of the parameters.
    assigned : NamedVariables
        Values of the other variables that an update assigns.
    carried : Carried
        Values that one minibatch hands to the next.
    state : State
        Accumulators.
    hyperparameters : Hyperparameters
        Those in force.
    update_count : int
        Updates made so far.
    updates_per_call : int
        Above 1, an update is given a stack of minibatches.
    generators : dict of str to SharedVariable
        Random generators, by name.
    say : callable
        Given a line for the user before something is compiled.
    """

    def __init__(
        self,
        graph: LossGraph,
        monitors: dict[str, Any],
        monitor_gradients: bool,
        monitor_updates: bool,
        mode: Any,
        placement: Placement,
    ) -> None:
        check_mode(mode)
        self.placement, mode = placement, placement.mode(mode)
        self._given = graph
        graph, monitors = _prepared(graph, monitors, mode)
        self.graph, self.mode = graph, mode
        self.gradients = gradients.differentiate(graph.loss, graph.params)
        warn_of_suspects(graph, self.gradients)
        if check_flag("monitor_gradients", monitor_gradients):
            named = zip(graph.param_names, self.gradients, strict=True)
            norms = [(f"grad({name})", gradients.norm([g])) for name, g in named]
            monitors = named_expressions([*monitors.items(), *norms])
        self.names = ["loss", *monitors]
        self.monitor_updates = check_flag("monitor_updates", monitor_updates)
        telemetry = telemetry_names(graph.param_names) if monitor_updates else []
        self.update_names = [*self.names, *telemetry]
        self.outputs = [graph.loss, *monitors.values()]
        placement.begin((*graph.params, *graph.assigned, *graph.carried))
        self.parameters = Parameters(graph.params, graph.param_names, placement.host)
        self.assigned = NamedVariables(graph.assigned, graph.assigned_names, placement.host)
        self.carried = Carried(graph.carried, graph.carried_names, placement.host)
        # One that begins infinite, as a running minimum does, is meant so.
        self._finite = {
            f"variable {name!r}": variable
            for group in (self.assigned, self.carried)
            for name, variable in group.variables.items()
            if not describe_infinite(name, variable.get_value(borrow=True))
        }
        self.state = State(graph.params, graph.param_names)
        self.hyperparameters = Hyperparameters()
        self.update_count = 0
        generators = [v for v, _ in graph.updates if isinstance(v.type, RandomType)]
        placement.begin(generators)
        self.generators = {f"{i}_{v.name or 'unnamed'}": v for i, v in enumerate(generators)}
        self.say: Callable[[str], Any] = str  # nobody listens yet
        evaluation = (graph.inputs, self.outputs, graph.evaluation_updates)
        self._evaluation = self._function("evaluation", *evaluation)
        self.updates_per_call = 1
        self._updates: dict[Any, CompiledFunction] = {}  # by structure, and whether stacked
        self._update: CompiledFunction | None = None
        self._variants: dict[Any, Steps] = {}  # by structure
        self._predictions: dict[Any, tuple[CompiledFunction, Inspection]] = {}  # by outputs
        self._schedules: dict[Any, Any] = {}  # functions of the update count
        self.inspection = Inspection.of_graph(graph, self.outputs, self.gradients)
        self.specs = self.inspection.specs
        placement.check(self.specs)
        self._look = BatchInspection(self.inspection, "the batch")

    def variant(self, structure: Any) -> Steps:
        """The same loss with accumulators, counts and updates of its own, as though never trained.

        The values of all other variables, and the evaluation, are those of both. One of a
        structure is kept, with what it has compiled.
        """
        if structure not in self._variants:
            kept = copy.copy(self)
            kept.state = State(self.graph.params, self.graph.param_names)
            kept._updates, kept._update = {}, None
            kept.update_count, kept.updates_per_call = 0, 1
            self._variants[structure] = kept
        steps = self._variants[structure]
        steps.mode, steps.hyperparameters = self.mode, self.hyperparameters
        return steps

    def bind(
        self, dataset: Dataset, *, train: bool = False, finite: bool = False, epoch: int = 0
    ) -> BoundDataset:
        """Check and cast data for the inputs, and compare them with what the graph demands."""
        bound = self.inspection.bind(dataset, train=train, finite=finite, epoch=epoch)
        return self.placement.data(bound, train)

    def _function(
        self, name: str, inputs: Sequence[Any], outputs: Sequence[Any], updates: Sequence[Update]
    ) -> CompiledFunction:
        kind = TieredFunction if self.mode == TIERED else CompiledFunction
        return kind(name, inputs, outputs, updates, self.mode, lambda text: self.say(text))

    def prediction(self, outputs: Sequence[Any]) -> tuple[CompiledFunction, Inspection]:
        """A function of some outputs, compiled once, and what it demands of its data.

        Its inputs are in the order of the loss's, those that only the outputs use behind them.
        """
        key = tuple(outputs)
        if key not in self._predictions:
            expressions = dict(self._given.updates)
            carried = [(variable, expressions[variable]) for variable in self._given.carried]
            inputs, updates = read_outputs(outputs, carried)
            known = [variable for variable in self.graph.inputs if variable in inputs]
            inputs = [*known, *(variable for variable in inputs if variable not in known)]
            function = self._function("prediction", inputs, outputs, updates)
            handed = {v: new for v, new in updates if v in self._given.carried}
            names = self.parameters.variables
            inspection = Inspection(inputs, outputs, names, carried=handed)
            self._predictions[key] = function, inspection
        return self._predictions[key]

    @cached_property
    def fingerprint(self) -> str:
        """What tells the loss from another, in any process."""
        return fingerprint(self._given)

    def settle(self) -> None:
        """Use one compiled form from the next call on, where the mode is ``"tiered"``."""
        if self.mode == TIERED:
            self.mode = TieredFunction.compiled_mode
            predictions = (function for function, _ in self._predictions.values())
            others = (*self._updates.values(), *predictions)
            for function in (self._evaluation, *others):
                assert isinstance(function, TieredFunction)
                function.settle()

    def changed(self, keywords: Mapping[str, Any]) -> Hyperparameters:
        """The hyperparameters in force with some changed."""
        refuse_unknown(keywords, [*Hyperparameters.names(), *OPTIONS])
        return self.hyperparameters.replace(**keywords)

    def use(self, keywords: Mapping[str, Any], updates_per_call: int | None = None) -> None:
        """Put changed hyperparameters in force; a new structure is compiled at the next update."""
        new = self.changed(keywords)
        if new.has_schedule and new.learning_rate not in self._schedules:
            check_number("learning_rate", self._scheduled(new.learning_rate, self.update_count + 1))
        if updates_per_call is not None:
            if updates_per_call > 1:
                check_stackable(self.graph.inputs)
            self.updates_per_call = updates_per_call
        self.state.assign(new)
        self.hyperparameters = new
        key = (new.structure, self.updates_per_call > 1)
        if key not in self._updates:
            with quick_building():
                self._updates[key] = self._function("RMSProp update", *self._call(new))
        self._update = self._updates[key]
        # Only functions that need the count advance it by themselves.
        self.state.update_count.set_value(np.array(self.update_count, dtype="int64"))

    def _call(self, new: Hyperparameters) -> tuple[Sequence[Any], Sequence[Any], Sequence[Update]]:
        """Inputs, outputs and updates of one call."""
        rule = self._rule(new, self.state)
        telemetry = update_telemetry(rule, new, self.state) if self.monitor_updates else []
        call = (self.graph.inputs, [*self.outputs, *telemetry], [*rule, *self.graph.updates])
        return stack_steps(*call) if self.updates_per_call > 1 else call

    @property
    def learning_rate(self) -> float:
        """The learning rate of the latest update."""
        learning_rate: Any = self.hyperparameters.learning_rate
        if isinstance(learning_rate, float):
            return learning_rate
        if not self.hyperparameters.has_schedule:
            return float(learning_rate.get_value())
        return self._scheduled(learning_rate, self.update_count)

    def _scheduled(self, schedule: Any, update: int) -> float:
        """The learning rate that a schedule gives an update."""
        if schedule not in self._schedules:
            t = pt.lscalar("t")
            self._schedules[schedule] = UncompiledFunction([t], [scheduled(schedule, t)])
        (value,) = self._schedules[schedule](np.array(update, dtype="int64"))
        return float(value)

    def new_updates(self, hyperparameters: Hyperparameters) -> list[Update]:
        """Updates with accumulators and numbers of their own."""
        state = State(self.graph.params, self.graph.param_names)
        return [*self._rule(hyperparameters, state), *self.graph.updates]

    def put_back(self, parameters: Arrays, assigned: Arrays) -> None:
        """Set the parameters and the assigned variables to values of one moment."""
        self.parameters.put_back(parameters)
        self.assigned.put_back(assigned)

    def generator_states(self) -> dict[str, str]:
        """States of the random generators, as JSON, by name."""
        return {n: generator_state(v.get_value(borrow=True)) for n, v in self.generators.items()}

    def set_generators(self, generators: Mapping[str, np.random.Generator]) -> None:
        """Set random generators, by name."""
        for name, generator in generators.items():
            self.generators[name].set_value(generator, borrow=True)

    def generator_keys(self) -> dict[str, list[np.ndarray]]:
        """States of the generators that the update in JAX mode keeps for itself."""
        return {"update": [] if self._update is None else self._update.keys}

    def set_generator_keys(self, keys: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Set states that `generator_keys` returned."""
        if self._update is not None:
            self._update.keys = keys["update"]

    @contextmanager
    def same_draws(self) -> Iterator[None]:
        """Evaluate with the same random numbers each time; those of training stay where they are.

        Two evaluations then differ by the parameters alone, and not by the luck of a draw.
        """
        updates = self.graph.evaluation_updates
        generators = [v for v, _ in updates if isinstance(v.type, RandomType)]
        values = [variable.get_value(borrow=True) for variable in generators]
        seeds = [np.random.SeedSequence([EVALUATION, index]) for index in range(len(values))]
        for variable, value, seed in zip(generators, values, seeds, strict=True):
            kind = type(value.bit_generator)
            variable.set_value(np.random.Generator(kind(seed)), borrow=True)
        if generators and is_jax(self.mode):  # whose functions keep what they have drawn
            self._evaluation.keys = [seed.generate_state(2) for seed in seeds]
        try:
            yield
        finally:
            for variable, value in zip(generators, values, strict=True):
                variable.set_value(value, borrow=True)

    def _rule(self, hyperparameters: Hyperparameters, state: State) -> list[Update]:
        return rmsprop_updates(
            self.graph.params,
            self.gradients,
            hyperparameters,
            state,
            from_new_mean=is_jax(self.mode),  # XLA then computes an update in place
        )

    def update_once(self, batch: Batch) -> list[Any]:
        """Make one update, however many a call makes; returns the outputs before it."""
        self._look(batch)
        if self.updates_per_call == 1:
            return self.update(self.placement.batch(batch))
        stack = [array[None] for array in batch] or [np.zeros(1, dtype="int64")]
        return [values[0] for values in self.update(stack)]

    def _of_stack(self, batch: Batch, index: int) -> Batch:
        """One minibatch of a stack, which without inputs has an array that is none of theirs."""
        host = self.placement.host
        return [np.asarray(host(array[index])) for array in batch[: len(self.specs)]]

    def update(self, batch: Batch) -> list[Any]:
        """Make one update, or one for each of a stack of minibatches; returns the outputs before.

        The first update is taken back, with an error, if the loss was not finite.
        """
        if self._update is None:
            self.use({})
        assert self._update is not None
        if self.update_count == 0:
            outputs = self._first_update(self._update, batch)
        else:
            try:
                outputs = self._update(*batch)
            except Exception as error:
                self._explain(error, batch, self.updates_per_call > 1)
                raise
        self.update_count += 1 if self.updates_per_call == 1 else len(outputs[0])
        return outputs

    def _first_update(self, update: CompiledFunction, batch: Batch) -> list[Any]:
        parameters, assigned = self.parameters.copy(), self.assigned.copy()
        carried = self.carried.copy()
        try:
            outputs = update(*batch)
        except Exception as error:
            self._explain(error, batch, self.updates_per_call > 1)
            raise
        loss = outputs[0] if self.updates_per_call == 1 else outputs[0][0]
        if not math.isfinite(float(loss)):
            self.put_back(parameters, assigned)
            self.carried.put_back(carried)
            self.state.reset()
            first = batch if self.updates_per_call == 1 else self._of_stack(batch, 0)
            self.refuse_infinite(loss, first, "the first training batch")
        return outputs

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averages of the parameters in their place for a while, if they are kept."""
        averages = self.state.averages() if self.hyperparameters.average else {}
        pairs = [(self.parameters.variables[name], average) for name, average in averages.items()]
        _exchange(pairs)
        try:
            yield
        finally:
            _exchange(pairs)

    def evaluate(self, batch: Batch) -> list[Any]:
        """The outputs, with the parameters as they are."""
        try:
            return self._evaluation(*batch)
        except Exception as error:
            self._explain(error, batch)
            raise

    def _explain(self, error: Exception, batch: Batch, stacked: bool = False) -> None:
        """Raise what a backend raised in the user's words, where a batch is to blame."""
        if self.placement.several:  # of the batch only a part is here, and others may not wait
            return
        count = len(batch[0]) if stacked else 0
        for one in [self._of_stack(batch, i) for i in range(count)] or [batch]:
            self.inspection.explain(one, error)

    def refuse_infinite(self, loss: Any, batch: Batch, where: str) -> None:
        """Raise if a loss is not finite, with what it was computed from."""
        if math.isfinite(float(loss)):
            return
        variables = self.assigned.variables | self.carried.variables
        assigned = {f"variable {n!r}": v.get_value(borrow=True) for n, v in variables.items()}
        raise ValueError(
            f"The loss is {float(loss)} on {where}: it is finite before training starts. "
            f"{explain_infinite(self._inputs(batch) | self._parameters() | assigned)}."
        )

    def diverge(
        self, batch: Batch | None, outputs: Sequence[Any] = (), number: int | None = None
    ) -> Divergence | None:
        """What is not finite after a call, or in the parameters alone; None if nothing is."""
        if outputs and np.ndim(outputs[0]):
            bad = int(np.argmin(np.isfinite(outputs[0])))
            outputs = [values[bad] for values in outputs]
            batch = batch and self._of_stack(batch, bad)
            number = None if number is None else number + bad
        values = dict(zip(self.update_names, map(float, outputs), strict=bool(outputs)))
        arrays = {} if batch is None else self._inputs(batch)
        host, accumulators = self.placement.host, self.state.accumulators.items()
        arrays |= {f"accumulator {n!r}": host(v.get_value(borrow=True)) for n, v in accumulators}
        finite = {name: v.get_value(borrow=True) for name, v in self._finite.items()}
        found = find_infinite(values, arrays | self._parameters() | finite)
        return Divergence(self.update_count, found, number) if found else None

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        host = self.placement.host
        return {f"input {spec}": host(a) for spec, a in zip(self.specs, batch, strict=True)}

    def _parameters(self) -> dict[str, Any]:
        host, variables = self.placement.host, self.parameters.variables.items()
        return {f"parameter {n!r}": host(v.get_value(borrow=True)) for n, v in variables}


def _exchange(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Exchange the values of shared variables, without a copy."""
    for one, other in pairs:
        value, others = one.get_value(borrow=True), other.get_value(borrow=True)
        one.set_value(others, borrow=True)
        other.set_value(value, borrow=True)


def _prepared(
    graph: LossGraph, monitors: dict[str, Any], mode: Any
) -> tuple[LossGraph, dict[str, Any]]:
    """The same loss and monitors, their scans rewritten as far as the mode has it so."""
    expressions = [graph.loss, *monitors.values()]
    expressions += [new for _, new in (*graph.updates, *graph.evaluation_updates)]
    new = dict(zip(expressions, prepare_scans(expressions, mode), strict=True))
    graph = replace(
        graph,
        loss=new[graph.loss],
        updates=tuple((v, new[value]) for v, value in graph.updates),
        evaluation_updates=tuple((v, new[value]) for v, value in graph.evaluation_updates),
    )
    return graph, {name: new[monitor] for name, monitor in monitors.items()}
