"""Devices for tasks."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmeta import _checks, base

TASKS_AXIS, PARAMS_AXIS = "tasks", "params"


def task_mesh(devices: Sequence[Any] | None = None, *, param_shards: int = 1) -> Mesh:
    """Returns a mesh of one axis, "tasks", over `devices` (all, by default).

    Tasks go to all its devices. On a CPU, cores become devices by
    `jax.config.update("jax_num_cpu_devices", n)` before JAX is first used; the command
    line does so by itself.

    Args:
      devices: which.
      param_shards: into how many parts meta-parameters can be cut; with more than one
        the mesh has a second axis, "params", for `shard_params`.

    Raises:
      ValueError: if there are no devices, or they do not divide into the shards.

    Example:
      >>> import jax
      >>> task_mesh(jax.devices()[:1]).shape["tasks"]
      1
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("`devices` is empty: a mesh needs at least one device.")
    _checks.check_int("param_shards", param_shards)
    if len(devices) % param_shards:
        raise ValueError(
            f"`param_shards` must divide the {len(devices)} devices, got "
            f"{param_shards}."
        )
    names = (TASKS_AXIS,) if param_shards == 1 else (TASKS_AXIS, PARAMS_AXIS)
    shape = (-1,) if param_shards == 1 else (-1, param_shards)
    # Explicit axes, JAX's default, would make `vmap` refuse sharded tasks.
    types = (AxisType.Auto,) * len(names)
    return Mesh(np.array(devices).reshape(shape), names, axis_types=types)


def shard_params(
    mesh: Mesh, rules: Mapping[str, PartitionSpec]
) -> Callable[[base.Params], Any]:
    """Returns `(params) -> shardings`, by the first rule that a leaf's path matches.

    For `make_train_step(..., shardings=...)`: meta-parameters and the state of the
    outer optimizer are then kept in parts, and put together for each step only.

    Args:
      mesh: say of `task_mesh(param_shards=2)`.
      rules: regular expressions, searched for in paths such as
        "params/Dense_0/kernel", and the specification of those leaves. What none
        matches is on every device.

    Raises:
      ValueError: when called, if a rule is the first to match for no leaf, or its
        axes are not the mesh's, or not those of a leaf, or do not divide into parts.

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
                    f"`rules` do not suit {name}, of shape {jnp.shape(leaf)}: {error}"
                ) from error
            return found

        found = jax.tree_util.tree_map_with_path(sharding, params)
        if unused:
            raise ValueError(
                f"`rules` {sorted(unused)} match none of the parameters {names} that "
                "no rule before them does."
            )
        return found

    return shardings


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts the arrays of `tree` on all devices of `mesh`, other processes' too.

    Each process then has the same arrays, on its own devices or on those of the mesh.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
