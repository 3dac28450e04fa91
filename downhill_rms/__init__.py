"""Minimise symbolic PyTensor losses by minibatch RMSProp."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import TYPE_CHECKING, Any

from downhill_rms.compiling import default_mode
from downhill_rms.data import Dataset, as_dataset, sequences
from downhill_rms.problem import Problem
from downhill_rms.rule import Hyperparameters, Update, check_count, preset, shown, updates
from downhill_rms.saving import Checkpoint
from downhill_rms.sweeping.ranges import loguniform, uniform
from downhill_rms.trainer import Trainer
from downhill_rms.training import StopReason
from downhill_rms.watching import Values

if TYPE_CHECKING:
    from downhill_rms.sweeping import Sweep

__version__ = "1.0.0"

# Modules that users import by one short name, and the rooms where they stand.
SHORT_NAMES = {
    "checkpoint": "saving",
    "check": "command",
    "datafiles": "data",
    "divergence": "training",
    "graph": "rule",
    "history": "watching",
    "observers": "watching",
    "plots": "watching",
    "plateau": "training",
    "presets": "rule",
    "rmsprop": "rule",
    "run": "training",
    "schedules": "rule",
    "statefile": "saving",
    "telemetry": "rule",
}


class _ShortNames(MetaPathFinder, Loader):
    """Find ``downhill_rms.plots`` in its room: the same module under a second name."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, short = name.rpartition(".")
        if package != __name__ or short not in SHORT_NAMES:
            return None
        return spec_from_loader(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        short = spec.name.rpartition(".")[2]
        module = import_module(f"{__name__}.{SHORT_NAMES[short]}.{short}")
        spec.loader_state = module.__spec__  # the import system is about to put another there
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_ShortNames())


def __getattr__(name: str) -> Any:
    if name in SHORT_NAMES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


RMSProp = Trainer  # the name that downhill gives the same class

__all__ = [
    "Checkpoint",
    "Dataset",
    "Hyperparameters",
    "Problem",
    "RMSProp",
    "StopReason",
    "Trainer",
    "__version__",
    "build",
    "loguniform",
    "minimize",
    "preset",
    "sequences",
    "sweep",
    "uniform",
    "updates",
]


def build(algo: str, loss: Any, *args: Any, **kwargs: Any) -> Trainer:
    """Make a trainer by the name of its algorithm, as ``downhill.build`` did.

    Parameters
    ----------
    algo : str
        ``"rmsprop"``, the one that there is.
    loss : Variable
        The loss.
    *args, **kwargs
        As for `Trainer`.

    Returns
    -------
    Trainer

    Raises
    ------
    ValueError
        For another algorithm.

    Examples
    --------
    >>> import pytensor
    >>> w = pytensor.shared(1.0, name="w")
    >>> build("rmsprop", w**2).graph.param_names
    ('w',)
    """
    if not isinstance(algo, str) or algo.lower() != "rmsprop":
        raise ValueError(
            f"algo is {shown(algo)}: the one algorithm here is 'rmsprop'. Use it, or a library "
            "that has the other; presets give RMSProp as other libraries define it."
        )
    return Trainer(loss, *args, **kwargs)


