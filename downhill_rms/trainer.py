"""The trainer: a loss, its parameters and RMSProp, behind one class."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from downhill_rms.compiling import quick_building
from downhill_rms.data import Dataset, as_dataset, by_input, conform, now
from downhill_rms.parallel import make_placement
from downhill_rms.rule import (
    Hyperparameters,
    Update,
    check_flag,
    check_path,
    read_graph,
    shown,
    warn,
)
from downhill_rms.saving import (
    Checkpoint,
    as_checkpoint,
    read_checkpoint,
    read_state,
    write_state,
)
from downhill_rms.training import (
    Best,
    Divergence,
    Loop,
    Patience,
    Recording,
    Rows,
    Run,
    Steps,
    StopReason,
    check_rollback,
    checkpoint_in,
    in_json,
    named_outputs,
    predict,
    uninterrupted,
)
from downhill_rms.watching import (
    History,
    Record,
    RunDirectory,
    Values,
    html_table,
    named_expressions,
    open_progress,
    watched,
)

if TYPE_CHECKING:
    from downhill_rms.sweeping import Sweep


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
        Further assignments of a training step, for counters or running statistics: dense
        arrays, which belong to the state and to the best as parameters do. Random generators
        need none.
    monitors : mapping or iterable of (str, Variable)
        Further scalars to be reported, means over a minibatch.
    monitor_gradients : bool
        Report the L2 norm of each parameter's gradient, before any clip, as ``grad(name)``.
    carried : mapping or iterable of (SharedVariable, Variable)
        What one minibatch hands to the next, as a recurrent network does its hidden state: shared
        variables, and the expressions of their values after a minibatch. They are no parameters.
        Every pass over data, in training, validation, `evaluate` and `predict`, begins with the
        values that they have now, and none disturbs another. They are part of the state, and not
        of the best. See `sequences` for data whose minibatches follow one another.
    monitor_updates : bool
        Report for training how far updates move each parameter, ``update_ratio(name)``, and how
        much of it steps at the regularizer's floor, ``at_floor(name)``: see `update_telemetry`.
    mode : str or Mode, optional
        How PyTensor compiles (``"NUMBA"``, ``"JAX"``, ``"FAST_COMPILE"``, ...), or ``"tiered"``:
        training begins at once, uncompiled, while a child process compiles.
    devices : int, "all" or jax.sharding.Mesh, optional
        Devices of JAX that share the work, with ``mode="JAX"``: so many of them, all of every
        process, or a mesh with one axis. Minibatches are divided along their samples, so that
        ``batch_size`` counts those of all devices; parameters are copies. Every process makes the
        same trainer and calls the same methods: see the page on many devices.
    shard_above : int, optional
        Numbers above which a parameter and its accumulators are divided among the devices too,
        along the longest axis that these divide (by default none is).

    Attributes
    ----------
    graph : LossGraph
        Inputs, parameters and their names, updates.
    parameters : Parameters
        The parameters' values, by name.
    state : State
        Accumulators, by name.

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
        carried: Iterable[Update] | Mapping[Any, Any] = (),
        monitor_updates: bool = False,
        mode: Any = None,
        devices: Any = None,
        shard_above: int | None = None,
    ) -> None:
        named = named_expressions(monitors)
        placement = make_placement(devices, shard_above, mode)
        with quick_building():
            self.graph = read_graph(loss, params, inputs, updates, list(named.values()), carried)
            monitored = (named, monitor_gradients, monitor_updates)
            self.steps = Steps(self.graph, *monitored, mode, placement)
        self.parameters, self.state = self.steps.parameters, self.steps.state
        self.loop = Loop(self.steps)

    def __repr__(self) -> str:
        return f"Trainer({self.graph})"

    def _repr_html_(self) -> str:
        """A notebook shows what is trained and what is fed, and how far training has come."""
        values = self.parameters.variables.items()
        arrays = [(name, v.get_value(borrow=True)) for name, v in values]
        rows = [["parameter", name, str(a.shape), str(a.dtype)] for name, a in arrays]
        rows += [
            ["input", spec.name or "", f"{spec.ndim} dimensions", spec.dtype]
            for spec in self.steps.specs
        ]
        come = f"{self.epoch_count} epochs, {self.update_count} updates"
        if self.best is not None:
            come += f", best loss {self.best.loss:.6g}"
        return html_table(["", "name", "shape", "dtype"], rows, f"Trainer: {come}")

    @property
    def update_count(self) -> int:
        """Updates made so far."""
        return self.steps.update_count

    @property
    def epoch_count(self) -> int:
        """Epochs trained on so far, one that was cut short included."""
        return self.loop.epoch_count

    @property
    def history(self) -> History:
        """One record for each epoch so far."""
        return self.loop.history

    @property
    def best(self) -> Best | None:
        """The best validation of the last run."""
        return self.loop.best

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the last run ended; None while it runs."""
        return self.loop.stop_reason

    @property
    def divergence(self) -> Divergence | None:
        """What was not finite, if the last run ended for that."""
        return self.loop.divergence

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
        """Make one update, which Ctrl-C leaves whole.

        Parameters
        ----------
        batch : array_like, sequence of array_like or mapping
            One array for the only input, one for each, or one under each input's name. A scalar
            is fed as in a `Dataset`: a function of the epoch is called with ``epoch_count``.
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
        given = zip(by_input(batch, specs), specs, strict=True)
        arrays = [conform(now(v, s, self.epoch_count), s) for v, s in given]
        outputs = uninterrupted(self.steps.update_once, arrays)
        return dict(zip(self.steps.update_names, map(float, outputs), strict=True))

    def evaluate(self, dataset: Any) -> Values:
        """Means of the loss and the monitors over a data set, with the parameters as they are.

        Random numbers, as those of dropout, are the same at every call and in validations, and
        none of training's: two results differ by the parameters and the data alone.

        Parameters
        ----------
        dataset : Dataset or whatever it accepts
            The data, visited in their own order. A function of the epoch is called with
            ``epoch_count``.

        Returns
        -------
        dict of str to float
            The mean of each over all samples, ``"loss"`` first.
        """
        data = self.steps.bind(as_dataset(dataset, "dataset"), epoch=self.epoch_count)
        return self.loop.evaluate(data)

    def predict(
        self,
        outputs: Any,
        data: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> Any:
        """Values of symbolic outputs for every sample, with the parameters as they are.

        Parameters
        ----------
        outputs : Variable, sequence of Variable, or mapping of str to Variable
            Expressions of the inputs and the parameters, with one entry for each sample along
            the data's axis. They are compiled at the first call that names them.
        data : Dataset or whatever it accepts
            What the outputs need of the inputs, in the inputs' order or by name: labels that only
            the loss uses are left out. It is visited in its own order. A function of the epoch is
            called with ``epoch_count``.
        batch_size : int, optional
            Samples that are computed at once, for data that are not a `Dataset` yet (32).
        progress : bool or None
            Show a bar, as for `iterate`.

        Returns
        -------
        ndarray, list of ndarray, or dict of str to ndarray
            As ``outputs`` were given, in the order of the samples. Each array is made once where
            the number of samples is known; besides it there is one minibatch in memory.

        Raises
        ------
        TypeError, ValueError
            For outputs or data that cannot be used.

        Examples
        --------
        >>> import numpy as np, pytensor, pytensor.tensor as pt
        >>> x, w = pt.vector("x"), pytensor.shared(2.0, name="w")
        >>> trainer = Trainer(((x * w - 1) ** 2).mean(), mode="FAST_COMPILE")
        >>> trainer.predict(x * w, np.array([1.0, 2.0, 3.0]))
        array([2., 4., 6.])
        """
        named = named_outputs(outputs)
        function, inspection = self.steps.prediction(list(named.values()))
        bound = inspection.bind(as_dataset(data, "data", batch_size), epoch=self.epoch_count)
        bound = self.steps.placement.data(bound)
        rows = [Rows(f"outputs[{key!r}]", bound.n_samples, bound.axis) for key in named]
        batches = watched(bound.in_order(), progress, bound.iteration_size)
        with self.steps.carried.pass_of_its_own():
            arrays = predict(inspection.explained(function), batches, rows)
        if isinstance(outputs, Mapping):
            return dict(zip(named, arrays, strict=True))
        return arrays if isinstance(outputs, list | tuple) else arrays[0]

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
        monitor: str = "loss",
        higher_is_better: bool = False,
        restore_best: bool = True,
        on_divergence: str = "stop",
        batch_size: int | None = None,
        seed: int | np.random.Generator | None = None,
        checkpoint: Checkpoint | str | PathLike[str] | None = None,
        run_directory: str | PathLike[str] | RunDirectory | None = None,
        resume: bool | Literal["changed"] = False,
        save_batch: bool = False,
        progress: bool | None = False,
        observers: Sequence[Callable[[Record], Any]] = (),
        updates_per_call: int = 1,
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
            Validations in a row without improvement that are borne (5). Those of a random loss
            all begin with the same random numbers, and so differ by the parameters alone. A
            random loss without data is judged by one draw of it; a warning says so.
        min_improvement : float
            Relative improvement of what is judged that counts.
        monitor : str
            The monitor that validations are judged by, for patience and for the best.
        higher_is_better : bool
            Whether it is to rise, as an accuracy is.
        restore_best : bool
            Leave the parameters of the best validation in place, whatever ends the run.
        on_divergence : {"stop", "raise", "rollback"}
            What follows when the loss of an update, or a parameter at a validation or checkpoint,
            is NaN or infinite: the run stops with the best parameters in place, and
            ``divergence`` says what was found; or a `DivergenceError` says it too; or the run
            returns to the last checkpoint with half the learning rate, three times at most.
        batch_size : int, optional
            Samples in a minibatch, for data that are not a `Dataset` yet (32).
        seed : int or Generator, optional
            Of the order of the training samples, for data that are not a `Dataset` yet; another
            order in every run by default.
        checkpoint : Checkpoint or path, optional
            Where to save the state while training, and at the end; the path of a directory is
            ``Checkpoint(path)``, once an epoch.
        run_directory : path, optional
            A directory for all that the run is: what was asked for, history, log, result and
            checkpoints. ``downhill-rms show``, ``plot`` and ``compare`` read it. It takes the place
            of ``checkpoint``.
        resume : bool or "changed"
            Go on from the newest checkpoint that verifies, as though the run had never stopped;
            begin where there is none. Numbers that this call names take effect; the loss, the
            data's sizes and choices must be those of the checkpoint. ``"changed"`` takes it up
            all the same: parameters, accumulators and counts go on, an epoch and the best begin
            anew.
        save_batch : bool
            When training diverges, write the guilty minibatch and the state before it beside
            the checkpoints. It copies the whole state at every update.
        progress : bool or None
            Show a bar (extra ``progress``) in a terminal or a notebook. None, the default of
            ``minimize``, shows none where logging shows a line for each epoch already.
        observers : sequence of callable
            Each is given the `Record` of every epoch. One that returns `StopReason.OBSERVER` ends
            the run, with the best parameters in place.
        updates_per_call : int
            Minibatches that one call of the compiled function takes (1), for models so small
            that the call costs most. Signals, checkpoints and the loss are looked at between.
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
        new = self.steps.changed(hyperparameters)  # a typo shows before data are read
        check_rollback(on_divergence, new)
        specs = self.steps.specs
        if train is None and specs:
            raise ValueError(
                f"train is None for {len(specs)} inputs ({', '.join(map(str, specs))}): a loss "
                "with inputs needs data. Give train=."
            )
        patience_of_run = Patience(patience, min_improvement, monitor, higher_is_better)
        by_chance = math.isfinite(patience_of_run.patience) and self.graph.is_random
        if train is None and valid is None and by_chance:
            warn(
                "The loss is random and has no data: patience and the best parameters are judged "
                "by a single draw of it, the same at every validation, and not by its mean. Let "
                "the loss be a mean over many draws, or give patience=math.inf with max_epochs= "
                "or max_updates=, and restore_best=False."
            )
        if monitor not in self.steps.names:
            raise ValueError(
                f"monitor={monitor!r} is none of this trainer's: {', '.join(self.steps.names)}. "
                "Name one of these, or give it to Trainer(..., monitors=...)."
            )
        epoch = self.epoch_count
        data = judge = self.steps.bind(
            as_dataset(train, "train", batch_size, seed=seed), train=True, finite=True, epoch=epoch
        )
        if valid is not None:
            size = None if isinstance(valid, Dataset) else batch_size
            judge = self.steps.bind(as_dataset(valid, "valid", size), finite=True, epoch=epoch)
        if restore_best or math.isfinite(patience_of_run.patience):
            judged = self.steps.outputs[self.steps.names.index(monitor)]
            self.steps.inspection.warn_of_schedules(judge, monitor, judged)
        limits = (max_updates, max_epochs, validate_every)
        recording, placement = None, self.steps.placement
        if run_directory is not None:
            if checkpoint is not None:
                raise ValueError(
                    "Both checkpoint and run_directory are given. A run directory has checkpoints "
                    "of its own: leave checkpoint out."
                )
            options = {
                "max_updates": max_updates,
                "max_epochs": max_epochs,
                "validate_every": validate_every,
                "patience": patience,
                "monitor": monitor,
                "higher_is_better": higher_is_better,
            }
            directory = self._directory(run_directory, new, options)
            if not resume:
                placement.by_leader(directory.refuse_if_begun)
            checkpoint = checkpoint_in(directory)
            if placement.leads:
                recording = Recording(directory, checkpoint)
        run = Run(
            *(data, judge, patience_of_run, *limits),
            *(restore_best, on_divergence),
            checkpoint=placement.checkpoint(as_checkpoint(checkpoint)),
            resume=resume,
            save_batch=save_batch,
            observers=observers,
            updates_per_call=updates_per_call,
            hyperparameters=hyperparameters,
        )
        shown = progress if placement.leads else False
        run.progress = open_progress(shown, run.total_updates, max_epochs)
        self.steps.use(hyperparameters, updates_per_call)
        epochs = self.loop.start(run)
        if recording is None:
            return epochs
        run.on_begin = recording.begin
        run.observers = (recording.history_file, *run.observers)
        return recording.follow(self.loop, epochs)

    def _directory(
        self,
        run_directory: str | PathLike[str] | RunDirectory,
        hyperparameters: Hyperparameters,
        options: dict[str, Any],
    ) -> RunDirectory:
        """A run directory, with what is known here of what was asked for."""
        if not isinstance(run_directory, RunDirectory):
            program = Path(sys.argv[0]).name or "Python"
            config = {"problem": program, "hyperparameters": in_json(hyperparameters)}
            given = {name: value for name, value in options.items() if value is not None}
            path = check_path("run_directory", run_directory)
            run_directory = RunDirectory(path, {**config, "options": given})
        return run_directory

    def minimize(
        self,
        train: Any = None,
        valid: Any = None,
        max_updates: int | None = None,
        *,
        max_epochs: int | None = None,
        validate_every: int = 10,
        patience: float = 5,
        min_improvement: float = 0.0,
        monitor: str = "loss",
        higher_is_better: bool = False,
        restore_best: bool = True,
        on_divergence: str = "stop",
        batch_size: int | None = None,
        seed: int | np.random.Generator | None = None,
        checkpoint: Checkpoint | str | PathLike[str] | None = None,
        run_directory: str | PathLike[str] | RunDirectory | None = None,
        resume: bool | Literal["changed"] = False,
        save_batch: bool = False,
        progress: bool | None = None,
        observers: Sequence[Callable[[Record], Any]] = (),
        updates_per_call: int = 1,
        **hyperparameters: Any,
    ) -> tuple[Values, Values]:
        """Train to the end: `iterate` with the same arguments, run until it stops.

        Returns
        -------
        train, valid : dict of str to float
            What the last epoch handed over; ``best`` has the monitors of the parameters that are
            left in place.
        """
        epochs = self.iterate(
            *(train, valid, max_updates),
            max_epochs=max_epochs,
            validate_every=validate_every,
            patience=patience,
            min_improvement=min_improvement,
            monitor=monitor,
            higher_is_better=higher_is_better,
            restore_best=restore_best,
            on_divergence=on_divergence,
            batch_size=batch_size,
            seed=seed,
            checkpoint=checkpoint,
            run_directory=run_directory,
            resume=resume,
            save_batch=save_batch,
            progress=progress,
            observers=observers,
            updates_per_call=updates_per_call,
            **hyperparameters,
        )
        self.loop.is_shared = False  # a signal that comes between two epochs is the run's too
        try:
            for _ in epochs:
                pass
        finally:
            self.loop.is_shared = True
        if not self.history:  # interrupted in the first epoch
            return {}, {}
        return self.history[-1].train, self.history[-1].valid

    def sweep(
        self,
        train: Any = None,
        valid: Any = None,
        max_updates: int | None = None,
        *,
        seeds: int | Sequence[int] | None = None,
        start: Callable[[np.random.Generator], Any] | Mapping[int, Any] | None = None,
        zipped: bool = False,
        sample: int | None = None,
        minibatches: Literal["same", "seed"] = "same",
        how: Literal["in turns", "together"] | None = None,
        halve_every: int | None = None,
        run_directory: str | PathLike[str] | RunDirectory | None = None,
        resume: bool = False,
        progress: bool | None = None,
        observe: Callable[[Trainer], Iterable[Callable[[Record], Any]]] | None = None,
        **options: Any,
    ) -> Sweep:
        """Train many times, with other hyperparameters and seeds, and compile once.

        Every run begins with fresh accumulators and with the values that the shared variables have
        now, or with those that its seed gives. The trainer's own counts and history stay as they
        are; the best parameters of the best run are left in place, and are its ``best``.

        Parameters
        ----------
        train, valid, max_updates
            As for `iterate`, and for each run.
        seeds : int or sequence of int, optional
            Every combination of hyperparameters is trained with every seed: 0, 1, ... or these.
        start : callable or mapping of int to parameters, optional
            Given ``numpy.random.default_rng(seed)``, it returns the parameters that a seed starts
            with, as `set_params` takes them; or what these are for each seed. The i-th random
            generator of the loss begins with ``SeedSequence([seed, i])``.
        zipped : bool
            Lists of hyperparameters are taken in step, instead of every value of one with every
            value of the others.
        sample : int, optional
            So many combinations are drawn at random, from lists and from ranges as
            ``loguniform(1e-4, 1e-1)``; reproducibly with ``seed=``.
        minibatches : {"same", "seed"}
            Whether all runs see the same minibatches in the same order, which makes comparison
            fair, or each seed has an order of its own, that of ``numpy.random.default_rng(seed)``.
        how : {"in turns", "together"}, optional
            Each run by itself, an epoch at a time, to the last bit as it would be alone; or all
            in one call, with an axis of runs, the same to rounding. By default together in JAX
            mode and where a call takes so little that it is mostly overhead, else in turns.
        halve_every : int, optional
            After so many epochs the better half of the runs goes on, and again after as many: a
            multiple of ``validate_every``.
        run_directory : path, optional
            Where each run leaves a run directory, ``00``, ``01`` and so on, and the sweep
            ``sweep.json`` and ``sweep.csv``.
        resume : bool
            Go on with the sweep there, as though it had never stopped; begin where there is none.
        progress : bool or None
            As for `minimize`: one bar for all runs.
        observe : callable, optional
            Given the trainer of a run, it returns the run's observers. That trainer is to be used
            by them alone.
        **options
            Other options of `iterate` but ``checkpoint``, ``save_batch`` and ``observers``, and
            hyperparameters; what is a list, a tuple, an array or a range is tried.

        Returns
        -------
        Sweep
            The runs as data.

        Raises
        ------
        TypeError, ValueError
            For hyperparameters, seeds or options that cannot be used, before any work.

        Examples
        --------
        >>> import numpy as np, pytensor, pytensor.tensor as pt
        >>> x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
        >>> trainer = Trainer(((x - w) ** 2).mean(), mode="FAST_COMPILE")
        >>> found = trainer.sweep([np.ones(64)], learning_rate=[1e-4, 1e-2], max_epochs=50)
        >>> found.best.settings
        {'learning_rate': 0.01}
        """
        from downhill_rms.sweeping import sweep  # it drives trainers, and stands above this one

        return sweep(
            *(self, train, valid, max_updates),
            seeds=seeds,
            start=start,
            zipped=zipped,
            sample=sample,
            minibatches=minibatches,
            how=how,
            halve_every=halve_every,
            run_directory=run_directory,
            resume=resume,
            progress=progress,
            observe=observe,
            **options,
        )

    def set_params(self, targets: str | Sequence[Any] | Mapping[str, Any] = "best") -> None:
        """Set the parameters.

        Parameters
        ----------
        targets : "best", sequence of array_like, or mapping of str to array_like
            The values of the best validation of the last run, those of variables that
            ``updates`` assigns included; or one array for each parameter,
            in order; or arrays by parameter name, the others staying as they are.

        Raises
        ------
        ValueError
            If there is no best yet, or names, number or shapes do not match; nothing is set then.
        """
        if isinstance(targets, str):
            if targets != "best" or self.best is None:
                raise ValueError(
                    f"targets is {shown(targets)}, with best={self.best}: the one name is 'best', "
                    "after a validation. Train first, or give arrays."
                )
            self.steps.put_back(self.best.params, self.best.assigned)
            return
        self.parameters.set(targets)

    def save_parameters(self, path: str | PathLike[str]) -> None:
        """Write the parameters alone to a file: whole, or not at all.

        Parameters
        ----------
        path : path
            The file, by custom ``.npz``. One that is there is replaced. `numpy.load` reads it.

        Raises
        ------
        CheckpointError
            If it cannot be written; an old file is intact then.
        """
        path, state = check_path("path", path), self.parameters.state_dict()
        self.steps.placement.by_leader(lambda: write_state(path, state))

    def load_parameters(self, path: str | PathLike[str]) -> None:
        """Set the parameters from a file of `save_parameters`, or from any checkpoint.

        Nothing else is looked at: neither the loss, nor accumulators, nor counts.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        CheckpointError
            If the file is damaged or is none of ours.
        ValueError
            If names or shapes are not those of the parameters; nothing is set then.
        """
        self.parameters.load_state_dict(read_state(Path(realpath(check_path("path", path)))))

    def state_dict(self) -> dict[str, Any]:
        """Everything that training has changed, as named arrays and plain values.

        Returns
        -------
        dict of str to ndarray, float, int, bool, str or None
            Copies: ``param/w``, ``accumulator/w_mean``, ``hyperparameter/momentum``,
            ``update_count``, ``epoch_count`` and so on. A learning rate that is a schedule or a
            shared variable is given as None.
        """
        return self.loop.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], changed: bool = False) -> None:
        """Go on from where `state_dict` was taken, in a trainer of the same loss.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned. If it was taken while a run went on, the next call of
            ``iterate`` or ``minimize`` goes on with that run, from the same minibatch.
        changed : bool
            Whether it may be of another loss with the same parameters; its best and its run are
            left out then.

        Raises
        ------
        ValueError
            With every field that is missing, unknown, or of another shape or dtype; nothing is
            changed then.
        """
        if not (isinstance(state, Mapping) and all(isinstance(name, str) for name in state)):
            raise TypeError(
                f"state is {shown(state)}: it is a mapping of names. Give what state_dict returned."
            )
        check_flag("changed", changed)
        self.loop.load_state_dict(state, changed=changed)
        self.steps.settle()

    def save(self, path: str | PathLike[str]) -> None:
        """Write `state_dict` to a file: whole, or not at all.

        Parameters
        ----------
        path : path
            The file, by custom ``.npz``. One that is there is replaced.

        Raises
        ------
        CheckpointError
            If it cannot be written; an old file is intact then.
        """
        path, state = check_path("path", path), self.state_dict()
        self.steps.placement.by_leader(lambda: write_state(path, state))

    def load(self, path: str | PathLike[str]) -> None:
        """Read what `save` or a checkpoint wrote, and take it up as `load_state_dict` does.

        Parameters
        ----------
        path : path
            The file. A checkpoint's history lies beside it, in the journal that it names.

        Raises
        ------
        CheckpointError
            If the file is damaged or is none of ours.
        ValueError
            If it is the state of another model.
        """
        self.load_state_dict(read_checkpoint(Path(realpath(check_path("path", path)))))
