"""The turns in which the runs of a sweep are made, an epoch each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from downhill_rms.sweeping.manifest import Manifest
from downhill_rms.sweeping.members import Member
from downhill_rms.sweeping.progress import SweepProgress
from downhill_rms.training import StopReason
from downhill_rms.training.loop import INTERRUPTIONS, interruption
from downhill_rms.training.signals import StopSignals


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
        for member in members:
            member.heeds(self.signals)
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
                if again := self._halved_before():
                    self._leave(again, StopReason.HALVED)
                    continue
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
            for member in self.live:
                member.catch_up()
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

    def _halved_before(self) -> list[Member]:
        """Runs of which it was decided, before the sweep was killed, that they leave here."""
        manifest = self.manifest
        if manifest is None:
            return []
        return [m for m in self.live if m.loop.epoch_count >= manifest.leaves_at(m.name)]

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
