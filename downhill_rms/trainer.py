"""The trainer: it compiles a loss and its RMSProp updates, and runs the one loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from downhill_rms import gradients
from downhill_rms.compiled import CompiledFunction
from downhill_rms.dataset import BoundDataset, Dataset, as_dataset
from downhill_rms.divergence import refuse_infinite_loss
from downhill_rms.graph import Update, read_graph, warn_of_outer_broadcast
from downhill_rms.history import History, Record, format_values
from downhill_rms.hyperparameters import Hyperparameters, refuse_unknown
from downhill_rms.monitors import PassMean, Values, named_expressions
from downhill_rms.parameters import Parameters
from downhill_rms.rmsprop import State, rmsprop_updates
from downhill_rms.run import Best, Run
from downhill_rms.sources import Batch, InputSpec, by_input, conform
from downhill_rms.stopping import Patience, StopReason

log = logging.getLogger(__name__)

RUN_OPTIONS = (
    "train", "valid", "max_updates", "max_epochs", "validate_every", "patience",
    "min_improvement", "restore_best", "batch_size",
)  # fmt: skip


class Trainer:
    """Minimise a symbolic loss by minibatch RMSProp.

    Parameters
    ----------
    loss : Variable
        A real floating-point scalar, a mean over the samples of a minibatch.
    params : sequence of SharedVariable, optional
        What to adjust; by default every floating-point shared variable of the loss, in the order
        of first use.
    inputs : sequence of Variable, optional
        What minibatches feed, in their order; by default the free variables of the loss, then
        of the monitors, in the order of first use.
    updates : mapping or iterable of (SharedVariable, Variable)
        Further assignments of a training step. Random generators need none.
    monitors : mapping or iterable of (str, Variable)
        Further scalars to be reported, means over a minibatch.
    monitor_gradients : bool
        Report the L2 norm of each parameter's gradient, before any clip, as ``grad(name)``.
    mode : str or Mode, optional
        How PyTensor compiles (``"NUMBA"``, ``"JAX"``, ``"FAST_COMPILE"``, ...).

    Attributes
    ----------
    graph : LossGraph
        Inputs, parameters and their names, updates.
    hyperparameters : Hyperparameters
        Those in force: what a call does not name stays as it was.
    parameters : Parameters
        The parameters' values, by name.
    state : State
        Accumulators, by name.
    update_count, epoch_count : int
        Minibatches and epochs trained on so far.
    history : History
        One record for each epoch so far.
    best : Best or None
        The best validation of the last run.
    stop_reason : StopReason or None
        Why the last run ended; None while it runs.

    Examples
    --------
    >>> import numpy as np, pytensor, pytensor.tensor as pt
    >>> x = pt.vector("x")
    >>> w = pytensor.shared(0.0, name="w")
    >>> trainer = Trainer(((x - w) ** 2).mean(), mode="FAST_COMPILE")
    >>> train, valid = trainer.minimize([np.full(8, 3.0)], learning_rate=0.1, max_epochs=200)
    >>> round(float(w.get_value()), 1)
    3.0
    """

    def __init__(
        self,
        loss: Any,
        params: Sequence[Any] | None = None,
        inputs: Sequence[Any] | None = None,
        updates: Iterable[Update] | Mapping[Any, Any] = (),
        monitors: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        monitor_gradients: bool = False,
        *,
        mode: Any = None,
    ) -> None:
        named = named_expressions(monitors)
        self.graph = read_graph(loss, params, inputs, updates, list(named.values()))
        self.gradients = gradients.differentiate(loss, self.graph.params)
        if monitor_gradients:
            norms = zip(self.graph.param_names, self.gradients, strict=True)
            named = named_expressions(
                [*named.items(), *((f"grad({name})", gradients.norm([g])) for name, g in norms)]
            )
        self.parameters = Parameters(self.graph.params, self.graph.param_names)
        self.state = State(self.graph.params, self.graph.param_names)
        self.hyperparameters = Hyperparameters()
        self.update_count = 0
        self.epoch_count = 0
        self.history = History()
        self.best: Best | None = None
        self.stop_reason: StopReason | None = None
        self.mode = mode
        self._specs = [_input_spec(variable) for variable in self.graph.inputs]
        self._names = ["loss", *named]
        self._outputs = [loss, *named.values()]
        self._evaluation = CompiledFunction(
            "evaluation", self.graph.inputs, self._outputs, self.graph.generator_updates, mode
        )
        self._update_functions: dict[Any, CompiledFunction] = {}
        self._shapes_seen = False

    # Hyperparameters and updates

    def get_updates(self, batch_size: int | None = None, **hyperparameters: Any) -> list[Update]:
        """Build the updates of one training step, for a function of your own.

        Parameters
        ----------
        batch_size : int, optional
            Accepted for programs written for ``downhill``; the updates do not depend on it.
        **hyperparameters
            As for `Hyperparameters`; those not named are as they are in this trainer.

        Returns
        -------
        list of (SharedVariable, Variable)
            Next values of the parameters, of new accumulators that start afresh and are shared
            with nothing else, of random generators, and the trainer's ``updates``.
        """
        state = State(self.graph.params, self.graph.param_names)
        new = self._changed(hyperparameters)
        return [*self._rule(new, state), *self.graph.updates]

    def _changed(self, keywords: Mapping[str, Any]) -> Hyperparameters:
        refuse_unknown(keywords, [*Hyperparameters.names(), *RUN_OPTIONS])
        return self.hyperparameters.replace(**keywords)

    def _rule(self, hyperparameters: Hyperparameters, state: State) -> list[Update]:
        return rmsprop_updates(self.graph.params, self.gradients, hyperparameters, state)

    def _use(self, keywords: Mapping[str, Any]) -> None:
        """Put hyperparameters in force, numbers at once and structure at the next update."""
        new = self._changed(keywords)
        self.state.assign(new)
        self.hyperparameters = new

    def _update_function(self) -> CompiledFunction:
        """The function of one training step for the hyperparameters in force."""
        structure = self.hyperparameters.structure
        if structure not in self._update_functions:
            updates = [*self._rule(self.hyperparameters, self.state), *self.graph.updates]
            self._update_functions[structure] = CompiledFunction(
                "RMSProp update", self.graph.inputs, self._outputs, updates, self.mode
            )
        # Only functions that need the count advance it.
        self.state.update_count.set_value(np.array(self.update_count, dtype="int64"))
        return self._update_functions[structure]

    # One minibatch, one pass

    def step(self, batch: Any = (), **hyperparameters: Any) -> Values:
        """Make one update.

        Parameters
        ----------
        batch : array_like, sequence of array_like or mapping
            One array for the only input, one for each, or one under each input's name.
        **hyperparameters
            As for `Hyperparameters`; those not named stay as they were.

        Returns
        -------
        dict of str to float
            Loss and monitors on this batch before the update.
        """
        if hyperparameters or not self.state.numbers:
            self._use(hyperparameters)
        values = by_input(batch, self._specs)
        arrays = [conform(v, spec) for v, spec in zip(values, self._specs, strict=True)]
        outputs = self._update(self._update_function(), arrays)
        return dict(zip(self._names, map(float, outputs), strict=True))

    def _update(self, function: CompiledFunction, batch: Batch) -> list[Any]:
        if self.update_count == 0:
            outputs = self._first_update(function, batch)
        else:
            outputs = function(*batch)
        self.update_count += 1
        return outputs

    def _first_update(self, function: CompiledFunction, batch: Batch) -> list[Any]:
        """Update, and take it back with an error if the loss was not finite to begin with."""
        self._look_at_shapes(batch)
        values = self.parameters.copy()
        outputs = function(*batch)
        if not math.isfinite(loss := float(outputs[0])):
            self.parameters.put_back(values)
            self.state.reset()
            refuse_infinite_loss(loss, self._sources_of(batch), "the first training batch")
        return outputs

    def _sources_of(self, batch: Batch) -> dict[str, Any]:
        arrays = {f"input {s}": array for s, array in zip(self._specs, batch, strict=True)}
        return arrays | {f"parameter {n!r}": v for n, v in self.parameters.copy().items()}

    def evaluate(self, dataset: Any) -> Values:
        """Means of the loss and the monitors over a data set, with the parameters as they are.

        Parameters
        ----------
        dataset : Dataset or whatever it accepts
            The data, visited in their own order.

        Returns
        -------
        dict of str to float
            The mean of each over all samples, ``"loss"`` first.
        """
        return self._evaluate(as_dataset(dataset, "evaluation").bind(self._specs))

    def _evaluate(self, data: BoundDataset, first_must_be_finite: bool = False) -> Values:
        means = PassMean(self._names)
        for batch, samples in data.in_order():
            self._look_at_shapes(batch)
            outputs = self._evaluation(*batch)
            if first_must_be_finite:
                where = f"the first batch of the {data.name} data"
                refuse_infinite_loss(float(outputs[0]), self._sources_of(batch), where)
                first_must_be_finite = False
            means.add(outputs, samples)
        return means.result()

    def _look_at_shapes(self, batch: Batch) -> None:
        """Once, when the first minibatch tells the inputs' shapes."""
        if not self._shapes_seen:
            self._shapes_seen = True
            shapes = {v: array.shape for v, array in zip(self.graph.inputs, batch, strict=True)}
            shapes |= {p: p.get_value(borrow=True).shape for p in self.graph.params}
            warn_of_outer_broadcast(self.graph.loss, shapes)

    # The loop

    def iterate(
        self,
        train: Any = None,
        valid: Any = None,
        max_updates: int | None = None,
        *,
        max_epochs: int | None = None,
        validate_every: int = 10,
        patience: float = 5,
        min_improvement: float = 0.0,
        restore_best: bool = True,
        batch_size: int | None = None,
        **hyperparameters: Any,
    ) -> Iterator[tuple[Values, Values]]:
        """Train, and hand over the monitors after every epoch.

        Parameters
        ----------
        train : Dataset or whatever it accepts
            Data to train on; None for a loss without inputs, whose epoch is one update.
        valid : Dataset or whatever it accepts, optional
            Data to validate on; by default ``train``.
        max_updates, max_epochs : int, optional
            Limits of this call, in minibatches and in passes; no limit by default.
        validate_every : int
            Epochs from one validation to the next (10). There is one before the first update
            too, and one on the final parameters.
        patience : float
            Validations in a row without improvement that are borne (5).
        min_improvement : float
            Relative improvement of the validation loss that counts.
        restore_best : bool
            Leave the parameters of the best validation in place, whatever ends the run.
        batch_size : int, optional
            Samples in a minibatch, for data that are not a `Dataset` yet (32).
        **hyperparameters
            As for `Hyperparameters`; those not named stay as they were.

        Returns
        -------
        iterator of (dict, dict)
            After each epoch the means over its minibatches and over the latest validation,
            by monitor name, ``"loss"`` first.

        Raises
        ------
        TypeError, ValueError
            For options or data that cannot be used, at once; for a loss that is not finite on
            the first batch, before any work is lost.

        Notes
        -----
        Leaving the loop with ``break`` ends the run when the iterator is closed: at once in
        ``for ... in trainer.iterate(...)``, and at ``close()`` for an iterator that is kept.
        """
        self._use(hyperparameters)
        if train is None and self._specs:
            raise ValueError(
                f"A loss with inputs needs data: train is None for {len(self._specs)} inputs "
                f"({', '.join(map(str, self._specs))}). Give train=."
            )
        data = as_dataset(train, "train", batch_size).bind(self._specs)
        valid_size = None if isinstance(valid, Dataset) else batch_size
        return self._run(
            Run(
                data,
                data if valid is None else as_dataset(valid, "valid", valid_size).bind(self._specs),
                Patience(patience, min_improvement),
                max_updates,
                max_epochs,
                validate_every,
                restore_best,
            )
        )

    def minimize(self, *args: Any, **kwargs: Any) -> tuple[Values, Values]:
        """Train to the end: `iterate` with the same arguments, run until it stops.

        Returns
        -------
        train, valid : dict of str to float
            What the last epoch handed over; ``best`` has the monitors of the parameters that are
            left in place.
        """
        values: tuple[Values, Values] = ({}, {})
        for train, valid in self.iterate(*args, **kwargs):
            values = train, valid
        return values

    def _run(self, run: Run) -> Iterator[tuple[Values, Values]]:
        self.stop_reason, self.best = None, None
        reason: StopReason | None = StopReason.ERROR  # of whatever is not named below
        try:
            valid, _ = self._validate(run)
            running = True
            while running:
                train = self._train_epoch(run)
                ending = run.after_epoch(train["loss"])
                best, validated = False, ending or run.epochs % run.validate_every == 0
                if validated and ending is not StopReason.DIVERGED:
                    valid, best = self._validate(run)
                    ending = ending or run.after_validation(valid["loss"])
                counts = (self.epoch_count, self.update_count, run.seconds)
                self.history.append(Record(*counts, train, valid, bool(validated), best))
                log.info("%s", self.history[-1])
                running = ending is None
                yield train, valid
            reason = ending
        except GeneratorExit:
            reason = StopReason.ABANDONED
            raise
        except KeyboardInterrupt:
            reason = StopReason.INTERRUPTED
        finally:
            self.stop_reason = reason
            if run.restore_best and self.best is not None:
                self.set_params("best")
            log.info("stopped: %s", reason)

    def _train_epoch(self, run: Run) -> Values:
        """Follow one pass through the training data, an update for each minibatch."""
        function = self._update_function()
        means = PassMean(self._names)
        for batch, samples in run.train.epoch():
            means.add(self._update(function, batch), samples)
            run.updates += 1
            if run.out_of_updates:
                break
        run.epochs += 1
        self.epoch_count += 1
        return means.result()

    def _validate(self, run: Run) -> tuple[Values, bool]:
        """Monitors of the validation data, and whether they are the best of the run."""
        valid = self._evaluate(run.valid, first_must_be_finite=run.epochs == 0)
        if run.epochs == 0:
            log.info("before training: valid %s", format_values(valid))
        best = run.patience.improves(valid["loss"])
        if best:
            counts = (self.epoch_count, self.update_count)
            self.best = Best(valid["loss"], *counts, valid, self.parameters.copy())
        return valid, best

    # Data and parameters

    def set_params(self, targets: str | Sequence[Any] | Mapping[str, Any] = "best") -> None:
        """Set the parameters.

        Parameters
        ----------
        targets : "best", sequence of array_like, or mapping of str to array_like
            The values of the best validation of the last run; or one array for each parameter,
            in order; or arrays by parameter name, the others staying as they are.

        Raises
        ------
        ValueError
            If there is no best yet, or names, number or shapes do not match; nothing is set then.
        """
        if isinstance(targets, str):
            if targets != "best" or self.best is None:
                raise ValueError(
                    f"The named target is 'best', after a validation: received {targets!r} with "
                    f"best={self.best}. Train first, or give arrays."
                )
            targets = self.best.params
        self.parameters.set(targets)


def _input_spec(variable: Any) -> InputSpec:
    kind = variable.type
    if not hasattr(kind, "ndim") or not hasattr(kind, "dtype"):
        raise TypeError(
            f"An input is a dense or sparse tensor: {variable!r} is of type {kind}. Make it with "
            "pytensor.tensor or pytensor.sparse."
        )
    return InputSpec(variable.name, kind.dtype, kind.ndim, getattr(kind, "format", None))
