"""The axis of tasks: the only place that adds it, in chunks and over devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmeta import _checks, base


def sum_over_tasks(
    of_task: Callable[[Any, Any], tuple[Any, Any]],
    *,
    chunk: int,
    mesh: Mesh | None = None,
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Returns `(shared, per_task) -> (sums, infos)`.

    Args:
      of_task: `(shared, one) -> (terms, info)` of one task.
      chunk: how many tasks of a device go through `vmap` at once; chunks follow one
        another. It must divide them.
      mesh: shards the tasks over this mesh's devices: `per_task` and `infos`, leaves
        [T, ...]; the sums are the same on every device.
    """

    def on_one_device(shared, per_task):
        one = jax.tree.map(lambda x: x[0], per_task)
        terms, _ = jax.eval_shape(of_task, shared, one)
        chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), per_task)

        def add_chunk(total, some):
            terms, info = jax.vmap(of_task, (None, 0))(shared, some)
            add = lambda t, x: t + jnp.sum(x, 0, dtype=t.dtype)
            return jax.tree.map(add, total, terms), info

        # At least float32: a long sum in bfloat16 stands still.
        wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
        total, info = jax.lax.scan(add_chunk, jax.tree.map(wide, terms), chunks)
        return total, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), info)

    if mesh is None:
        return on_one_device
    axes = mesh.axis_names
    everywhere, over = PartitionSpec(), PartitionSpec(axes)

    def on_device(shared, per_task):
        total, info = on_one_device(shared, per_task)
        return jax.lax.psum(total, axes), info

    # With its checks of what varies over devices, differentiating the replicated
    # meta-parameters inside would put a psum into the INNER gradients: silently wrong.
    # Without them each device does exactly what one alone would.
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(everywhere, over),
        out_specs=(everywhere, over),
        check_vma=False,
    )


def map_over_tasks(
    of_task: Callable[[Any, Any], Any],
    *,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[Any, Any], Any]:
    """Returns `(shared, per_task) -> outs`, leaves of both [T, ...].

    Args:
      of_task: `(shared, one) -> out` of one task.
      chunk: how many tasks of a device go through `vmap` at once; None is all of them.
      mesh: shards the tasks over this mesh's devices; T need not divide by them.
    """

    def on_one_device(shared, per_task):
        run = lambda one: of_task(shared, one)
        size = chunk or jax.tree.leaves(per_task)[0].shape[0]
        # One at a time without `vmap`, which is slower around convolutions.
        return jax.lax.map(run, per_task, batch_size=None if size == 1 else size)

    if mesh is None:
        return on_one_device
    everywhere, over = PartitionSpec(), PartitionSpec(mesh.axis_names)
    on_devices = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(everywhere, over),
        out_specs=over,
        check_vma=False,  # As above.
    )

    def on_all(shared, per_task):
        num_tasks = jax.tree.leaves(per_task)[0].shape[0]
        num_padded = num_tasks + -num_tasks % mesh.size
        repeated = jnp.minimum(jnp.arange(num_padded), num_tasks - 1)
        outs = on_devices(shared, jax.tree.map(lambda x: x[repeated], per_task))
        return jax.tree.map(lambda x: x[:num_tasks], outs)

    return on_all


def init_replicated(
    learner: Any, sampler: Callable[..., Any], key: jax.Array, mesh: Mesh | None
) -> base.Params:
    """Draws meta-parameters for a sampled task, the same on every device."""
    task_key, init_key = jax.random.split(key)
    meta_params = learner.init(init_key, sampler(task_key))
    if mesh is None:
        return meta_params
    # Where the steps will leave them: that compiles the steps once.
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(meta_params, replicated)


def default_chunk(meta_params: base.Params, num_tasks: int, mesh: Mesh | None) -> int:
    """How many of a device's `num_tasks` should go through `vmap` at once."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    num_params = sum(jnp.size(x) for x in jax.tree.leaves(meta_params))
    # On a CPU batching buys nothing but less overhead for each operation.
    return 1 if device.platform == "cpu" and num_params >= 10_000 else num_tasks


def check_counts(num_tasks: int, tasks_per_chunk: int | None, num_devices: int) -> None:
    """Raises unless the tasks divide into devices and chunks."""
    _checks.check_int("num_tasks", num_tasks)
    if num_tasks % num_devices:
        raise ValueError(
            f"`num_tasks` must be a multiple of the mesh's {num_devices} devices, got "
            f"{num_tasks}."
        )
    if tasks_per_chunk is None:
        return
    _checks.check_int("tasks_per_chunk", tasks_per_chunk)
    on_one_device = num_tasks // num_devices
    if on_one_device % tasks_per_chunk:
        raise ValueError(
            f"`tasks_per_chunk` must divide the {on_one_device} tasks of each device, "
            f"got {tasks_per_chunk}."
        )
