"""Ctrl-C and SIGTERM while training: a flag, looked at between two updates.

Inside a function that Numba compiled, Python's own KeyboardInterrupt arrives as a SystemError, or
in the middle of an update. A handler that only takes note leaves every update whole.
"""

from __future__ import annotations

import signal
import threading

# Those of `signal` make enumerations of what they return, which takes longer than some updates.
from _signal import getsignal as get_handler  # type: ignore[import-not-found]
from _signal import signal as set_handler
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Take note of a signal while installed; the second acts at once.

    A signal that is ignored stays ignored: ``nohup``, and ``&`` in a script, start a program like
    that so that no Ctrl-C meant for another ends it. Off the main thread, where Python allows no
    handlers, nothing is installed.

    Attributes
    ----------
    received : int or None
        The first signal that came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._borne = 1  # signals that are still only noted
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Put the handlers in place of whatever was there."""
        if threading.current_thread() is threading.main_thread() and not self._former:
            heard = [number for number in SIGNALS if get_handler(number) != signal.SIG_IGN]
            self._former = {number: set_handler(number, self._note) for number in heard}

    def bear_one_more(self) -> None:
        """Take note of one more, whatever came before: what is being saved would be lost."""
        self._borne = 1

    def remove(self) -> None:
        """Put back what was there before."""
        while self._former:
            number, handler = self._former.popitem()
            # None stands for a handler that was not installed from Python.
            set_handler(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._borne:
            self._borne -= 1
            self.received = number if self.received is None else self.received
            return
        self.remove()
        signal.raise_signal(number)


class SharedSignals(StopSignals):
    """The signals that one takes note of for several runs that take turns.

    Between the turns the handlers stay where they are.

    Parameters
    ----------
    installed : StopSignals
        What takes note.
    is_deaf : callable, optional
        Whether a run is told of no signal yet.
    """

    def __init__(self, installed: StopSignals, is_deaf: Callable[[], bool] = lambda: False) -> None:
        self._installed, self._is_deaf = installed, is_deaf

    @property
    def received(self) -> int | None:  # type: ignore[override]
        """The first signal that came to any of the runs."""
        return None if self._is_deaf() else self._installed.received

    def install(self) -> None:
        """Put the handlers back if a second signal has taken them away."""
        self._installed.install()

    def bear_one_more(self) -> None:
        """Take note of one more, whatever came before."""
        self._installed.bear_one_more()

    def remove(self) -> None:
        """Leave the handlers to the other runs."""


def uninterrupted(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function, after which Ctrl-C acts that came meanwhile; the second acts at once.

    Handlers that are not Python's own stay where they are, and so do those of other threads.
    """
    if (
        get_handler(signal.SIGINT) is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        return function(*arguments)
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    set_handler(signal.SIGINT, note)
    try:
        return function(*arguments)
    finally:
        set_handler(signal.SIGINT, signal.default_int_handler)
        if noted:
            raise KeyboardInterrupt
