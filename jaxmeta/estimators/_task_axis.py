"""The axis of tasks: the only place that adds it, in chunks and over devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmeta import base


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
