"""What a sweep is asked for, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.rule import (
    Hyperparameters,
    check_choice,
    check_count,
    check_flag,
    refuse_unknown,
    shown,
)
from downhill_rms.sweeping.manifest import Manifest
from downhill_rms.sweeping.ranges import Settings, Start, combine, is_tried
from downhill_rms.training.options import OPTIONS

if TYPE_CHECKING:
    from downhill_rms.trainer import Trainer

HOW = ("in turns", "together")
MINIBATCHES = ("same", "seed")
# Options of ``iterate`` that a sweep does not pass on, and its own.
REFUSED = ("checkpoint", "save_batch", "observers")
OWN = (
    *("seeds", "start", "zipped", "sample", "minibatches"),
    *("how", "halve_every", "observe"),
)


@dataclass(frozen=True)
class Asked:
    """One run of a sweep, before it is begun.

    Attributes
    ----------
    name : str
        Its number.
    settings : dict
        The hyperparameters that differ from run to run.
    seed : int or None
        What it begins with.
    hyperparameters : Hyperparameters
        All of them.
    """

    name: str
    settings: Settings
    seed: int | None
    hyperparameters: Hyperparameters


def split(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyperparameters, their arrays as lists, and the options of ``iterate``."""
    names = Hyperparameters.names()
    refuse_unknown(keywords, [*names, *(o for o in OPTIONS if o not in REFUSED), *OWN])
    given = {name: value for name, value in keywords.items() if name in names}
    given = {n: list(v) if isinstance(v, np.ndarray) else v for n, v in given.items()}
    return given, {name: value for name, value in keywords.items() if name not in names}


def check_ways(
    trainer: Trainer, how: Any, minibatches: Any, options: Mapping[str, Any], resume: Any
) -> None:
    """Refuse ways that cannot be.

    Raises
    ------
    TypeError, ValueError
        With what can be instead.
    """
    if trainer.steps.placement.divides:
        raise ValueError(
            "The trainer has devices=, and a sweep has runs of one device each. Leave devices out; "
            "--workers of the command line makes runs in several processes."
        )
    if how is not None:
        check_choice("how", how, HOW)
    check_choice("minibatches", minibatches, MINIBATCHES)
    if check_flag("resume", resume) and options.get("run_directory") is None:
        raise ValueError("resume=True is given without run_directory=, which it needs. Give both.")
    if options.get("on_divergence") == "raise":
        raise ValueError(
            "on_divergence is 'raise': in a sweep a run that diverges leaves, and the others go "
            "on. Give 'stop' or 'rollback', and look at each run's stop_reason."
        )


def check_halving(halve_every: Any, validate_every: Any, only: Sequence[int] | None) -> None:
    """Refuse to halve where runs cannot be compared.

    Raises
    ------
    TypeError, ValueError
        If there is no validation then, or not all runs are here.
    """
    if halve_every is None:
        return
    check_count("halve_every", halve_every)
    if halve_every % (every := check_count("validate_every", validate_every)):
        raise ValueError(
            f"halve_every is {halve_every} and validate_every {every}: runs are compared by "
            "a validation at that epoch. Give a multiple of validate_every."
        )
    if only is not None:
        raise ValueError(
            "halve_every is given for a part of the runs: it compares all of them. Make them "
            "in one process, without workers."
        )


def check_seeds(
    trainer: Trainer, seeds: Sequence[int], start: Start | None, minibatches: str
) -> None:
    """Refuse seeds that nothing depends on, and a start without seeds.

    Raises
    ------
    TypeError, ValueError
        With what would depend on them.
    """
    if start is not None and not seeds:
        raise ValueError(
            "start is given without seeds=: it is called once for each seed. Give seeds=4, say."
        )
    is_for_each = isinstance(start, Mapping) and all(seed in start for seed in seeds)
    if start is not None and not (callable(start) or is_for_each):
        raise TypeError(
            f"start is {shown(start)}: it is a function that is given a generator of NumPy's and "
            "returns parameters, by name or in order, or a mapping that has them for each seed. "
            "Give one."
        )
    if minibatches == "seed" and not seeds:
        raise ValueError(
            "minibatches='seed' is given without seeds=: each seed then has an order of its own. "
            "Give seeds=4, say."
        )
    if len(seeds) > 1 and start is None and not trainer.steps.generators and minibatches == "same":
        raise ValueError(
            f"{len(seeds)} seeds are given, and nothing depends on them: a seed starts the "
            "parameters by start=, and random generators, of which the loss has none. Give "
            "start=, or minibatches='seed', or leave seeds out."
        )


def combinations(
    given: Mapping[str, Any], zipped: bool, sample: int | None, seed: Any, manifest: Manifest | None
) -> list[Settings]:
    """The settings that are tried; those that were drawn, where a sweep goes on."""
    if manifest is not None and manifest.goes_on and sample is not None:
        return manifest.settings(given)
    rng = np.random.default_rng(seed if isinstance(seed, int) else None)
    return combine(given, zipped, sample, rng)


def runs_of(
    trainer: Trainer, given: Mapping[str, Any], settings: Sequence[Settings], seeds: Sequence[int]
) -> list[Asked]:
    """Every combination with every seed.

    Raises
    ------
    TypeError, ValueError
        The error that one of the runs alone would raise.
    """
    fixed = {name: value for name, value in given.items() if not is_tried(value)}
    in_force = [trainer.steps.changed({**fixed, **one}) for one in settings]
    for hyperparameters in in_force:
        trainer.steps.state.values(hyperparameters)
    each: list[int | None] = [*seeds] or [None]
    runs = [(*pair, s) for pair in zip(settings, in_force, strict=True) for s in each]
    width = len(str(len(runs) - 1))
    return [Asked(f"{n:0{width}d}", one, s, h) for n, (one, h, s) in enumerate(runs)]
