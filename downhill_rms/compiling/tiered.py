"""Functions that run at once, uncompiled, and are swapped when a child has compiled them.

Numba takes 5 to 30 s for a new graph. Its on-disk cache is shared by all processes: a child fills
it while training goes on uncompiled, and then the same function is built here in about a second.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pytensor

from downhill_rms.compiling.background import BackgroundCompilation
from downhill_rms.compiling.compiled import CompiledFunction, is_cached
from downhill_rms.compiling.machine import marker
from downhill_rms.compiling.modes import REWRITTEN
from downhill_rms.compiling.selfcheck import source_key
from downhill_rms.compiling.uncompiled import UncompiledFunction

log = logging.getLogger(__name__)

# After a child has failed, a function is compiled in the foreground once it has been in use for
# this long. Short runs end before, and long ones lose no more than what they wait for anyway.
UNCOMPILED_SECONDS = 30.0


class TieredFunction(CompiledFunction):
    """Expressions of minibatches: uncompiled at first, compiled as soon as that costs no wait.

    The first call starts a child process that compiles. When it is done, the next call is made by
    the compiled function, on the same shared variables. If PyTensor's cache has the function
    already, no child is started, and it is compiled from the first call on. If the child fails,
    a warning says why, and the function is compiled in the foreground once it has been in use
    for `UNCOMPILED_SECONDS`.

    Parameters
    ----------
    name, inputs, outputs, updates, say
        As for `CompiledFunction`.
    mode : str
        The name of this mode; what the function is compiled with is `compiled_mode`.

    Notes
    -----
    Both forms compute the same to rounding, and random numbers may differ: call `settle` for a
    run that is to be repeated bit by bit. While a child compiles, NumPy's OpenBLAS leaves it
    one core. An Op that is defined in ``__main__`` cannot be sent to a child: define it in a
    module.
    """

    compiled_mode = REWRITTEN

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mode = self.compiled_mode
        self._settled = False
        self._uncompiled: UncompiledFunction | None = None
        self._compilation: BackgroundCompilation | None = None
        self._started = 0.0

    def settle(self) -> None:
        """Use the compiled function alone: the next call compiles it, if it is not compiled yet."""
        self._settled = True
        if self._compilation is not None:
            self._compilation.cancel()
        self._leave_uncompiled()

    def _leave_uncompiled(self) -> None:
        # Then the next call compiles: whether it is time is asked nowhere else, and costs nothing.
        if self.function is self._uncompiled:
            self.function = None

    def _compile_and_call(self, batch: Sequence[Any]) -> list[Any]:
        if self._settled:
            return super()._compile_and_call(batch)
        if self._uncompiled is not None:
            return self._swap_and_call(self._uncompiled, batch)
        if self._marker.exists():
            return super()._compile_and_call(batch)
        return self._start_and_call(batch)

    def _start_and_call(self, batch: Sequence[Any]) -> list[Any]:
        text = f"the {self.name} runs uncompiled while a child process compiles it"
        log.info("%s", text)
        self.say(text)
        self._started = time.perf_counter()
        # Not kept alive by the thread that waits for the child.
        itself = weakref.ref(self)

        def tell() -> None:
            if (function := itself()) is not None:
                function._leave_uncompiled()

        compilation = BackgroundCompilation(self, self._marker, batch, tell, UNCOMPILED_SECONDS)
        uncompiled = UncompiledFunction(self.inputs, self.outputs, self.updates)
        result = uncompiled(*batch)
        self.function = self._uncompiled = uncompiled
        self._compilation = compilation
        compilation.start()
        return result

    def _swap_and_call(self, uncompiled: UncompiledFunction, batch: Sequence[Any]) -> list[Any]:
        # A child that came to no good end leaves the work to be done here, which is said.
        compile_and_call = (
            self._build_and_call if self._marker.exists() else super()._compile_and_call
        )
        try:
            result = compile_and_call(batch)
        except Exception:
            # If the batch is to blame, the uncompiled function raises as well.
            log.warning("the %s stays uncompiled", self.name, exc_info=True)
            self.function = uncompiled
            return uncompiled(*batch)
        seconds = time.perf_counter() - self._started
        text = "swapped to the compiled %s after %d calls, %.1f s"
        log.info(text, self.name, uncompiled.calls, seconds)
        self._uncompiled = self._compilation = None
        return result

    def _build_and_call(self, batch: Sequence[Any]) -> list[Any]:
        result = super()._build_and_call(batch)
        if is_cached(self.function):
            with suppress(OSError):
                self._marker.touch()
        return result

    @cached_property
    def _marker(self) -> Path:
        """A file that is there if PyTensor's cache has the function.

        If it is wrong, or another graph has the same text, that costs time and nothing else.
        """
        targets = [str(shared.type) for shared, _ in self.updates]
        expressions = [*self.outputs, *(new for _, new in self.updates)]
        text = pytensor.dprint(expressions, print_type=True, file="str")
        return marker("compiled", text, targets, self.mode, source_key())
