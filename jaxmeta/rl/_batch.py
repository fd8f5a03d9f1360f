"""A batch of tasks that an outer update uses several times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxmeta import _task_axis, base
from jaxmeta.rl import _loop, _maml


class TaskBatch(NamedTuple):
    """The tasks of a step, with means over them; made by `task_batch`."""

    learner: _maml.PolicyLearner
    sampler: Partial
    num_tasks: int
    tasks_per_chunk: int | None
    mesh: Mesh | None

    def init(
        self, key: jax.Array, outer_tx: optax.GradientTransformation | None = None
    ) -> base.TrainState:
        """Starts a run."""
        init_key, run_key = jax.random.split(key)
        meta_params = _task_axis.init_replicated(
            self.learner, self.sampler, init_key, self.mesh
        )
        return base.TrainState(
            step=jnp.zeros((), jnp.int32),
            meta_params=meta_params,
            carry=None,
            opt_state=() if outer_tx is None else outer_tx.init(meta_params),
            key=run_key,
        )

    def collect(
        self, sampler: Partial, key: jax.Array, meta_params: base.Params
    ) -> tuple[_loop.Samples, _loop.PolicyInfo]:
        """Draws tasks and their episodes, with leaves [T, ...]."""

        def of_task(shared, key):
            sampler, meta_params = shared
            task_key, key = jax.random.split(key)
            task = sampler(task_key)
            return (), self.learner.loop.collect(key, meta_params, task)

        keys = jax.random.split(key, self.num_tasks)
        over_tasks = self._over_tasks(of_task, meta_params)
        return over_tasks((sampler, meta_params), keys)[1]

    def mean(
        self,
        of_task: Callable[[Any, _loop.Samples], Any],
        params: Any,
        samples: _loop.Samples,
        *,
        exclude: bool = True,
    ) -> tuple[Any, jax.Array]:
        """Returns the mean over the valid tasks, and which are valid, [T].

        Args:
          of_task: `(params, samples of one task) -> tree of floats`.
          params: shared by all tasks.
          samples: from `collect`.
          exclude: also treat tasks with a non-finite tree as invalid.
        """

        def kept_terms(params, samples):
            terms = of_task(params, samples)
            # Masked explicitly: zero episodes may have nonzero terms (a KL penalty).
            is_valid = samples.is_valid
            if exclude:
                is_valid &= _loop.all_finite(terms)
            kept = lambda x: jnp.where(is_valid, x, jnp.zeros_like(x))
            count = is_valid.astype(jnp.float32)
            return (jax.tree.map(kept, terms), count), is_valid

        over_tasks = self._over_tasks(kept_terms, jax.tree.leaves(params))
        (total, num_kept), is_valid = over_tasks(params, samples)
        num_kept = jnp.maximum(num_kept, 1)
        mean = jax.tree.map(lambda x: x / num_kept.astype(x.dtype), total)
        return mean, is_valid

    def _over_tasks(self, of_task, meta_params):
        num_devices = 1 if self.mesh is None else self.mesh.size
        chunk = self.tasks_per_chunk or _task_axis.default_chunk(
            meta_params, self.num_tasks // num_devices, self.mesh
        )
        return _task_axis.sum_over_tasks(of_task, chunk=chunk, mesh=self.mesh)


def task_batch(
    learner: _maml.PolicyLearner,
    sampler: Partial,
    *,
    num_tasks: int,
    tasks_per_chunk: int | None,
    mesh: Mesh | None,
) -> TaskBatch:
    """Chunks and shards the tasks like `jaxmeta.estimators.over_tasks`."""
    if not hasattr(learner, "loop"):
        raise ValueError(
            "`learner` must be a `jaxmeta.rl.PolicyLearner` from `jaxmeta.rl.maml`, "
            f"got {type(learner).__name__}."
        )
    num_devices = 1 if mesh is None else mesh.size
    _task_axis.check_counts(num_tasks, tasks_per_chunk, num_devices)
    return TaskBatch(learner, sampler, num_tasks, tasks_per_chunk, mesh)
