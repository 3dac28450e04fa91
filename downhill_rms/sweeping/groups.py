"""Runs whose rule has one structure share compiled functions, and may go together."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.compiling import TIERED, is_compiled, is_jax
from downhill_rms.rule import Hyperparameters
from downhill_rms.sweeping.members import Member, copied
from downhill_rms.sweeping.minibatches import SharedDataset
from downhill_rms.sweeping.ranges import Settings
from downhill_rms.sweeping.together import MemberTogether, Together, obstacle
from downhill_rms.training import Steps

if TYPE_CHECKING:
    from downhill_rms.trainer import Trainer

# Runs go together if there are so many, with no more parameters than this, a call of one takes
# less, and in turns they would take longer.
FEWEST, LARGEST, OVERHEAD, WORTHWHILE = 8, 50_000, 20e-6, 10.0  # seconds
TRIED = 50  # calls that are timed
PER_CALL = 50  # updates in a call of runs that go together, where a compiler makes it

log = logging.getLogger(__name__)


class Groups:
    """Runs by the structure of their rule: those of one share compiled functions.

    Parameters
    ----------
    trainer : Trainer
        Whose model it is.
    updates_per_call : int or None
        Minibatches that a call takes, as the user has it; None for one in turns, and together for
        what is fastest.
    """

    def __init__(self, trainer: Trainer, updates_per_call: int | None) -> None:
        self.trainer, self.updates_per_call = trainer, updates_per_call
        self.steps: dict[Any, Steps] = {}
        self.together: list[Together] = []

    def member(self, name: str, settings: Settings, seed: int | None, h: Hyperparameters) -> Member:
        """A new run."""
        if h.structure not in self.steps:
            steps = self.trainer.steps.variant(h.structure)
            steps.say = self.trainer.steps.say
            steps.use(dict(h), self.updates_per_call or 1)
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
                per_call = self.updates_per_call or (PER_CALL if is_compiled(steps.mode) else 1)
                together = Together.of(steps, own, per_call)
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
