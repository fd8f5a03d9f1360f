"""A batch of tasks that an outer update goes over several times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxmeta import base, estimators
from jaxmeta.estimators import _over_tasks, _task_axis
from jaxmeta.rl import _loop, _maml


class TaskBatch(NamedTuple):
    """The tasks of a step, and means over them.

    Attributes:
      init: `(key) -> meta_params`.
      collect: `(sampler, key, meta_params) -> (Samples, PolicyInfo)`, leaves [T, ...].
      mean: `(of_task, exclude=True) -> (params, samples) -> (mean, is_valid [T])`,
        over the valid tasks, of what `of_task(params, samples of one)` returns, a tree
        of floats. Tasks of which that is not finite are excluded too, by default.
    """

    init: Callable[..., base.Params]
    collect: Callable[..., tuple[_loop.Samples, _loop.PolicyInfo]]
    mean: Callable[..., Callable[..., Any]]


def task_batch(
    learner: _maml.PolicyLearner,
    sampler: Partial,
    *,
    num_tasks: int,
    tasks_per_chunk: int | None,
    mesh: Mesh | None,
) -> TaskBatch:
    """Chunks and shards the tasks, as `jaxmeta.estimators.over_tasks`."""
    if not hasattr(learner, "loop"):
        raise ValueError(
            "`learner` must be a `jaxmeta.rl.PolicyLearner`, as `jaxmeta.rl.maml` "
            f"returns, got {type(learner).__name__}."
        )
    num_devices = 1 if mesh is None else mesh.size
    _over_tasks.check_counts(num_tasks, tasks_per_chunk, num_devices)

    def over_axis(of_task, meta_params):
        chunk = tasks_per_chunk or estimators.default_chunk(
            meta_params, num_tasks // num_devices, mesh
        )
        return _task_axis.sum_over_tasks(of_task, chunk=chunk, mesh=mesh)

    def init(key):
        return _task_axis.init_replicated(learner, sampler, key, mesh)

    def collect(sampler, key, meta_params):
        def of_task(shared, key):
            sampler, meta_params = shared
            task_key, key = jax.random.split(key)
            return (), learner.loop.collect(key, meta_params, sampler(task_key))

        keys = jax.random.split(key, num_tasks)
        _, found = over_axis(of_task, meta_params)((sampler, meta_params), keys)
        return found

    def mean(of_task, exclude=True):
        def kept_terms(params, samples):
            terms = of_task(params, samples)
            # Zero episodes need not make zero terms: think of a KL penalty.
            is_valid = samples.is_valid
            if exclude:
                is_valid &= _loop.all_finite(terms)
            kept = lambda x: jnp.where(is_valid, x, jnp.zeros_like(x))
            count = is_valid.astype(jnp.float32)
            return (jax.tree.map(kept, terms), count), is_valid

        def mean_of(params, samples):
            over = over_axis(kept_terms, jax.tree.leaves(params))
            (total, num_kept), is_valid = over(params, samples)
            num_kept = jnp.maximum(num_kept, 1)
            mean = jax.tree.map(lambda x: x / num_kept.astype(x.dtype), total)
            return mean, is_valid

        return mean_of

    return TaskBatch(init, collect, mean)
