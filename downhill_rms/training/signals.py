"""Ctrl-C and SIGTERM while training: a flag, looked at between two updates.

Inside a function that Numba compiled, Python's own KeyboardInterrupt arrives as a SystemError, or
in the middle of an update. A handler that only takes note leaves every update whole.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Take note of signals while installed; the second of one kind acts at once.

    Off the main thread, where Python allows no handlers, nothing is installed.

    Attributes
    ----------
    received : int or None
        The first signal that came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Put the handlers in place of whatever was there."""
        if threading.current_thread() is threading.main_thread() and not self._former:
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}

    def remove(self) -> None:
        """Put back what was there before."""
        while self._former:
            number, handler = self._former.popitem()
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            return
        self.remove()
        signal.raise_signal(number)
