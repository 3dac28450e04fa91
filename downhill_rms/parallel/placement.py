"""Where arrays live on a mesh of devices, and how processes come to the same decisions."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import scipy.sparse
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pytensor.compile.mode import JAX, Mode
from pytensor.tensor.random.type import RandomType

from downhill_rms.data import Batch, BoundDataset, InputSpec, generator_state, set_generator_state
from downhill_rms.parallel.agreement import AgreedCheckpoint, AgreedSignals, Flags
from downhill_rms.parallel.linker import SpmdLinker
from downhill_rms.parallel.processes import LostProcessesError, from_leader
from downhill_rms.rule import warn
from downhill_rms.saving import Checkpoint
from downhill_rms.training import Placement
from downhill_rms.training.signals import StopSignals

IN_FLIGHT = 4  # calls that nobody has waited for: hundreds of them deadlock XLA's CPU devices


class MeshPlacement(Placement):
    """A mesh of devices: samples are divided, and the rest is copied or divided.

    Parameters
    ----------
    mesh : Mesh
        With one axis.
    shard_above : int or None
        Numbers from which on an array of the state is divided too, along its longest axis that
        the devices divide.

    Attributes
    ----------
    flags : Flags
        What the processes tell each other in the course of their updates.
    """

    divides = True

    def __init__(self, mesh: Mesh, shard_above: int | None) -> None:
        self.mesh, self.size = mesh, mesh.size
        self.shard_above = math.inf if shard_above is None else shard_above
        self.leads = jax.process_index() == 0
        self.processes = jax.process_count()
        self.several = self.processes > 1
        self.copies = self._sharding()
        self.flags = Flags(self)
        self.linker = SpmdLinker(self)
        self._calls: deque[Any] = deque()
        self._fallen_out = False
        self._rows = cache(self._own_rows)

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _divided(self, axis: int) -> NamedSharding:
        """Along one axis of an array."""
        return self._sharding(*[None] * axis, self.mesh.axis_names[0])

    # What is compiled

    def mode(self, mode: Any) -> Any:
        """JAX's mode, with functions that run on all devices."""
        base = mode if isinstance(mode, Mode) else JAX
        return Mode(self.linker, base.provided_optimizer)

    def of_state(self, value: Any) -> NamedSharding:
        """How an array that updates keep is laid out."""
        shape = np.shape(value)
        if math.prod(shape) > self.shard_above:
            for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
                if shape[axis] % self.size == 0:
                    return self._divided(axis)
        return self.copies

    def put(self, value: Any, sharding: NamedSharding) -> Any:
        """A value that every process has, as one array of all devices."""
        if isinstance(value, jax.Array):
            if value.sharding == sharding:
                return value
            value = np.asarray(value)
        with jax.enable_x64(True):  # or numbers of 64 bits would be cut
            if not self.several:
                return jax.device_put(value, sharding)
            value = np.asarray(value)
            return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    def called(self, output: Any) -> None:
        """Take note of a call, and wait for an earlier one."""
        self._calls.append(output)
        if len(self._calls) > IN_FLIGHT:
            jax.block_until_ready(self._calls.popleft())

    # What is fed

    def check(self, specs: Sequence[InputSpec]) -> None:
        """Refuse sparse matrices, which PyTensor's JAX code does not know."""
        for spec in specs:
            if spec.sparse is not None:
                raise ValueError(
                    f"input {spec} is a sparse matrix, and devices= is given: JAX computes with "
                    "dense arrays. Declare it as pt.matrix, of which sparse data are fed minibatch "
                    "by minibatch, or leave devices out."
                )

    def data(self, bound: BoundDataset, train: bool = False) -> BoundDataset:
        """The same minibatches, of which each process reads what its devices take."""
        if bound.sampler is not None:
            self._warn_of_rest(bound.name, bound.sampler.batch_size)
            if train:  # there is one order, the leader's
                state = generator_state(bound.sampler.rng)
                set_generator_state(bound.sampler.rng, self.from_leader(state))
        bound.feed = self
        return bound

    def _warn_of_rest(self, name: str, batch_size: int) -> None:
        if batch_size % self.size:
            warn(
                f"{name} has minibatches of {batch_size} samples for {self.size} devices: what "
                "these do not divide, every device computes as a whole. Choose a multiple of "
                f"{self.size}."
            )

    def rows(self, samples: int) -> slice:
        """Which of a minibatch's samples the devices of this process take."""
        return self._rows(samples)

    def _own_rows(self, samples: int) -> slice:
        if samples % self.size:
            return slice(0, samples)
        places = self._divided(0).addressable_devices_indices_map((samples,)).values()
        bounds = [place[0].indices(samples) for place in places if place is not None]
        return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

    def place(self, own: Sequence[np.ndarray], samples: int, axis: int) -> Batch:
        """A minibatch of which this process has its own samples, as arrays of all devices."""
        divided = samples % self.size == 0
        shardings = [
            self._divided(axis) if divided and array.ndim > axis else self.copies for array in own
        ]
        with jax.enable_x64(True):
            if not self.several:
                return list(jax.device_put(list(own), shardings))
            pairs = zip(own, shardings, strict=True)
            join = jax.make_array_from_process_local_data
            return [
                join(s, a, _whole(a, samples, axis)) if s is not self.copies else self.put(a, s)
                for a, s in pairs
            ]

    def batch(self, batch: Batch) -> Batch:
        """A minibatch that every process has as a whole, along its first axis."""
        arrays = [array for array in batch if array.ndim]
        samples = len(arrays[0]) if arrays else 1
        if any(scipy.sparse.issparse(a) or len(a) != samples for a in arrays):
            return self.place(batch, samples, max((a.ndim for a in arrays), default=0))
        rows = self.rows(samples)
        return self.place([a[rows] if a.ndim else a for a in batch], samples, 0)

    # What processes agree upon

    def begin(self, variables: Iterable[Any]) -> None:
        """Give every process the leader's parameters and generators."""
        for variable in variables if self.several else ():
            if isinstance(variable.type, RandomType):
                generator = variable.get_value(borrow=False)
                set_generator_state(generator, self.from_leader(generator_state(generator)))
                variable.set_value(generator, borrow=True)
            else:
                value = np.asarray(variable.get_value(borrow=True))
                with jax.enable_x64(True):
                    same = np.asarray(multihost_utils.broadcast_one_to_all(value))
                variable.set_value(same.astype(value.dtype), borrow=True)

    def host(self, value: Any) -> Any:
        """The whole of an array in this process; every process asks at the same time."""
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            if not value.is_fully_replicated:
                with jax.enable_x64(True):
                    return multihost_utils.process_allgather(value, tiled=True)
            return np.asarray(value)
        return value

    def from_leader(self, text: str) -> str:
        """The leader's text, in every process."""
        return from_leader(text)

    def signals(self) -> StopSignals:
        """Signals that stop every process at the same update, whichever they came to."""
        return AgreedSignals(self.flags) if self.several else StopSignals()

    def checkpoint(self, own: Checkpoint | None) -> Checkpoint | None:
        """A directory that the leader writes and every process reads."""
        return AgreedCheckpoint(own, self) if own is not None and self.several else own

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; every process asks at the same time."""
        if not self.several or self._fallen_out:
            return flag
        return bool(np.any(multihost_utils.process_allgather(np.array(flag))))

    def by_leader(self, act: Callable[[], Any]) -> None:
        """Have the leader act, and the others wait for it; if it fails, all fail."""
        if not self.several or self._fallen_out:
            if self.leads:
                act()
            return
        failure, error = "", None
        if self.leads:
            try:
                act()
            except Exception as failed:
                failure, error = f"{type(failed).__name__}: {failed}", failed
        failure = self.from_leader(failure)
        if error is not None:
            raise error
        if failure:
            raise RuntimeError(f"The leading process failed ({failure}), and all end with it.")

    def fall_out(self, error: BaseException | None = None) -> None:
        """Wait for nobody any more: this process has failed where others may not have.

        Raises
        ------
        LostProcessesError
            If the error is that others cannot be reached.
        """
        self._fallen_out = self.several
        if self.several and isinstance(error, jax.errors.JaxRuntimeError):
            fact = str(error).splitlines()[0]
            raise LostProcessesError(
                f"The processes could not go on together ({fact}): a run needs all of them, and "
                "one has ended or cannot be reached. What was saved is whole: start all again, "
                "with resume=True (--resume)."
            ) from error


def _whole(array: np.ndarray, samples: int, axis: int) -> tuple[int, ...]:
    return (*array.shape[:axis], samples, *array.shape[axis + 1 :])
