"""How a run is shown to a person: one line that moves, or none."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from downhill_rms.rule import check_flag

EVERY = 0.1  # seconds from one drawing to the next, the least
WIDE = 100  # columns from which the line is written out
DIGITS = 7  # columns of a value
SHORTEST_BAR = 2  # columns

log = logging.getLogger("downhill_rms")

T = TypeVar("T")


class Progress:
    """Shows nothing."""

    def due(self) -> bool:
        """Whether it is time to draw."""
        return False

    def say(self, text: str) -> None:
        """Show a line until the next drawing."""

    def draw(self, epoch: int, updates: int, losses: Mapping[str, float]) -> None:
        """Show where the run has come to.

        Parameters
        ----------
        epoch : int
            The epoch in hand, from 1.
        updates : int
            Updates so far.
        losses : mapping of str to float
            What else is shown, the more important first; NaN for what is not known yet.
        """

    def close(self) -> None:
        """Leave the line as it is, and go to the next."""


class Lines(Progress):
    """Shows what takes long, a line for each."""

    def say(self, text: str) -> None:  # noqa: D102
        print(text, file=sys.stderr, flush=True)


class Bar(Progress):
    """A bar of tqdm's: epoch, updates per second, time left, losses.

    Parameters
    ----------
    total : int or None
        Updates at which the run ends, if that is known.
    epochs : int or None
        Epochs likewise.
    """

    def __init__(self, total: int | None, epochs: int | None) -> None:
        # tqdm's monitor is a thread, which a data loader's forked workers should not meet.
        quiet = type("Bar", (_tqdm(),), {"monitor_interval": 0})
        self.bar = quiet(
            total=total,
            dynamic_ncols=True,
            bar_format="{desc}",
            file=sys.stderr,
        )
        self.of_epochs = "" if epochs is None else f"/{epochs}"
        self.began: tuple[int, float] | None = None  # updates and time at the first drawing
        self.next = 0.0

    def due(self) -> bool:  # noqa: D102
        return time.perf_counter() >= self.next

    def say(self, text: str) -> None:  # noqa: D102
        self.bar.bar_format = text.replace("{", "{{").replace("}", "}}")
        self.bar.refresh()
        self.began = None

    def draw(self, epoch: int, updates: int, losses: Mapping[str, float]) -> None:  # noqa: D102
        now = time.perf_counter()
        if self.began is None:  # what was done before, and compiling, do not count in the rate
            self.began = (updates, now)
        self.bar.n = updates
        self.bar.bar_format = self._line(epoch, losses, *self.began)
        self.bar.refresh()
        self.next = now + EVERY

    def _line(self, epoch: int, losses: Mapping[str, float], began: int, since: float) -> str:
        """What there is room for, each in a width of its own, so that nothing moves about."""
        updates, total = self.bar.n, self.bar.total
        elapsed = time.perf_counter() - since
        rate = (updates - began) / elapsed if elapsed else 0.0
        columns = self.bar.format_dict["ncols"] or WIDE
        wide = columns >= WIDE
        number = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        speed = f"{number:>6}{' updates/s' if wide else '/s'}"
        clock = self.bar.format_interval(elapsed)
        if total is not None and rate:
            clock = self.bar.format_interval(max(total - updates, 0) / rate)
            clock += " left" if wide else ""
        known = {name: value for name, value in losses.items() if not math.isnan(value)}
        values = [f"{name} {_short(value):<{DIGITS}}" for name, value in known.items()]
        bar = "|{bar}| " if total is not None else ""
        digits = max(len(self.of_epochs) - 1, 1)
        head = f"epoch {epoch:{digits}}{self.of_epochs} {bar}"
        room = columns - len(head) - (SHORTEST_BAR - len("{bar}") if bar else 0)
        most_important_first = [*values[:2], clock, speed, *values[2:]]
        shown = set(_fitting(most_important_first, room))
        return head + " ".join(text for text in (speed, clock, *values) if text in shown)

    def close(self) -> None:  # noqa: D102
        self.bar.close()


def _short(value: float) -> str:
    """Three significant digits, or what has room of them: 0.00123, 1.23e-5, 1.2e-10."""
    texts = (f"{value:.{digits}g}" for digits in (3, 2, 1))
    short = [text.replace("e-0", "e-").replace("e+0", "e") for text in texts]
    return next((text for text in short if len(text) <= DIGITS), short[-1])


def _fitting(texts: Sequence[str], room: int) -> Iterator[str]:
    """The texts that have room beside each other, with what comes first first."""
    for text in texts:
        if len(text) < room:
            room -= len(text) + 1
            yield text


def open_progress(
    wanted: bool | Progress | None, total: int | None, epochs: int | None
) -> Progress:
    """A bar where somebody looks, in a terminal or a notebook; else nothing.

    In a terminal without tqdm there are lines for what takes long.

    Parameters
    ----------
    wanted : bool, Progress or None
        None for a bar if tqdm is there and the log does not show a line for each epoch; one that
        is open already stays as it is.
    total, epochs : int or None
        The run's limits.

    Returns
    -------
    Progress

    Raises
    ------
    ImportError
        If a bar is asked for and tqdm is not installed.
    """
    if isinstance(wanted, Progress):
        return wanted
    if _is_shown(wanted):
        return Bar(total, epochs)
    unseen = wanted is None and sys.stderr.isatty() and not log.isEnabledFor(logging.INFO)
    return Lines() if unseen else Progress()


def watched(items: Iterable[T], wanted: bool | None, total: int | None) -> Iterable[T]:
    """The same items, with a bar that counts them where somebody looks.

    Parameters
    ----------
    items : iterable
        What comes.
    wanted : bool or None
        As for `open_progress`.
    total : int or None
        How many there are, if that is known.
    """
    if not _is_shown(wanted):
        return items
    shown: Iterable[T] = _tqdm()(items, total=total, file=sys.stderr, dynamic_ncols=True)
    return shown


def _is_shown(wanted: bool | None) -> bool:
    if wanted is None:
        installed = importlib.util.find_spec("tqdm") is not None
        wanted = installed and not log.isEnabledFor(logging.INFO)
    return check_flag("progress", wanted) and (sys.stderr.isatty() or _in_notebook())


def _in_notebook() -> bool:
    """Whether cells are executed here: IPython's shell has a kernel, and not only a terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "tqdm is not installed. A progress bar is drawn by it. "
            'Run pip install "downhill_rms[progress]", or give progress=False.'
        ) from error
    if not _in_notebook():
        return tqdm
    try:
        import ipywidgets  # noqa: F401
        from tqdm.notebook import tqdm as notebook
    except ImportError:
        return tqdm
    return notebook
