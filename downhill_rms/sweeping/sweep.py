"""Many runs of one model: what is tried, and the turns in which the runs are made."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.compiling import TIERED, is_jax
from downhill_rms.data import as_dataset
from downhill_rms.rule import (
    Hyperparameters,
    check_choice,
    check_count,
    check_flag,
    refuse_unknown,
    shown,
)
from downhill_rms.sweeping.manifest import Manifest, align
from downhill_rms.sweeping.members import Member, copied, held_values
from downhill_rms.sweeping.minibatches import SharedDataset
from downhill_rms.sweeping.ranges import Settings, Start, as_seeds, combine, is_tried
from downhill_rms.sweeping.results import Sweep
from downhill_rms.sweeping.together import MemberTogether, Together, obstacle
from downhill_rms.training import Steps, StopReason, in_json
from downhill_rms.training.loop import INTERRUPTIONS, interruption
from downhill_rms.training.options import OPTIONS
from downhill_rms.training.signals import StopSignals
from downhill_rms.watching import Progress, Record, RunDirectory, open_progress

if TYPE_CHECKING:
    from downhill_rms.trainer import Trainer

HOW = ("in turns", "together")
MINIBATCHES = ("same", "seed")
# Runs go together if there are so many, with no more parameters than this, a call of one takes
# less, and in turns they would take longer.
FEWEST, LARGEST, OVERHEAD, WORTHWHILE = 8, 50_000, 20e-6, 10.0  # seconds
TRIED = 50  # calls that are timed
# Reasons for which a run is not taken up again; after the others its limits tell.
FOR_GOOD = (StopReason.DIVERGED, StopReason.OBSERVER, StopReason.HALVED)

Observe = Callable[["Trainer"], Iterable[Callable[[Record], Any]]]

log = logging.getLogger(__name__)


class Turns:
    """The runs of a sweep, which take turns, an epoch each.

    Parameters
    ----------
    members : sequence of Member
        The runs; their generators are made and have not begun.
    manifest : Manifest or None
        What a killed sweep is to know again.
    halve_every : int or None
        Epochs after which the better half goes on.
    bar : Progress
        Where the sweep is shown.
    """

    def __init__(
        self,
        members: Sequence[Member],
        manifest: Manifest | None,
        halve_every: int | None,
        bar: SweepProgress,
    ) -> None:
        self.members, self.manifest, self.halve_every, self.bar = (
            members,
            manifest,
            halve_every,
            bar,
        )
        self.live: list[Member] = [m for m in members if m.loop.stop_reason is None]
        self.signals = StopSignals()
        self.halved_at = 0 if manifest is None else manifest.halved_at
        self._best: Member | None = None  # of those that have left, the one whose values are kept

    def run(self) -> None:
        """Go on until no run is left, or a signal comes."""
        self.signals.install()
        try:
            for member in self.members:
                if member.loop.stop_reason is not None:  # it had ended before
                    self._keep_or_drop(member)
            self._each(list(self.live))
            while self.live and not self._ends():
                epoch = min(member.loop.epoch_count for member in self.live)
                if self._is_time_to_halve(epoch):
                    self._halve(epoch)
                    continue
                self._each([m for m in self.live if m.loop.epoch_count == epoch])
        finally:
            self._close()
            self.signals.remove()

    def _ends(self) -> bool:
        """Whether somebody has asked for an end."""
        reason = interruption(self.signals) or next(
            (m.loop.stop_reason for m in self.members if m.loop.stop_reason in INTERRUPTIONS), None
        )
        if reason is not None:
            self._leave(list(self.live), reason)
        return reason is not None

    def _each(self, members: Iterable[Member]) -> None:
        """Give some runs a turn."""
        for member in members:
            if not member.turn():
                self._left(member)
                if member.loop.stop_reason in INTERRUPTIONS:
                    return
            self.bar.show()
            if self.signals.received is not None:
                return

    def _is_time_to_halve(self, epoch: int) -> bool:
        every = self.halve_every
        if every is None or len(self.live) < 2 or epoch <= self.halved_at or epoch % every:
            return False
        return all(member.loop.epoch_count == epoch for member in self.live)

    def _halve(self, epoch: int) -> None:
        """Let the better half of the runs go on, by what each was at its best."""
        self.halved_at = epoch

        def key(member: Member) -> tuple[bool, float]:
            run = member.loop.run
            value = math.nan if run is None else run.patience.best_value
            sign = -1 if run is not None and run.patience.higher_is_better else 1
            return math.isnan(value), sign * value

        order = sorted(self.live, key=key)
        better = order[: -(-len(order) // 2)]
        out = [member for member in self.live if member not in better]
        if self.manifest is not None:
            self.manifest.halve(epoch, [member.name for member in out])
        self._leave(out, StopReason.HALVED)

    def _leave(self, members: Iterable[Member], reason: StopReason | None) -> None:
        for member in members:
            member.close(reason)
            self._left(member)

    def _left(self, member: Member) -> None:
        self.live.remove(member)
        self._keep_or_drop(member)

    def _keep_or_drop(self, member: Member) -> None:
        """Keep the values of a run that has left if it is the best of them; else let them go."""
        worse = member
        if member.loop.best is not None and (self._best is None or member.is_better(self._best)):
            worse, self._best = self._best or member, member
        if worse is not self._best:
            worse.leave()

    def _close(self) -> None:
        """End what an error has left open, and keep the error."""
        for member in list(self.live):
            self._leave([member], None)

    @property
    def best(self) -> Member | None:
        """The best of all runs, when all have left."""
        return self._best


class SweepProgress:
    """One bar for all runs.

    Parameters
    ----------
    bar : Progress
        What is drawn.
    total : int or None
        Updates that one run makes at the most.
    """

    def __init__(
        self, wanted: bool | None, total: int | None, epochs: int | None, runs: int
    ) -> None:
        whole = None if total is None else total * runs
        self.bar, self.total = open_progress(wanted, whole, epochs), total
        self.members: Sequence[Member] = ()

    def show(self) -> None:
        """Draw, if it is time."""
        if self.bar.due():
            self.draw()

    def draw(self) -> None:
        """Draw where the sweep has come to."""
        live = [m for m in self.members if m.loop.stop_reason is None]
        bests = [m.loop.best for m in self.members if m.loop.best is not None]
        run = next((m.loop.run for m in self.members if m.loop.run is not None), None)
        losses: dict[str, float] = {"runs": len(live)}
        if run is not None and bests:
            judge = run.patience
            values = [best.monitors[judge.monitor] for best in bests]
            losses["best"] = max(values) if judge.higher_is_better else min(values)
        epoch = max((m.loop.epoch_count for m in self.members), default=0)
        self.bar.draw(epoch, sum(map(self._updates, self.members)), losses)

    def _updates(self, member: Member) -> int:
        ended = member.loop.stop_reason is not None
        return self.total if ended and self.total is not None else member.steps.update_count

    def of_one_run(self) -> Progress:
        """What one of the runs draws on: the bar of all."""
        return _Part(self)


class _Part(Progress):
    """The bar of all runs, as one of them knows it."""

    def __init__(self, whole: SweepProgress) -> None:
        self.whole = whole
        self.due = whole.bar.due  # type: ignore[method-assign]

    def say(self, text: str) -> None:
        self.whole.bar.say(text)

    def draw(self, epoch: int, updates: int, losses: Mapping[str, float]) -> None:
        if self.due():
            self.whole.draw()


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
    if trainer.steps.placement.divides:
        raise ValueError(
            "The trainer has devices=, and a sweep has runs of one device each. Leave devices out; "
            "--workers of the command line makes runs in several processes."
        )
    names = Hyperparameters.names()
    refuse_unknown(options, [*names, *(o for o in OPTIONS if o not in REFUSED), *OWN])
    given = {name: value for name, value in options.items() if name in names}
    options = {name: value for name, value in options.items() if name not in names}
    _check(how, minibatches, options, resume, run_directory)
    if halve_every is not None:
        check_count("halve_every", halve_every)
        if halve_every % (
            every := check_count("validate_every", options.get("validate_every", 10))
        ):
            raise ValueError(
                f"halve_every is {halve_every} and validate_every {every}: runs are compared by "
                "a validation at that epoch. Give a multiple of validate_every."
            )
        if only is not None:
            raise ValueError(
                "halve_every is given for a part of the runs: it compares all of them. Make them "
                "in one process, without workers."
            )
    whose = as_seeds(seeds)
    if start is not None and not whose:
        raise ValueError(
            "start is given without seeds=: it is called once for each seed. Give seeds=4, say."
        )
    _check_seeds(trainer, whose, start, minibatches)
    manifest = None if run_directory is None else Manifest(run_directory, resume)
    given = {n: list(v) if isinstance(v, np.ndarray) else v for n, v in given.items()}
    combos = _combinations(given, zipped, sample, seed if draws is None else draws, manifest)
    fixed = {name: value for name, value in given.items() if not is_tried(value)}
    each: list[int | None] = [*whose] or [None]
    asked = [(combo, s) for combo in combos for s in each]
    hyperparameters = [_in_force(trainer, fixed, combo) for combo in combos]
    pairs = [(h, s) for h in hyperparameters for s in each]
    data = SharedDataset(as_dataset(train, "train", batch_size, seed=seed))
    judge: Any = None
    if valid is not None:
        size = None if hasattr(valid, "bind") else batch_size
        judge = SharedDataset(as_dataset(valid, "valid", size))
    if manifest is not None:
        manifest.begin(combos, whose, given, {"zipped": zipped, "sample": sample}, data.order)
    orders = _orders(data, whose, minibatches)
    places = range(len(asked)) if only is None else only
    width = len(str(len(asked) - 1))
    options |= {"max_updates": max_updates, "max_epochs": max_epochs, "restore_best": restore_best}
    held = held_values(trainer.steps)
    total = _total_updates(data, max_updates, max_epochs)
    bar = SweepProgress(progress, total, max_epochs, len(places))
    trainer.steps.say = bar.bar.say
    if manifest is not None:
        trainer.steps.fingerprint  # noqa: B018  # computed once for all
    in_turns_only = {
        "observe": observe,
        "on_divergence='rollback'": options.get("on_divergence") == "rollback",
        "minibatches='seed'": minibatches == "seed",
    }
    way = how or (manifest.content.get("how") if manifest is not None else None)
    groups = Groups(trainer, int(options.get("updates_per_call", 1)))
    members: list[Member] = []
    best: Member | None = None
    state: dict[str, Any] = {}
    try:
        for place in places:
            (h, s), (settings, _) = pairs[place], asked[place]
            member = groups.member(f"{place:0{width}d}", settings, s, h)
            member.begin_with(held, start)
            members.append(member)
        members = groups.join(
            members, lambda steps, own: choose(steps, own, way, in_turns_only, data, total)
        )
        if manifest is not None:
            together = any(isinstance(member, MemberTogether) for member in members)
            manifest.note("how", "together" if together else "in turns")
            if resume and together:
                align([manifest.path / member.name for member in members])
        bar.members = members
        for member in members:
            member.put()
            order = orders[member.seed if minibatches == "seed" else None]
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
        bar.draw()
        bar.bar.close()
        for variable, value in held.items():
            variable.container.storage[0] = value
        groups.end()
        trainer.steps.say = str
    if best is not None and best.loop.best is not None:
        trainer.loop.best = best.loop.best
        if restore_best:
            trainer.steps.put_back(best.loop.best.params, best.loop.best.assigned)
    monitor = options.get("monitor", "loss")
    result = Sweep(
        [member.result() for member in members],
        *(monitor, options.get("higher_is_better", False), state),
        time.perf_counter() - began,
    )
    if manifest is not None and only is None:
        result.to_csv(manifest.csv_path)
    return result


# Options of ``iterate`` that a sweep does not pass on, and its own.
REFUSED = ("checkpoint", "save_batch", "observers")
OWN = (
    *("seeds", "start", "zipped", "sample", "minibatches"),
    *("how", "halve_every", "observe"),
)


class Groups:
    """Runs by the structure of their rule: those of one share compiled functions.

    Parameters
    ----------
    trainer : Trainer
        Whose model it is.
    updates_per_call : int
        Minibatches that a call takes.
    """

    def __init__(self, trainer: Trainer, updates_per_call: int) -> None:
        self.trainer, self.updates_per_call = trainer, updates_per_call
        self.steps: dict[Any, Steps] = {}
        self.together: list[Together] = []

    def member(self, name: str, settings: Settings, seed: int | None, h: Hyperparameters) -> Member:
        """A new run."""
        if h.structure not in self.steps:
            steps = self.trainer.steps.variant(h.structure)
            steps.say = self.trainer.steps.say
            steps.use(dict(h), self.updates_per_call)
            self.steps[h.structure] = steps
        return Member(self.trainer, self.steps[h.structure], name, settings, seed, h)

    def join(
        self, members: Sequence[Member], wanted: Callable[[Steps, list[Member]], bool]
    ) -> list[Member]:
        """The same runs; those of a structure go together where that is wanted and can be."""
        joined: dict[str, Member] = {member.name: member for member in members}
        for structure, steps in self.steps.items():
            own = [m for m in members if m.hyperparameters.structure == structure]
            if not wanted(steps, own):
                continue
            try:
                together = Together.of(steps, own, self.updates_per_call)
            except Exception as error:  # PyTensor raises many kinds for what it cannot vectorise
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                log.warning(
                    "the runs take turns: PyTensor does not vectorise the loss (%s)", reason
                )
                continue
            self.together.append(together)
            joined |= {member.name: MemberTogether.of(member, together) for member in own}
        return list(joined.values())

    def end(self) -> None:
        """Let go of what the runs had, but for what was compiled."""
        for together in self.together:
            together.end()


def choose(
    steps: Steps,
    members: Sequence[Member],
    how: str | None,
    asked: Mapping[str, Any],
    data: SharedDataset,
    total: int | None,
) -> bool:
    """Whether the runs of one structure go together.

    By default they do in JAX mode, and where one run's call takes less than `OVERHEAD` seconds,
    which is the time of the call itself, if what they save is worth compiling another function.

    Parameters
    ----------
    steps : Steps
        What they have in common.
    members : sequence of Member
        The runs.
    how : {"in turns", "together", None}
        What the user says.
    asked : mapping of str to value
        Options that only runs in turns can have, by name.
    data : SharedDataset
        A minibatch of which is tried.
    total : int or None
        Updates of one run at the most.
    """
    if how == "in turns" or len(members) < (2 if how else FEWEST):
        return False
    reasons = [f"{name} is given" for name, value in asked.items() if value]
    reason = obstacle(steps) if not reasons else reasons[0]
    if reason is not None:
        if how is not None or is_jax(steps.mode):
            log.warning("the runs take turns: %s", reason)
        return False
    if how is not None or is_jax(steps.mode):
        return True
    size = sum(np.size(v.get_value(borrow=True)) for v in steps.parameters.variables.values())
    if steps.mode == TIERED or steps.updates_per_call > 1 or size > LARGEST:
        return False
    seconds = _seconds_of_a_call(steps, members[0], data)
    saved = math.inf if total is None else seconds * total * len(members)
    together = seconds < OVERHEAD and saved > WORTHWHILE
    log.info(
        "one run's update takes %.1f us: the runs %s",
        *(seconds * 1e6, "go together" if together else "take turns"),
    )
    return together


def _seconds_of_a_call(steps: Steps, member: Member, data: SharedDataset) -> float:
    """What an update of one run takes, compiled; it leaves no trace."""
    bound = data.bind(steps.specs)
    bound.begin_epoch(0)
    batch, _ = next(iter(bound.in_order()))
    values = member.values
    member.values = {v: copied(value) for v, value in values.items()}
    member.put()
    update = steps._update
    assert update is not None
    update(*batch)  # which compiles
    times = []
    for _ in range(TRIED):
        began = time.perf_counter()
        update(*batch)
        times.append(time.perf_counter() - began)
    member.values = values
    return min(times)


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


def _check(
    how: Any, minibatches: Any, options: Mapping[str, Any], resume: Any, run_directory: Any
) -> None:
    """Refuse what cannot be, before anything is read."""
    if how is not None:
        check_choice("how", how, HOW)
    check_choice("minibatches", minibatches, MINIBATCHES)
    check_flag("resume", resume)
    if resume and run_directory is None:
        raise ValueError("resume=True is given without run_directory=, which it needs. Give both.")
    if options.get("on_divergence") == "raise":
        raise ValueError(
            "on_divergence is 'raise': in a sweep a run that diverges leaves, and the others go "
            "on. Give 'stop' or 'rollback', and look at each run's stop_reason."
        )


def _check_seeds(
    trainer: Trainer, seeds: Sequence[int], start: Start | None, minibatches: str
) -> None:
    """Refuse seeds that nothing depends on."""
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


def _combinations(
    given: Mapping[str, Any], zipped: bool, sample: int | None, seed: Any, manifest: Manifest | None
) -> list[Settings]:
    if manifest is not None and manifest.goes_on and sample is not None:
        return manifest.settings(given)
    rng = np.random.default_rng(seed if isinstance(seed, int) else None)
    return combine(given, zipped, sample, rng)


def _in_force(trainer: Trainer, fixed: Mapping[str, Any], settings: Settings) -> Hyperparameters:
    """The hyperparameters of a run, or the error that the run alone would raise."""
    hyperparameters = trainer.steps.changed({**fixed, **settings})
    trainer.steps.state.values(hyperparameters)
    return hyperparameters


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
