"""Many runs of one model: how they are begun, made and told of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.data import as_dataset
from downhill_rms.rule import check_count
from downhill_rms.sweeping.groups import Groups, choose
from downhill_rms.sweeping.manifest import Manifest, align
from downhill_rms.sweeping.members import Member, held_values
from downhill_rms.sweeping.minibatches import SharedDataset
from downhill_rms.sweeping.progress import SweepProgress
from downhill_rms.sweeping.ranges import Start, as_seeds
from downhill_rms.sweeping.request import (
    Asked,
    check_halving,
    check_seeds,
    check_ways,
    combinations,
    runs_of,
    split,
)
from downhill_rms.sweeping.results import Sweep
from downhill_rms.sweeping.together import MemberTogether
from downhill_rms.sweeping.turns import Turns
from downhill_rms.training import StopReason, in_json
from downhill_rms.watching import Record, RunDirectory

if TYPE_CHECKING:
    from downhill_rms.trainer import Trainer

# Reasons for which a run is not taken up again; after the others its limits tell.
FOR_GOOD = (StopReason.DIVERGED, StopReason.OBSERVER, StopReason.HALVED)

Observe = Callable[["Trainer"], Iterable[Callable[[Record], Any]]]


def sweep(
    trainer: Trainer,
    train: Any = None,
    valid: Any = None,
    max_updates: int | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    start: Start | None = None,
    zipped: bool = False,
    sample: int | None = None,
    minibatches: str = "same",
    how: str | None = None,
    halve_every: int | None = None,
    max_epochs: int | None = None,
    restore_best: bool = True,
    batch_size: int | None = None,
    seed: int | np.random.Generator | None = None,
    run_directory: Any = None,
    resume: bool = False,
    progress: bool | None = None,
    observe: Observe | None = None,
    only: Sequence[int] | None = None,
    draws: int | None = None,
    **options: Any,
) -> Sweep:
    """What `Trainer.sweep` does; the parameters are described there.

    ``only`` are the places of the runs that are made, of all that are asked for, and ``draws`` is
    the seed of what is drawn at random, where that is not ``seed``.
    """
    began = time.perf_counter()
    given, options = split(options)
    check_ways(trainer, how, minibatches, {**options, "run_directory": run_directory}, resume)
    check_halving(halve_every, options.get("validate_every", 10), only)
    whose = as_seeds(seeds)
    check_seeds(trainer, whose, start, minibatches)
    manifest = None if run_directory is None else Manifest(run_directory, resume)
    settings = combinations(given, zipped, sample, seed if draws is None else draws, manifest)
    asked = runs_of(trainer, given, settings, whose)
    data = SharedDataset(as_dataset(train, "train", batch_size, seed=seed))
    judge: Any = None
    if valid is not None:
        size = None if hasattr(valid, "bind") else batch_size
        judge = SharedDataset(as_dataset(valid, "valid", size))
    way = how
    if manifest is not None:
        manifest.begin(settings, whose, given, {"zipped": zipped, "sample": sample}, data.order)
        way = how or manifest.content.get("how")
        trainer.steps.fingerprint  # noqa: B018  # computed once for all
    orders = _orders(data, whose, minibatches)
    asked = asked if only is None else [asked[place] for place in only]
    total = _total_updates(data, max_updates, max_epochs)
    in_turns_only = {
        "observe": observe,
        "on_divergence='rollback'": options.get("on_divergence") == "rollback",
        "minibatches='seed'": minibatches == "seed",
    }
    options |= {"max_updates": max_updates, "max_epochs": max_epochs, "restore_best": restore_best}
    per_call = None
    if "updates_per_call" in options:
        per_call = check_count("updates_per_call", options["updates_per_call"])
    held = held_values(trainer.steps)
    bar = SweepProgress(progress, total, max_epochs, len(asked))
    trainer.steps.say = bar.say
    groups = Groups(trainer, per_call)
    best: Member | None = None
    state: dict[str, Any] = {}
    try:
        members = _made(asked, groups, held, start)
        members = groups.join(
            members, lambda steps, own: choose(steps, own, way, in_turns_only, data, total)
        )
        if manifest is not None:
            _note_way(manifest, members, resume)
        bar.members = members
        for member in members:
            order = orders[member.seed if minibatches == "seed" else None]
            member.put()
            try:
                _begin(member, order, judge, options, manifest, resume, bar, observe)
            finally:
                member.take()
        turns = Turns(members, manifest, halve_every, bar)
        turns.run()
        best = turns.best
        if best is not None:
            best.put()
            state = best.trainer.state_dict()
    finally:
        bar.close()
        for variable, value in held.items():
            variable.container.storage[0] = value
        groups.end()
        trainer.steps.say = str
    if best is not None and best.loop.best is not None:
        trainer.loop.best = best.loop.best
        if restore_best:
            trainer.steps.put_back(best.loop.best.params, best.loop.best.assigned)
    judged = (options.get("monitor", "loss"), options.get("higher_is_better", False))
    runs = [member.result() for member in members]
    found = Sweep(runs, *judged, state, time.perf_counter() - began)
    if manifest is not None and only is None:
        found.to_csv(manifest.csv_path)
    return found


def _made(
    asked: Iterable[Asked], groups: Groups, held: dict[Any, Any], start: Start | None
) -> list[Member]:
    """The runs, each with the values that it begins with."""
    members = []
    for one in asked:
        member = groups.member(one.name, one.settings, one.seed, one.hyperparameters)
        member.begin_with(held, start)
        members.append(member)
    return members


def _note_way(manifest: Manifest, members: Sequence[Member], resume: bool) -> None:
    """Write down whether runs go together; they are put back to one update if they go on so."""
    together = any(isinstance(member, MemberTogether) for member in members)
    manifest.note("how", "together" if together else "in turns")
    if resume and together:
        align([manifest.path / member.name for member in members])


def _begin(
    member: Member,
    data: SharedDataset,
    judge: SharedDataset | None,
    options: Mapping[str, Any],
    manifest: Manifest | None,
    resume: bool,
    bar: SweepProgress,
    observe: Observe | None,
) -> None:
    """Make the run, as ``iterate`` makes one, up to its first update."""
    extra: dict[str, Any] = {}
    if manifest is not None:
        config = {
            **manifest.config,
            **({} if member.seed is None else {"seed": member.seed}),
            "hyperparameters": in_json(member.hyperparameters),
            "options": {n: v for n, v in options.items() if v is not None},
        }
        member.directory = RunDirectory(manifest.path / member.name, config)
        reason = manifest.ended(member.name) if resume else None
        if reason in FOR_GOOD:
            member.read_ended(StopReason(reason))
            return
        extra = {"run_directory": member.directory, "resume": resume}
    if isinstance(member, MemberTogether):
        options = {**options, "updates_per_call": member.stack_length(data)}
    extra["observers"] = [] if observe is None else list(observe(member.trainer))
    extra["progress"] = bar.of_one_run()
    member.starts_clock()
    given = {**options, **extra, **member.hyperparameters}
    member.epochs = member.trainer.iterate(data, judge, **given)


def _orders(
    data: SharedDataset, seeds: Sequence[int], minibatches: str
) -> dict[Any, SharedDataset]:
    """The data in the order of each seed."""
    if minibatches == "same":
        return {None: data}
    if data.order is None:
        raise ValueError(
            "minibatches='seed' is given with batches that come ready: their order is their own. "
            "Give arrays, or leave it out."
        )
    return {seed: data.in_order_of(np.random.default_rng(seed)) for seed in seeds}


def _total_updates(
    data: SharedDataset, max_updates: int | None, max_epochs: int | None
) -> int | None:
    limits = [] if max_updates is None else [max_updates]
    if max_epochs is not None and data.iteration_size is not None:
        limits.append(max_epochs * data.iteration_size)
    return min(limits, default=None)
