"""One call of ``iterate``: its limits, its progress and its best."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from downhill_rms.data import Batch, BoundDataset, order_faults
from downhill_rms.rule import (
    Hyperparameters,
    check_choice,
    check_count,
    check_flag,
    check_list,
    shown,
)
from downhill_rms.saving import Checkpoint
from downhill_rms.training.fields import (
    FieldError,
    Fields,
    as_in,
    count,
    finite,
    flag,
    monitors,
    number,
    one_of,
)
from downhill_rms.training.parameters import Arrays
from downhill_rms.training.stopping import Patience, StopReason
from downhill_rms.watching import PassMean, Progress, Record, Values

PROGRESS: dict[str, Callable[[Any], Any]] = {
    "updates": count,
    "epochs": count,
    "batches": count,
    "finished": flag,
    "rollbacks": count,
}
PREFIXES = ("run/", "epoch/", "train/")  # of what a state has of a run


@dataclass(frozen=True, repr=False)
class Best:
    """The best validation of a run.

    Attributes
    ----------
    loss : float
        Its loss.
    epoch, update : int
        The trainer's counts when it was made.
    monitors : dict of str to float
        All its monitors.
    params : dict of str to ndarray
        Copies of the parameters' values, by name.
    assigned : dict of str to ndarray
        Copies of the values of variables that ``updates`` assigns, by name.
    """

    loss: float
    epoch: int
    update: int
    monitors: Values
    params: Arrays
    assigned: Arrays = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in self.params.items())
        monitors = ", ".join(f"{name}={value:.6g}" for name, value in self.monitors.items())
        return f"Best(epoch={self.epoch}, update={self.update}, {monitors}; params: {shapes})"

    def state_dict(self) -> dict[str, Any]:
        """All of it as named arrays and plain values."""
        state = {f"best/{n}": getattr(self, n) for n in ("loss", "epoch", "update")}
        state["best/monitors"] = json.dumps(self.monitors)
        state |= {f"best/param/{name}": v.copy() for name, v in self.params.items()}
        return state | {f"best/assigned/{name}": v.copy() for name, v in self.assigned.items()}

    @classmethod
    def read(
        cls, fields: Fields, names: Sequence[str], params: Arrays, assigned: Arrays
    ) -> Best | None:
        """Parse what `state_dict` returned; None if there is none, or a fault.

        Parameters
        ----------
        fields : Fields
            The state.
        names : sequence of str
            Of the monitors.
        params, assigned : dict of str to ndarray
            Arrays of the shapes and dtypes that fit.
        """
        if not fields.has_any("best/"):
            return None
        return cls(
            fields.read("best/loss", number),
            fields.read("best/epoch", count),
            fields.read("best/update", count),
            fields.read("best/monitors", monitors(names)),
            fields.read_arrays("best/param/", params),
            fields.read_arrays("best/assigned/", assigned),
        )


@dataclass
class Run:
    """What one call of ``iterate`` was asked for, and how far it has come.

    Attributes
    ----------
    train, valid : BoundDataset
        The data.
    patience : Patience
        Judge of the validations.
    max_updates, max_epochs : int or None
        Limits of this run.
    validate_every : int
        Epochs from one validation to the next.
    restore_best : bool
        Whether the best parameters are left in place.
    on_divergence : {"stop", "raise", "rollback"}
        What follows when the loss is not finite.
    checkpoint : Checkpoint or None
        Where states are saved.
    resume : bool or "changed"
        Whether the newest state there is taken up, also by a changed loss.
    save_batch : bool
        Whether the minibatch of a divergence is saved there.
    observers : sequence of callable
        Given each record.
    updates_per_call : int
        Minibatches that are handed over together.
    progress : Progress
        Where the run is shown.
    hyperparameters : dict
        Those that the call named.
    on_begin : callable
        Called when nothing about the run is left to be refused, before its first update.
    updates, epochs, batches : int
        Progress of this run, and minibatches of the current epoch.
    latest : dict of str to float
        Monitors of the latest validation.
    means : PassMean or None
        Sums of the current epoch; None between two epochs.
    finished : bool
        Whether the run came to its own end.
    began : bool
        Whether the first validation is over, and every update since is whole.
    rollbacks : int
        Returns to a checkpoint so far.
    holds_checkpoint : bool
        Whether the run has taken hold of its directory.
    unsaved_best : (dict, dict) or None
        State and metadata of the best validation, until they are written with the next checkpoint.
    """

    train: BoundDataset
    valid: BoundDataset
    patience: Patience
    max_updates: int | None
    max_epochs: int | None
    validate_every: int
    restore_best: bool
    on_divergence: str = "stop"
    checkpoint: Checkpoint | None = None
    resume: bool | Literal["changed"] = False
    save_batch: bool = False
    observers: Sequence[Callable[[Record], Any]] = ()
    updates_per_call: int = 1
    progress: Progress = field(default_factory=Progress)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    on_begin: Callable[[], Any] = lambda: None
    updates: int = 0
    epochs: int = 0
    batches: int = 0
    latest: Values = field(default_factory=dict)
    means: PassMean | None = None
    finished: bool = False
    began: bool = False
    rollbacks: int = 0
    holds_checkpoint: bool = False
    unsaved_best: tuple[dict[str, Any], dict[str, Any]] | None = None
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        for name in ("max_updates", "max_epochs", "validate_every", "updates_per_call"):
            value = getattr(self, name)
            if value is not None or not name.startswith("max_"):
                setattr(self, name, check_count(name, value))
        for name in ("restore_best", "save_batch"):
            setattr(self, name, check_flag(name, getattr(self, name)))
        check_choice("on_divergence", self.on_divergence, ("stop", "raise", "rollback"))
        self.observers = check_list("observers", self.observers, "functions")
        for observer in self.observers:
            if not callable(observer):
                raise TypeError(
                    f"observers has {shown(observer)}: an observer is a callable that is given "
                    "each record. Give a list of functions."
                )
        self._check_company()

    def _check_company(self) -> None:
        """Refuse options that another one excludes, or needs."""
        if self.save_batch and self.updates_per_call > 1:
            raise ValueError(
                f"save_batch is given with updates_per_call={self.updates_per_call}: it needs the "
                "state before each update. Leave one out."
            )
        if self.resume not in (True, False, "changed"):
            raise ValueError(
                f"resume is {shown(self.resume)}: it takes True, False or 'changed'. Give one."
            )
        wanting = {
            "resume": self.resume,
            "save_batch": self.save_batch,
            "on_divergence='rollback'": self.on_divergence == "rollback",
        }
        for name, wanted in wanting.items():
            if wanted and self.checkpoint is None:
                raise ValueError(f"{name} is given without checkpoint=, which it needs. Give both.")

    @property
    def seconds(self) -> float:
        """Wall time since the run began."""
        return time.perf_counter() - self.started

    @property
    def out_of_updates(self) -> bool:
        """Whether the update limit is reached."""
        return self.max_updates is not None and self.updates >= self.max_updates

    @property
    def total_updates(self) -> int | None:
        """Updates that the limits allow; None without a limit, or for epochs of unknown length."""
        limits = [] if self.max_updates is None else [self.max_updates]
        if self.max_epochs is not None and self.train.iteration_size is not None:
            limits.append(self.max_epochs * self.train.iteration_size)
        return min(limits, default=None)

    @property
    def begins_pass(self) -> bool:
        """Whether the next minibatch is the first of a pass over the training data."""
        sampler = self.train.sampler
        return (self.batches if sampler is None else sampler.cursor) == 0

    def open_epoch(self, names: Sequence[str]) -> Iterator[tuple[Batch, int]]:
        """The minibatches of an epoch, or those that are left of it."""
        if self.means is None:
            self.means = PassMean(names)
        left = math.inf if self.max_updates is None else self.max_updates - self.updates
        return self.train.epoch(self.batches, self.updates_per_call, left)

    def count(self, outputs: Sequence[Any], samples: int) -> None:
        """Take note of a call."""
        assert self.means is not None
        self.means.add(outputs, samples)
        updates = 1 if self.updates_per_call == 1 else len(outputs[0])
        self.updates += updates
        self.batches += updates

    def close_epoch(self) -> Values:
        """The means over the epoch, which is over."""
        assert self.means is not None
        result = self.means.result()
        self.means, self.batches = None, 0
        self.epochs += 1
        return result

    def limit_reached(self) -> StopReason | None:
        """Why the run ends here, as far as that is known without the losses."""
        if self.out_of_updates:
            return StopReason.MAX_UPDATES
        if self.max_epochs is not None and self.epochs >= self.max_epochs:
            return StopReason.MAX_EPOCHS
        return StopReason.PATIENCE if self.patience.exhausted else None

    def after_validation(self) -> StopReason | None:
        """Why the run ends with the latest validation."""
        if not math.isfinite(self.latest["loss"]):
            return StopReason.DIVERGED
        return StopReason.PATIENCE if self.patience.exhausted else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that another process needs to go on with the run."""
        state: dict[str, Any] = {f"run/{name}": getattr(self, name) for name in PROGRESS}
        state["run/latest"] = json.dumps(self.latest)
        state["run/best_loss"] = self.patience.best_value  # the name in files of release 0.1.0
        state["run/monitor"] = self.patience.monitor
        state["run/higher_is_better"] = self.patience.higher_is_better
        state["run/failures"] = self.patience.failures
        if self.means is not None:
            state |= {f"epoch/{name}": value for name, value in self.means.state_dict().items()}
        if self.train.sampler is not None:
            order = self.train.sampler.state_dict()
            state |= {f"train/{name}": value for name, value in order.items()}
        return state

    def restore(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Take up the progress that `state_dict` returned, and `check_progress` accepted.

        Raises
        ------
        ValueError
            If the data are not those that the state was taken with; nothing is changed then.
        """
        self.check(state)
        self.restore_order(state)
        self.means = None
        if "epoch/sums" in state:
            self.means = PassMean(names)
            self.means.load_state_dict(part(state, "epoch/"))
        for name in PROGRESS:
            setattr(self, name, state[f"run/{name}"])
        self.finished = False
        self.latest = json.loads(state["run/latest"])
        self.patience.best_value = state["run/best_loss"]
        self.patience.failures = state["run/failures"]

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse another judge or other training data than a run was begun with.

        Raises
        ------
        ValueError
            If they are not those of the state.
        """
        self._check_judge(state)
        self.check_order(state)

    def _check_judge(self, state: Mapping[str, Any]) -> None:
        """What was the best by one judge is not by another."""
        now = (self.patience.monitor, self.patience.higher_is_better)
        began = (state.get("run/monitor", "loss"), state.get("run/higher_is_better", False))
        if began != now:
            raise ValueError(
                f"The run was judged by monitor={began[0]!r}, higher_is_better={began[1]}, and now "
                f"by monitor={now[0]!r}, higher_is_better={now[1]}. A run goes on with the same "
                "judge: give that, or begin a new run."
            )

    def restore_order(self, state: Mapping[str, Any]) -> None:
        """Put the training data's order where it was, or raise as `check_order` does."""
        self.check_order(state)
        if self.train.sampler is not None:
            self.train.sampler.load_state_dict(part(state, "train/"))

    def check_order(self, state: Mapping[str, Any]) -> None:
        """Refuse training data that are not those that a state was taken with.

        Raises
        ------
        ValueError
            If they are not.
        """
        sampler, order = self.train.sampler, part(state, "train/")
        if (sampler is None) != (not order):
            raise ValueError(
                "train has arrays in place of the ready batches that the run began with, or the "
                "reverse: it goes on with data of the same kind. Give the data that it began with."
            )
        if sampler is not None and (faults := sampler.check(order)):
            raise ValueError(
                f"train is not what the run began with: {'; '.join(faults)}. A run goes on with "
                "the same training data: give the data and sizes that it began with."
            )


def check_progress(fields: Fields, names: Sequence[str], update_names: Sequence[str]) -> None:
    """Note what is wrong with the progress in a state, if it has any.

    Parameters
    ----------
    fields : Fields
        The state.
    names, update_names : sequence of str
        Of the monitors of an evaluation and of an update.
    """
    if not fields.has_any(*PREFIXES):
        return
    progress = {name: fields.read(f"run/{name}", parse) for name, parse in PROGRESS.items()}
    # Before the first validation there is none.
    fields.read("run/latest", lambda text: text == "{}" or monitors(names)(text))
    fields.read("run/best_loss", lambda value: math.isnan(number(value)) or finite(value))
    fields.read("run/failures", count)
    if not fields.are_of_release_0_1:
        fields.read("run/monitor", one_of(names))
        fields.read("run/higher_is_better", flag)
    if progress["batches"] or fields.has_any("epoch/"):
        fields.read("epoch/sums", _sums_of(update_names))
        fields.read("epoch/samples", finite)
    if fields.has_any("train/"):
        faults = order_faults(part(fields.state, "train/"))
        fields.faults += [f"train/{fault}" for fault in faults]


def _sums_of(names: Sequence[str]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.ndim == 1 and len(value) != len(names):
            raise FieldError(
                f"has {len(value)} monitors instead of {len(names)} ({', '.join(names)})"
            )
        return as_in(np.zeros(len(names)))(value)

    return parse


def check_rollback(on_divergence: str, hyperparameters: Hyperparameters) -> None:
    """Refuse to roll back what has no learning rate to halve."""
    if on_divergence == "rollback" and not isinstance(hyperparameters.learning_rate, float):
        raise ValueError(
            f"learning_rate is {shown(hyperparameters.learning_rate)}: on_divergence='rollback' "
            "halves it, and takes a number. Give one, or another on_divergence."
        )


def part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of a state that begin with a prefix, without it."""
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
