"""Which devices: from what a user gives to a mesh of devices along which samples are divided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from downhill_rms.compiling import TIERED, check_mode, is_jax
from downhill_rms.parallel.processes import refuse_without_jax
from downhill_rms.rule import check_count, shown
from downhill_rms.training import Placement

if TYPE_CHECKING:
    from jax.sharding import Mesh

AXIS = "samples"


def make_placement(devices: Any, shard_above: int | None, mode: Any) -> Placement:
    """Where a trainer's arrays live.

    Parameters
    ----------
    devices : int, "all", Mesh or None
        How many devices; all of every process; a mesh with one axis; None for one, as it was.
    shard_above : int or None
        Numbers from which on a parameter and its accumulators are divided among the devices.
    mode : str, Mode or None
        How PyTensor is to compile.

    Returns
    -------
    Placement
        That of one device where ``devices`` is None, without importing JAX.

    Raises
    ------
    ImportError
        If JAX is not installed.
    TypeError, ValueError
        If there are no such devices, or the mode is none of JAX's.
    """
    if devices is None:
        if shard_above is not None:
            raise ValueError(
                f"shard_above is {shown(shard_above)} without devices: parameters are divided "
                "among devices. Give devices=, or leave it out."
            )
        return Placement()
    if shard_above is not None:
        shard_above = check_count("shard_above", shard_above)
    check_mode(mode)
    if mode is not None and (mode == TIERED or not is_jax(mode)):
        raise ValueError(
            f"mode is {shown(mode)} with devices={shown(devices)}: many devices are JAX's. Give "
            "mode='JAX', or leave it out."
        )
    refuse_without_jax("devices")
    from downhill_rms.parallel.placement import MeshPlacement

    return MeshPlacement(as_mesh(devices), shard_above)


def as_mesh(devices: Any) -> Mesh:
    """A mesh with one axis, of so many devices, of all, or as it was given."""
    import jax
    from jax.sharding import Mesh

    if isinstance(devices, Mesh):
        if len(devices.axis_names) != 1:
            raise ValueError(
                f"devices is a mesh with the axes {', '.join(map(str, devices.axis_names))}: "
                "samples are divided along one. Give a mesh with one axis."
            )
        chosen = list(devices.devices.flat)
    else:
        here = jax.devices()
        if isinstance(devices, str):
            if devices != "all":
                raise ValueError(
                    f"devices is {devices!r}: it is a count, 'all' or a Mesh. Give one of these."
                )
            count = len(here)
        else:
            count = check_count("devices", devices) or 0
        if count > len(here):
            platform = here[0].platform
            hint = (
                "set JAX_NUM_CPU_DEVICES for virtual ones, or start several processes (--processes)"
                if platform == "cpu"
                else "give as many as there are"
            )
            raise ValueError(
                f"devices is {count}, and JAX has {len(here)} here ({platform}): a device is "
                f"there once. Give fewer, or {hint}."
            )
        chosen = here[:count]
    _check_processes(chosen)
    return Mesh(np.array(chosen), (AXIS,))


def _check_processes(devices: list[Any]) -> None:
    """Refuse devices of which a process has none, or not side by side."""
    import jax

    owners = [device.process_index for device in devices]
    per_process = {owners.count(process) for process in range(jax.process_count())}
    if owners != sorted(owners) or len(per_process) != 1 or 0 in per_process:
        raise ValueError(
            f"The devices are of the processes {owners}: each of {jax.process_count()} has the "
            "same number of them, side by side. Give devices='all'."
        )
