"""A problem, trained in a run directory: what ``downhill-rms train`` does."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from downhill_rms.compiling import default_mode
from downhill_rms.data import Dataset, as_dataset
from downhill_rms.data.datafiles import read_data
from downhill_rms.data.parquet import is_streamed
from downhill_rms.problem import MONITORING, Problem, problem_path
from downhill_rms.rule import Hyperparameters, parse_schedule
from downhill_rms.trainer import Trainer
from downhill_rms.training import in_json
from downhill_rms.watching.plots import learning_curves
from downhill_rms.watching.rundirectory import RunDirectory

Resume = bool | Literal["changed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks of a run, beside the problem.

    Attributes
    ----------
    spec : str
        Where the problem is found.
    seed : int
        Of the problem and of the data's order.
    train, valid : str or None
        Data files, or folders of Parquet files.
    mode : str or None
        How PyTensor compiles; by default `default_mode`.
    hyperparameters, options : mapping
        Those that come before the problem's defaults.
    devices, shard_above : optional
        As for `Trainer`. They are not kept: a run goes on with as many as are there then.
    """

    spec: str
    seed: int = 0
    train: str | None = None
    valid: str | None = None
    mode: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    devices: int | str | None = None
    shard_above: int | None = None

    def to_config(self, problem: Problem) -> dict[str, Any]:
        """Everything that decides what the run does, as ``config.json`` keeps it."""
        return {
            "problem": self.spec,
            "path": problem_path(self.spec),
            "seed": self.seed,
            **{name: file and str(Path(file).resolve()) for name, file in self._files.items()},
            "mode": self.mode_in_force,
            "hyperparameters": in_json(self.in_force(problem)),
            "options": self.all_options(problem),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **given: Any) -> Request:
        """The request that `to_config` wrote down, for a run that goes on, with changes.

        Raises
        ------
        ValueError
            If another seed is given: other data would be split and shuffled by it.
        """
        if given.get("seed") not in (None, config["seed"]):
            raise ValueError(
                f"The seed is {given['seed']}: a run goes on with its own, {config['seed']}. Leave "
                "--seed out, or begin in another directory."
            )
        hyperparameters = dict(config["hyperparameters"])
        if hyperparameters["learning_rate"] is None:
            del hyperparameters["learning_rate"]
        elif isinstance(hyperparameters["learning_rate"], str):
            learning_rate = parse_schedule(hyperparameters["learning_rate"])
            hyperparameters["learning_rate"] = learning_rate
        names = ("seed", "train", "valid", "mode", "options")
        kept = {name: config[name] for name in names}
        request = cls(spec=config["problem"], hyperparameters=hyperparameters, **kept)
        return request.changed(**given)

    def changed(self, assignments: Iterable[tuple[str, Any]] = (), **given: Any) -> Request:
        """The request with some of it given anew; what is None stays as it was.

        Parameters
        ----------
        assignments : iterable of (str, value)
            Hyperparameters.
        **given
            Fields of a request, and options of ``Trainer.iterate``.
        """
        given = {name: value for name, value in given.items() if value is not None}
        own = {one.name for one in fields(self)}
        options = {name: value for name, value in given.items() if name not in own}
        return replace(
            self,
            **{name: value for name, value in given.items() if name in own},
            hyperparameters={**self.hyperparameters, **dict(assignments)},
            options={**self.options, **options},
        )

    def all_options(self, problem: Problem) -> dict[str, Any]:
        """The options of the run, the problem's defaults included."""
        return {**problem.options, **self.options}

    @property
    def mode_in_force(self) -> str | None:
        """How PyTensor compiles: as was asked for, or what begins at once where it can."""
        return self.mode or (default_mode() if self.devices is None else "JAX")

    def in_force(self, problem: Problem) -> Hyperparameters:
        """The hyperparameters of the run."""
        return Hyperparameters(**problem.hyperparameters).replace(**self.hyperparameters)

    @property
    def _files(self) -> dict[str, str | None]:
        return {"train": self.train, "valid": self.valid}

    def with_files(self, problem: Problem) -> Problem:
        """The problem, with data from files where they are given."""
        files = {name: file for name, file in self._files.items() if file}
        if not files:
            return problem
        specs = problem.trainer().steps.specs
        data: dict[str, Any] = {
            name: Path(file) if is_streamed(file) else read_data(file, specs)
            for name, file in files.items()
        }
        if not self.valid and problem.valid is not None:
            log.warning("the problem's own validation data are used: --valid FILE gives others")
        return replace(problem, **data)


def train(
    problem: Problem, request: Request, directory: RunDirectory, *, resume: Resume, progress: bool
) -> Trainer:
    """Train a problem, and leave everything that the run is in its directory.

    Parameters
    ----------
    problem : Problem
        The loss.
    request : Request
        What is asked of the run.
    directory : RunDirectory
        Where; it is there.
    resume : bool or "changed"
        Whether the run there goes on, also with a changed loss.
    progress : bool
        Whether a bar is shown.

    Returns
    -------
    Trainer
        Its ``stop_reason`` tells how the run ended.
    """
    problem = request.with_files(problem)
    options = request.all_options(problem)
    monitoring = {name: options.pop(name) for name in MONITORING if name in options}
    many = {"devices": request.devices, "shard_above": request.shard_above}
    trainer = problem.trainer(request.mode_in_force, **monitoring, **many)
    data = training_data(problem, trainer, options.pop("batch_size", None), request.seed)
    asked = RunDirectory(directory.path, request.to_config(problem))
    trainer.minimize(
        data,
        problem.valid,
        **options,
        **request.in_force(problem),
        run_directory=asked,
        resume=resume,
        progress=progress,
    )
    return trainer


def training_data(problem: Problem, trainer: Trainer, batch_size: int | None, seed: int) -> Any:
    """The training data, shuffled by the run's own seed unless they are a `Dataset` already."""
    if problem.train is None and trainer.steps.specs:
        raise ValueError(
            f"{problem.name} has no data for {', '.join(map(str, trainer.steps.specs))}: a loss "
            "with inputs needs some. Give --train FILE, or a problem with train."
        )
    ready = problem.train is None or isinstance(problem.train, Dataset)
    return as_dataset(problem.train, "train", batch_size, seed=None if ready else seed)


def draw(directory: RunDirectory) -> None:
    """Draw the curves into the run directory, if that can be done here."""
    try:
        figure = learning_curves(directory.read_history())
        figure.savefig(directory.curves_path)
    except ImportError as error:
        log.warning("no %s: %s", directory.curves_path.name, error)
