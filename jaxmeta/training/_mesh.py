"""Device meshes and shardings."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmeta import _checks, base

TASKS_AXIS, PARAMS_AXIS = "tasks", "params"


def use_cpu_devices(num_devices: int | None = None) -> None:
    """Makes every CPU core a device, before JAX is first used.

    Beyond `jax.config.update("jax_num_cpu_devices", n)`, it gives XLA at least twice as
    many threads as devices, by the environment variable NPROC unless that is set. With
    one thread for each, a loop that runs 32 programs ahead of its devices deadlocks
    where they exchange something, and XLA ends the process after a minute ("may be
    stuck").

    Args:
      num_devices: number of devices. None: JAX_NUM_CPU_DEVICES if it is set, or the
        cores that this process may use.

    Raises:
      ValueError: if `num_devices` is not a positive int.
      RuntimeError: from JAX, if it is already in use.

    Example:
      >>> use_cpu_devices(4)  # doctest: +SKIP
      >>> jax.device_count()  # doctest: +SKIP
      4
    """
    cores = _count_cores()
    if num_devices is None and (told := os.environ.get("JAX_NUM_CPU_DEVICES")):
        num_devices = int(told)  # JAX reads it too.
    else:
        num_devices = cores if num_devices is None else num_devices
        _checks.check_int("num_devices", num_devices)
        jax.config.update("jax_num_cpu_devices", num_devices)
    os.environ.setdefault("NPROC", str(max(2 * num_devices, cores)))


def _count_cores() -> int:
    """Counts the cores that this process may use, where the system reports them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def task_mesh(devices: Sequence[Any] | None = None, *, param_shards: int = 1) -> Mesh:
    """Returns a mesh with one axis, "tasks", over `devices` (default all).

    Tasks are sharded over all its devices. To use CPU cores as devices, call
    `use_cpu_devices` before JAX is first used; the command line does so itself.

    Args:
      devices: the devices; None is all.
      param_shards: number of parts for sharded meta-parameters; if more than one, the
        mesh has a second axis, "params", for `shard_params`.

    Raises:
      ValueError: if there are no devices, or the shards do not divide them.

    Example:
      >>> import jax
      >>> task_mesh(jax.devices()[:1]).shape["tasks"]
      1
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("`devices` is empty: a mesh requires at least one device.")
    _checks.check_int("param_shards", param_shards)
    if len(devices) % param_shards:
        raise ValueError(
            f"`param_shards` must divide the {len(devices)} devices, got "
            f"{param_shards}."
        )
    names = (TASKS_AXIS,) if param_shards == 1 else (TASKS_AXIS, PARAMS_AXIS)
    shape = (-1,) if param_shards == 1 else (-1, param_shards)
    # With explicit axes, JAX's default, `vmap` would reject sharded tasks.
    types = (AxisType.Auto,) * len(names)
    return Mesh(np.array(devices).reshape(shape), names, axis_types=types)


def shard_params(
    mesh: Mesh, rules: Mapping[str, PartitionSpec]
) -> Callable[[base.Params], Any]:
    """Returns `(params) -> shardings`, by the first rule that matches a leaf's path.

    For `make_train_step(..., shardings=...)`: meta-parameters and the outer optimizer's
    state are then stored in shards, and gathered only within each step.

    Args:
      mesh: e.g. `task_mesh(param_shards=2)`.
      rules: regular expressions, searched for in paths such as
        "params/Dense_0/kernel", and the specification of matching leaves. Leaves that
        none matches are replicated.

    Raises:
      ValueError: when called, if a rule is the first match of no leaf, or its axes do
        not match the mesh or the leaf, or do not divide evenly.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec
      >>> mesh = task_mesh(jax.devices()[:1])
      >>> rules = {"kernel$": PartitionSpec(None, "tasks")}
      >>> params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
      >>> found = shard_params(mesh, rules)(params)
      >>> tuple(found["kernel"].spec)
      (None, 'tasks')
    """

    def shardings(params):
        unused, names = set(rules), []

        def sharding(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            names.append(name)
            matching = [rule for rule in rules if re.search(rule, name)]
            unused.difference_update(matching[:1])
            spec = rules[matching[0]] if matching else PartitionSpec()
            try:
                found = NamedSharding(mesh, PartitionSpec(*spec))
                found.shard_shape(jnp.shape(leaf))
            except (ValueError, IndexError) as error:  # More axes than the leaf has.
                raise ValueError(
                    f"`rules` do not fit {name} of shape {jnp.shape(leaf)}: {error}"
                ) from error
            return found

        found = jax.tree_util.tree_map_with_path(sharding, params)
        if unused:
            raise ValueError(
                f"`rules` {sorted(unused)} match none of the parameters {names} that "
                "earlier rules do not match."
            )
        return found

    return shardings


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates the arrays of `tree` on all devices of `mesh`, across processes.

    Each process passes the same arrays, on its own devices or on those of the mesh.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
