"""One run of a sweep: the trainer with values of its own in the shared variables."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pytensor.tensor.random.type import RandomType

from downhill_rms.compiling import is_jax
from downhill_rms.rule import STARTED, Hyperparameters
from downhill_rms.saving import Checkpoint, read_checkpoint
from downhill_rms.sweeping.ranges import Settings, Start
from downhill_rms.training import Best, Divergence, Loop, Placement, Steps, StopReason
from downhill_rms.training.signals import SharedSignals, StopSignals
from downhill_rms.watching import History, RunDirectory, Values

if TYPE_CHECKING:
    from downhill_rms.trainer import Trainer


@dataclass(frozen=True)
class SweptRun:
    """What became of one run of a sweep.

    Attributes
    ----------
    name : str
        Its number, and the name of its run directory.
    settings : dict
        The hyperparameters that differ from run to run.
    seed : int or None
        What its parameters and random generators began with.
    hyperparameters : Hyperparameters
        All of them.
    history : History
        One record for each epoch.
    best : Best or None
        Its best validation, with the parameters then.
    stop_reason : StopReason
        Why it ended.
    divergence : Divergence or None
        What was not finite, if it ended for that.
    """

    name: str
    settings: Settings
    seed: int | None
    hyperparameters: Hyperparameters
    history: History = field(repr=False)
    best: Best | None
    stop_reason: StopReason | None
    divergence: Divergence | None = None


class Member:
    """One run while it goes on: its trainer, whose values lie in the shared variables in its turns.

    The variables, and the functions that were compiled of them, are those of all runs; what they
    hold is exchanged without a copy.

    Parameters
    ----------
    trainer : Trainer
        Whose model it is.
    steps : Steps
        What the runs of one structure have in common, in force for one of them.
    name, settings, seed
        As in `SweptRun`.
    hyperparameters : Hyperparameters
        Of this run.
    """

    loop_type: type[Loop] = Loop

    def __init__(
        self,
        trainer: Trainer,
        steps: Steps,
        name: str,
        settings: Settings,
        seed: int | None,
        hyperparameters: Hyperparameters,
    ) -> None:
        self.name, self.settings, self.seed = name, settings, seed
        self.hyperparameters = hyperparameters
        self.trainer = copy.copy(trainer)
        self.steps = self.trainer.steps = self._own_steps(steps)
        self.trainer.state = self.steps.state
        self.loop = self.trainer.loop = self.loop_type(self.steps)
        self.loop.waits = True
        self.epochs: Iterator[tuple[Values, Values]] = iter(())
        self.directory: RunDirectory | None = None
        self.values: dict[Any, Any] = {}
        self.keys: dict[str, Any] = {}
        self._left = time.perf_counter()  # at the end of the latest turn

    def _own_steps(self, steps: Steps) -> Steps:
        return copy.copy(steps)

    def begin_with(self, held: dict[Any, Any], start: Start | None) -> None:
        """Take the values that the variables have had, or those that the seed gives.

        Parameters
        ----------
        held : dict of SharedVariable to value
            What the trainer's variables hold outside of the sweep.
        start : callable, optional
            Makes parameters from a generator.
        """
        steps = self.steps
        for variable, value in held.items():
            variable.container.storage[0] = copied(value)
        if self.seed is not None:
            kinds = enumerate(steps.generators.items())
            generators = {n: seeded(v, self.seed, index) for index, (n, v) in kinds}
            steps.set_generators(generators)
            if start is not None:
                if isinstance(start, Mapping):
                    steps.parameters.set(start[self.seed])
                else:
                    steps.parameters.set(start(np.random.default_rng(self.seed)))
        initial = self.hyperparameters.initial_accumulator
        for name in steps.state.starts:
            kind = next((kind for kind in STARTED if name.endswith(f"_{kind}")), None)
            steps.state.starts[name] = initial if kind else 0.0
        steps.state.reset()
        steps.use(dict(self.hyperparameters))
        self.take()

    def variables(self) -> Iterator[Any]:
        """Everything that a run changes."""
        steps = self.steps
        for named in (steps.parameters, steps.assigned, steps.carried):
            yield from named.variables.values()
        yield from steps.generators.values()
        yield from steps.state.accumulators.values()
        yield from steps.state.numbers.values()
        yield steps.state.update_count

    def put(self) -> None:
        """Have the variables hold this run's values."""
        for variable, value in self.values.items():
            variable.container.storage[0] = value
        steps = self.steps
        if steps.generators and steps._update is not None and is_jax(steps.mode):
            generators = {v: v.container.storage[0] for v in steps.generators.values()}
            keys = self.keys.get("update") or steps._update.first_keys(generators)
            steps.set_generator_keys({"update": keys})

    def take(self) -> None:
        """Take note of the values that the variables have now."""
        self.values = {v: v.container.storage[0] for v in self.variables()}
        if self.steps.generators and is_jax(self.steps.mode):  # which keeps them for itself
            self.keys = self.steps.generator_keys()

    def turn(self) -> bool:
        """Go on to the end of an epoch; whether there is more to come."""
        began = time.perf_counter()
        self.put()
        try:
            return next(self.epochs, None) is not None
        finally:
            self.take()
            if self.loop.run is not None:  # its clock stood still meanwhile
                self.loop.run.started += began - self._left
            self._left = time.perf_counter()

    def heeds(self, signals: StopSignals) -> None:
        """End at what one takes note of for all runs."""
        self.steps.placement = Shared(SharedSignals(signals))

    def catch_up(self) -> None:
        """Come to where the run can be left without losing what was computed for it."""

    def starts_clock(self) -> None:
        """Count the seconds of the run from now on."""
        self._left = time.perf_counter()

    def close(self, reason: StopReason | None = None) -> None:
        """End the run between two epochs, if it has not ended by itself."""
        ended_itself = self.loop.stop_reason is not None
        self.put()
        try:
            self.epochs.close()  # type: ignore[attr-defined]
        finally:
            self.take()
        if reason is not None and not ended_itself:
            self.loop.stop_reason = reason
            has_begun = self.loop.run is not None  # or else it has left no directory to write in
            if self.directory is not None and has_begun:
                result = {"stop_reason": reason, "updates": self.steps.update_count}
                self.directory.write_result(result)

    def leave(self) -> None:
        """Let go of everything but what is told of the run."""
        self.values, self.keys, self.epochs = {}, {}, iter(())

    def is_better(self, other: Member) -> bool:
        """Whether the best of this run is better than that of another, as the run is judged."""
        own, others = self.loop.best, other.loop.best
        if own is None or others is None:
            return others is None
        run = self.loop.run or other.loop.run
        if run is None:
            return own.loss < others.loss
        judge = run.patience
        a, b = own.monitors[judge.monitor], others.monitors[judge.monitor]
        return a > b if judge.higher_is_better else a < b

    def result(self) -> SweptRun:
        """What became of the run."""
        loop = self.loop
        told = (loop.history, loop.best, loop.stop_reason, loop.divergence)
        return SweptRun(self.name, self.settings, self.seed, self.hyperparameters, *told)

    def read_ended(self, reason: StopReason) -> None:
        """Read what a run directory says of a run that has ended for good."""
        assert self.directory is not None
        checkpoint = Checkpoint(self.directory.checkpoints_path)
        best = checkpoint.directory / "best.npz"
        paths = [best] if best.exists() else checkpoint.steps()[-1:]
        self.put()
        try:
            if paths:
                self.trainer.load_state_dict(read_checkpoint(paths[0]))
                if self.loop.best is not None:
                    self.steps.put_back(self.loop.best.params, self.loop.best.assigned)
        finally:
            self.take()
        self.loop.history = self.directory.read_history()
        self.loop.stop_reason = reason


