"""The trainer: it compiles a loss and its RMSProp updates, and runs the one loop."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from downhill_rms import statedict
from downhill_rms.dataset import BoundDataset, Dataset, as_dataset
from downhill_rms.graph import Update, read_graph
from downhill_rms.history import History, Record, format_values
from downhill_rms.hyperparameters import Hyperparameters
from downhill_rms.monitors import PassMean, Values, named_expressions
from downhill_rms.run import Best, Run
from downhill_rms.sources import by_input, conform
from downhill_rms.steps import Steps
from downhill_rms.stopping import Patience, StopReason

log = logging.getLogger(__name__)


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
    parameters : Parameters
        The parameters' values, by name.
    state : State
        Accumulators, by name.
    epoch_count : int
        Epochs trained on so far.
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
        self.steps = Steps(self.graph, named, monitor_gradients, mode)
        self.parameters = self.steps.parameters
        self.state = self.steps.state
        self.epoch_count = 0
        self.history = History()
        self.best: Best | None = None
        self.stop_reason: StopReason | None = None

    @property
    def update_count(self) -> int:
        """Updates made so far."""
        return self.steps.update_count

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters in force: what a call does not name stays as it was."""
        return self.steps.hyperparameters

    def set_hyperparameters(self, **hyperparameters: Any) -> None:
        """Change some hyperparameters, also in the middle of ``iterate``.

        Parameters
        ----------
        **hyperparameters
            As for `Hyperparameters`; those not named stay as they were.
        """
        self.steps.use(hyperparameters)

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
        return self.steps.new_updates(self.steps.changed(hyperparameters))

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
        if hyperparameters:
            self.steps.use(hyperparameters)
        specs = self.steps.specs
        arrays = [conform(v, s) for v, s in zip(by_input(batch, specs), specs, strict=True)]
        outputs = self.steps.update(arrays)
        return dict(zip(self.steps.names, map(float, outputs), strict=True))

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
        return self._evaluate(as_dataset(dataset, "evaluation").bind(self.steps.specs))

    def _evaluate(self, data: BoundDataset, must_be_finite: bool = False) -> Values:
        means = PassMean(self.steps.names)
        for batch, samples in data.in_order():
            outputs = self.steps.evaluate(batch)
            if must_be_finite:
                self.steps.refuse_infinite(outputs[0], batch, f"a batch of the {data.name} data")
            means.add(outputs, samples)
        return means.result()

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
        self.steps.use(hyperparameters)
        if train is None and self.steps.specs:
            raise ValueError(
                f"A loss with inputs needs data: train is None for {len(self.steps.specs)} inputs "
                f"({', '.join(map(str, self.steps.specs))}). Give train=."
            )
        data = judge = as_dataset(train, "train", batch_size).bind(self.steps.specs)
        if valid is not None:
            size = None if isinstance(valid, Dataset) else batch_size
            judge = as_dataset(valid, "valid", size).bind(self.steps.specs)
        judgement = Patience(patience, min_improvement)
        limits = (max_updates, max_epochs, validate_every, restore_best)
        return self._run(Run(data, judge, judgement, *limits))

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
        means = PassMean(self.steps.names)
        for batch, samples in run.train.epoch():
            means.add(self.steps.update(batch), samples)
            run.updates += 1
            if run.out_of_updates:
                break
        run.epochs += 1
        self.epoch_count += 1
        return means.result()

    def _validate(self, run: Run) -> tuple[Values, bool]:
        """Monitors of the validation data, and whether they are the best of the run."""
        valid = self._evaluate(run.valid, must_be_finite=run.epochs == 0)
        if run.epochs == 0:
            log.info("before training: valid %s", format_values(valid))
        best = run.patience.improves(valid["loss"])
        if best:
            counts = (self.epoch_count, self.update_count)
            self.best = Best(valid["loss"], *counts, valid, self.parameters.copy())
        return valid, best

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

    def state_dict(self) -> dict[str, Any]:
        """Everything that training has changed, as named arrays and plain values.

        Returns
        -------
        dict of str to ndarray, float, int, bool, str or None
            Copies: ``param/w``, ``accumulator/w_mean``, ``hyperparameter/momentum``,
            ``update_count``, ``epoch_count`` and so on. A learning rate that is a schedule or a
            shared variable is given as None.
        """
        return statedict.collect(
            self.parameters,
            self.state,
            self.hyperparameters,
            {"update_count": self.update_count, "epoch_count": self.epoch_count},
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, in a trainer of the same loss.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError
            With every field that is missing, unknown, or of another shape or dtype; nothing is
            changed then.
        """
        new = statedict.check(state, self.parameters, self.state, self.hyperparameters)
        self.state.assign(new)
        statedict.restore(state, self.parameters, self.state, new)
        self.steps.update_count = int(state["update_count"])
        self.epoch_count = int(state["epoch_count"])
        self.steps.use(dict(new))
