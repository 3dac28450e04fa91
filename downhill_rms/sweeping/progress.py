"""One bar for all runs of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from downhill_rms.sweeping.members import Member
from downhill_rms.watching import Progress, open_progress


class SweepProgress:
    """One bar for all runs.

    Parameters
    ----------
    wanted : bool or None
        Whether a bar is drawn; None for only where there is a terminal.
    total, epochs : int or None
        Updates and epochs that one run makes at the most.
    runs : int
        How many there are.
    """

    def __init__(
        self, wanted: bool | None, total: int | None, epochs: int | None, runs: int
    ) -> None:
        whole = None if total is None else total * runs
        self.bar, self.total = open_progress(wanted, whole, epochs), total
        self.members: Sequence[Member] = ()

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self.bar.say(text)

    def close(self) -> None:
        """Draw for the last time."""
        self.draw()
        self.bar.close()

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
        self.whole.say(text)

    def draw(self, epoch: int, updates: int, losses: Mapping[str, float]) -> None:
        if self.due():
            self.whole.draw()
