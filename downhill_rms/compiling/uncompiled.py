"""PyTensor functions that run at once: Python and NumPy, with nothing compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor

from downhill_rms.compiling.memory import keep_freed_memory
from downhill_rms.compiling.modes import uncompiled_mode
from downhill_rms.rule import Update


class UncompiledFunction:
    """Expressions of minibatches that PyTensor's own Python code computes.

    Called as any PyTensor function is. It starts in tenths of a second, writes no file, and takes
    two to ten times as long a call as a compiled one, more for small arrays.

    Parameters
    ----------
    inputs, outputs, updates : sequence
        As for ``pytensor.function``.

    Attributes
    ----------
    calls : int
        Calls so far.
    input_storage : list of Container
        Those of the PyTensor function.
    """

    def __init__(
        self, inputs: Sequence[Any], outputs: Sequence[Any], updates: Sequence[Update] = ()
    ) -> None:
        with nothing_compiled():
            self._function = pytensor.function(
                list(inputs),
                list(outputs),
                updates=list(updates),
                mode=uncompiled_mode(),
                on_unused_input="ignore",
                trust_input=True,
            )
        self.calls = 0
        self.input_storage = self._function.input_storage
        keep_freed_memory()

    def __call__(self, *batch: Any) -> list[Any]:
        """Call it with one array for each input, each of exactly the input's type."""
        with np.errstate(all="ignore"):  # compiled code does not warn of overflow either
            if self.calls:
                result: list[Any] = self._function(*batch)
            else:
                with nothing_compiled():  # inner graphs are built when they are first called
                    result = self._function(*batch)
        self.calls += 1
        return result


def nothing_compiled() -> Any:
    """While this is in force, PyTensor compiles no C and hands nothing to Numba."""
    return pytensor.config.change_flags(cxx="", mode="FAST_COMPILE")
