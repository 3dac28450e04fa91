"""A PyTensor function that compiles itself when it is first called, and says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.mode import Mode, get_mode, predefined_modes

from downhill_rms.compiling.building import quick_building
from downhill_rms.compiling.machine import asked_threads
from downhill_rms.compiling.memory import keep_freed_memory
from downhill_rms.compiling.modes import TIERED, is_jax, training_mode
from downhill_rms.rule import Update, shown

log = logging.getLogger(__name__)

NOT_CACHED = "PyTensor keeps parts alone: Numba runs an operation in Python, or the cache is off"


class CompiledFunction:
    """Expressions of minibatches, compiled at first use.

    Parameters
    ----------
    name : str
        What the log calls it.
    inputs : sequence of Variable
        What a minibatch feeds.
    outputs : sequence of Variable
        What a call returns.
    updates : sequence of (SharedVariable, Variable)
        What a call assigns.
    mode : str or Mode, optional
        How PyTensor compiles; its own default if None.
    say : callable
        Given a line for the user before the work begins.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        updates: Sequence[Update],
        mode: Any = None,
        say: Callable[[str], Any] = str,
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self.updates, self.mode, self.say = updates, mode, say
        self.function: Any = None
        self._keys: Sequence[np.ndarray] = ()  # for a function that is not compiled yet

    @property
    def keys(self) -> list[np.ndarray]:
        """States of the generators that a JAX function copies and keeps for itself."""
        if self.function is None:
            return list(self._keys)
        return [np.array(state["jax_state"]) for state in _jax_states(self.function)]

    @keys.setter
    def keys(self, keys: Sequence[np.ndarray]) -> None:
        self._keys = keys
        if self.function is not None:
            _set_jax_states(self.function, keys)

    def first_keys(self, generators: Mapping[Any, Any]) -> list[np.ndarray]:
        """The `keys` that a JAX function begins with where its generators have these values.

        Parameters
        ----------
        generators : mapping of SharedVariable to Generator
            The values.

        Returns
        -------
        list of ndarray
            None before it is compiled: then it begins with what the variables hold.
        """
        if self.function is None:
            return []
        from pytensor.link.jax.dispatch.basic import jax_typify  # only a JAX function has such

        inputs = (given.variable for given in self.function.maker.expanded_inputs)
        states = [jax_typify(generators[v]) for v in inputs if v in generators]
        return [np.array(state["jax_state"]) for state in states]

    def __call__(self, *batch: Any) -> list[Any]:
        """Call it with one array for each input, each of exactly the input's type."""
        function = self.function
        if function is None:
            return self._compile_and_call(batch)
        result: list[Any] = function(*batch)
        return result

    def _compile_and_call(self, batch: Sequence[Any]) -> list[Any]:
        # Numba and JAX compile inside the first call, so that it belongs to the measured time.
        once = "in each process anew" if is_jax(self.mode) else "PyTensor caches the result on disk"
        text = f"compiling the {self.name} (once; {once})"
        log.info("%s", text)
        self.say(text)
        started = time.perf_counter()
        try:
            result = self._build_and_call(batch)
        except Exception as error:
            if is_jax(self.mode):
                self._explain(error)
            raise
        log.info("compiled the %s in %.1f s", self.name, time.perf_counter() - started)
        return result

    def _build_and_call(self, batch: Sequence[Any]) -> list[Any]:
        function = self.build()
        if is_jax(self.mode):
            from downhill_rms.compiling.jaxlinker import set_precision  # it stands on internals

            set_precision([*self.inputs, *self.outputs, *(v for v, _ in self.updates)])
        if not is_cached(function):
            text = f"compiling the {self.name}, in every process anew ({NOT_CACHED})"
            log.info("%s", text)
            self.say(text)
        _set_jax_states(function, self._keys)
        keep_freed_memory()
        result: list[Any] = function(*batch)
        self.function = function
        return result

    def _explain(self, error: Exception) -> None:
        """Raise what JAX refuses in the user's words."""
        # They stand on internals.
        from downhill_rms.compiling.jaxlinker import UnknownOperationError
        from downhill_rms.compiling.lengths import unknown_length

        if fact := unknown_length([*self.outputs, *(new for _, new in self.updates)]):
            raise ValueError(
                f"JAX cannot compile the {self.name}: {fact}. Lengths that JAX knows beforehand "
                "are made of constants and shapes. Keep the length and give what is left out no "
                "weight, as in pt.where(mask, errors, 0).sum() / mask.sum(), or choose another "
                "mode, as Trainer(..., mode='NUMBA')."
            ) from error
        if isinstance(error, UnknownOperationError):
            raise ValueError(
                f"JAX cannot compile the {self.name}: PyTensor has no JAX code for {error}. JAX "
                "compiles a graph whose operations have some, all of them. Write it by other "
                "operations, or choose another mode, as Trainer(..., mode='NUMBA')."
            ) from error

    @quick_building()
    def build(self) -> Any:
        """The PyTensor function, compiled as far as PyTensor does it before the first call."""
        return pytensor.function(
            list(self.inputs),
            list(self.outputs),
            updates=list(self.updates),
            mode=training_mode(self.mode),
            name=self.name.replace(" ", "_"),
            on_unused_input="ignore",
            # Minibatches are checked once, where data are bound to inputs.
            trust_input=True,
        )


def is_cached(function: Any) -> bool:
    """Whether PyTensor keeps what Numba compiles of a function; true for what Numba does not."""
    compiled = getattr(function.vm, "jit_fn", None)
    # With one operation whose function has no key, as in object mode, a whole graph has none.
    return all(
        type(getattr(part, "_cache", None)).__name__ != "NullCache"
        for part in getattr(compiled, "dispatchers", [compiled])
    )


def check_mode(mode: Any) -> None:
    """Refuse the name of a mode that there is not, and of threads, before anything is built."""
    asked_threads()
    if isinstance(mode, Mode) or mode is None:
        return
    try:
        if not isinstance(mode, str):
            raise TypeError(type(mode).__name__)
        if mode != TIERED:
            get_mode(mode)
    except Exception as error:  # of several kinds, for several faults of a name
        raise ValueError(
            f"mode is {shown(mode)}: it is 'tiered' or a mode of PyTensor's. Give one of "
            f"{', '.join(sorted([TIERED, *predefined_modes]))}, or a Mode."
        ) from error


def _jax_states(function: Any) -> list[dict[str, Any]]:
    values = (container.storage[0] for container in function.input_storage)
    return [value for value in values if isinstance(value, dict) and "jax_state" in value]


def _set_jax_states(function: Any, keys: Sequence[np.ndarray]) -> None:
    if not keys:
        return
    import jax.numpy as jnp  # only a JAX function has such states

    for state, key in zip(_jax_states(function), keys, strict=True):
        state["jax_state"] = jnp.asarray(key)
