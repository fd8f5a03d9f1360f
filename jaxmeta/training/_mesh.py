"""Devices for tasks."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

TASKS_AXIS = "tasks"


def task_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of one axis, "tasks", over `devices` (all, by default).

    On a CPU, cores become devices by `jax.config.update("jax_num_cpu_devices", n)`
    before JAX is first used; the command line does so by itself.

    Raises:
      ValueError: if there are no devices.

    Example:
      >>> import jax
      >>> task_mesh(jax.devices()[:1]).shape["tasks"]
      1
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("`devices` is empty: a mesh needs at least one device.")
    # Explicit axes, JAX's default, would make `vmap` refuse sharded tasks.
    return Mesh(np.array(devices), (TASKS_AXIS,), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts the arrays of `tree` on all devices of `mesh`, other processes' too.

    Each process then has the same arrays, on its own devices or on those of the mesh.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