class Shared(Placement):
    """One device, on which several runs take turns.

    Parameters
    ----------
    signals : SharedSignals
        What takes note of signals for all of them.
    """

    def __init__(self, signals: SharedSignals) -> None:
        self._signals = signals

    def signals(self) -> StopSignals:
        """What is installed for all runs."""
        return self._signals


def copied(value: Any) -> Any:
    """The same in memory of its own, laid out as the compiled functions have it."""
    if isinstance(value, np.ndarray):
        return np.array(value, order="C")
    return copy.deepcopy(value)


def seeded(variable: Any, seed: int, index: int) -> np.random.Generator:
    """What the ``index``-th random generator of a graph begins with in the runs of a seed."""
    kind = type(variable.get_value(borrow=True).bit_generator)
    return np.random.Generator(kind(np.random.SeedSequence([seed, index])))


def held_values(steps: Steps) -> dict[Any, Any]:
    """What the trainer's own variables hold, by variable."""
    named = (steps.parameters, steps.assigned, steps.carried)
    variables = [v for group in named for v in group.variables.values()]
    graph = [v for v, _ in (*steps.graph.updates, *steps.graph.evaluation_updates)]
    generators = [v for v in graph if isinstance(v.type, RandomType)]
    return {v: v.container.storage[0] for v in dict.fromkeys([*variables, *generators])}


def as_json(settings: Settings) -> dict[str, Any]:
    """Settings as files keep them."""
    return {
        name: value if isinstance(value, bool | int | float | str | None) else repr(value)
        for name, value in settings.items()
    }


def same_json(one: Any, other: Any) -> bool:
    """Whether two are written alike."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