def minimize(
    loss: Any,
    train: Any = None,
    valid: Any = None,
    params: Sequence[Any] | None = None,
    inputs: Sequence[Any] | None = None,
    algo: str = "rmsprop",
    updates: Iterable[Update] | Mapping[Any, Any] = (),
    monitors: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    monitor_gradients: bool = False,
    batch_size: int | None = None,
    train_batches: int | None = None,
    valid_batches: int | None = None,
    *,
    seed: int | None = None,
    carried: Iterable[Update] | Mapping[Any, Any] = (),
    monitor_updates: bool = False,
    mode: Any = None,
    devices: Any = None,
    shard_above: int | None = None,
    **options: Any,
) -> tuple[Values, Values]:
    """Minimise a loss with one call.

    Parameters
    ----------
    loss : Variable
        A real floating-point scalar.
    train, valid : Dataset or whatever it accepts
        The data.
    params, inputs, updates, monitors, monitor_gradients, carried, monitor_updates
        As for `Trainer`.
    mode : str or Mode, optional
        As for `Trainer`. By default the run begins at once, uncompiled (``"tiered"``), unless it
        is one to be repeated bit for bit: with a ``seed``, a `Dataset` or a ``checkpoint`` it is
        compiled first. So it is where PyTensor is set to another mode than its own default.
    devices, shard_above
        As for `Trainer`.
    algo : str
        ``"rmsprop"``, as in `build`.
    batch_size : int, optional
        Samples in a minibatch, for data that are not a `Dataset` yet (32).
    train_batches, valid_batches : int, optional
        Minibatches in an epoch and in a validation, for data that are not a `Dataset` yet.
    seed : int, optional
        Of the order of the training samples, for data that are not a `Dataset` yet.
    **options
        Limits, patience and hyperparameters, as for `Trainer.iterate`.

    Returns
    -------
    train, valid : dict of str to float
        Monitors of the last epoch and of the last validation. The parameters themselves are
        left in their shared variables, at the values of the best validation.

    Examples
    --------
    >>> import numpy as np, pytensor, pytensor.tensor as pt
    >>> x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    >>> loss = ((x - w) ** 2).mean()
    >>> train, valid = minimize(loss, [np.ones(64)], learning_rate=0.01, mode="FAST_COMPILE")
    >>> abs(float(w.get_value()) - 1) < 0.05
    True
    """
    if mode is None and devices is None:
        mode = _mode_of_one_call(train, seed, options.get("checkpoint"))
    for name, count in (("train_batches", train_batches), ("valid_batches", valid_batches)):
        if count is not None:
            check_count(name, count)
    keywords = {"carried": carried, "monitor_updates": monitor_updates, "mode": mode}
    keywords |= {"devices": devices, "shard_above": shard_above}
    trainer = build(algo, loss, params, inputs, updates, monitors, monitor_gradients, **keywords)
    train = as_dataset(train, "train", batch_size, train_batches, seed)
    if valid is not None:
        own = isinstance(valid, Dataset)
        valid = as_dataset(valid, "valid", None if own else batch_size, valid_batches)
    return trainer.minimize(train, valid, **options)


def sweep(
    loss: Any,
    train: Any = None,
    valid: Any = None,
    params: Sequence[Any] | None = None,
    inputs: Sequence[Any] | None = None,
    updates: Iterable[Update] | Mapping[Any, Any] = (),
    monitors: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    *,
    mode: Any = None,
    **options: Any,
) -> Sweep:
    """Minimise a loss many times, with other hyperparameters and seeds, and compile once.

    Parameters
    ----------
    loss : Variable
        A real floating-point scalar.
    train, valid : Dataset or whatever it accepts
        The data.
    params, inputs, updates, monitors, mode
        As for `Trainer`.
    **options
        As for `Trainer.sweep`: hyperparameters that are lists are tried.

    Returns
    -------
    Sweep
        The runs as data; the parameters of the best are left in place.

    Examples
    --------
    >>> import numpy as np, pytensor, pytensor.tensor as pt
    >>> x, w = pt.vector("x"), pytensor.shared(0.0, name="w")
    >>> loss = ((x - w) ** 2).mean()
    >>> options = {"max_epochs": 50, "mode": "FAST_COMPILE"}
    >>> found = sweep(loss, [np.ones(64)], learning_rate=[1e-4, 1e-2], **options)
    >>> found.best.settings
    {'learning_rate': 0.01}
    """
    trainer = Trainer(loss, params, inputs, updates, monitors, mode=mode)
    return trainer.sweep(train, valid, **options)


def _mode_of_one_call(train: Any, seed: int | None, checkpoint: Checkpoint | None) -> str | None:
    """Tiered, except for a run that is to be repeated: the two forms differ in the last bits."""
    repeated = seed is not None or isinstance(train, Dataset) or checkpoint is not None
    return None if repeated else default_mode()
