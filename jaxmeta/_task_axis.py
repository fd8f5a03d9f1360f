"""The only place that adds the task axis, in chunks and over devices."""

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
      of_task: `(shared, one) -> (terms, info)` for one task.
      chunk: tasks per `vmap` on a device; chunks run one after another. Must divide
        the tasks of a device.
      mesh: shards the tasks over this mesh's devices: `per_task` and `infos`, leaves
        [T, ...]; the sums are replicated.
    """

    def on_one_device(shared, per_task):
        # [T, ...] -> [T / chunk, chunk, ...]: a scan over chunks, `vmap` within them.
        one = jax.tree.map(lambda x: x[0], per_task)
        terms, _ = jax.eval_shape(of_task, shared, one)
        chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), per_task)

        def add_chunk(total, some):
            terms, info = jax.vmap(of_task, (None, 0))(shared, some)
            add = lambda t, x: t + jnp.sum(x, 0, dtype=t.dtype)
            return jax.tree.map(add, total, terms), info

        # At least float32: a long sum in bfloat16 stops growing.
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

    # check_vma=True would make gradients by the replicated meta-parameters insert a
    # psum into the INNER gradients: silently wrong. Unchecked, each device computes
    # exactly what it would alone.
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
    """Returns `(shared, per_task) -> outs`; `per_task` and `outs` have leaves [T, ...].

    Args:
      of_task: `(shared, one) -> out` for one task.
      chunk: tasks per `vmap` on a device; None is all of them.
      mesh: shards the tasks over this mesh's devices; they need not divide T.
    """

    def on_one_device(shared, per_task):
        run = lambda one: of_task(shared, one)
        size = chunk or jax.tree.leaves(per_task)[0].shape[0]
        # batch_size=1 would still `vmap`, which is slower for convolutions.
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
        # Pads T to a multiple of the devices by repeating the last task.
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
    # As the steps will return them: otherwise the second step would recompile.
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(meta_params, replicated)


def default_chunk(meta_params: base.Params, num_tasks: int, mesh: Mesh | None) -> int:
    """Tasks per `vmap` on a device that has `num_tasks`."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    num_params = sum(jnp.size(x) for x in jax.tree.leaves(meta_params))
    # On a CPU batching only saves per-operation overhead, which large models hide.
    return 1 if device.platform == "cpu" and num_params >= 10_000 else num_tasks


def check_counts(num_tasks: int, tasks_per_chunk: int | None, num_devices: int) -> None:
    """Raises unless the tasks divide evenly into devices and chunks."""
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
