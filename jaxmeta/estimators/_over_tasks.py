"""The meta-gradient over a batch of tasks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxmeta import _pytrees, _task_axis, base


def over_tasks(
    learner: base.LearnerLike,
    sample_task: base.SampleTask,
    *,
    num_tasks: int,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> base.GradientEstimator:
    """Averages a learner's meta-gradient over freshly sampled tasks.

    Args:
      learner: any `MetaLearner`.
      sample_task: `(key) -> Task`. A `jax.tree_util.Partial` keeps its data as leaves
        of `estimate`, so that they can be arguments of a compiled step.
      num_tasks: T, tasks per step (the meta-batch). Static.
      tasks_per_chunk: tasks per `vmap` on one device; chunks run one after another.
        None: all on accelerators and for networks under 10,000 parameters; one on CPUs
        for larger networks, where that is fastest and needs the least memory. Changes
        memory and time, not the result. Static.
      mesh: shards the tasks over this mesh's devices (`training.task_mesh()`), with one
        all-reduce of the gradient per step for any number of tasks.

    Returns:
      A `GradientEstimator` without carry. Its info has one entry per task, [T, ...].
      Tasks whose info is not `is_valid` are excluded from the mean.

    Raises:
      ValueError: if a count is not a positive int, or devices and chunks do not divide
        the tasks.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> learner = jm.maml(jm.models.MLP([8, 1]), jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.01), inner_steps=1)
      >>> estimator = over_tasks(learner, jm.tasks.sinusoid(), num_tasks=4)
      >>> meta_params, carry = estimator.init(jax.random.key(0))
      >>> grads, carry, info = estimator.estimate(jax.random.key(1), meta_params, carry)
      >>> info.loss.shape
      (4,)
    """
    average = _average(learner, num_tasks, tasks_per_chunk, mesh)
    sampler = _pytrees.as_partial(sample_task)

    def init(key):
        return _task_axis.init_replicated(learner, sampler, key, mesh), None

    def estimate(sampler, key, meta_params, carry, **extra: Any):
        if "tasks" in extra:
            raise ValueError(
                "`over_tasks` samples its own tasks: for given tasks or a stream use "
                "`over_stream`."
            )
        grads, info = average(sampler, key, (), meta_params, extra)
        return grads, carry, info

    return base.GradientEstimator(init, Partial(estimate, sampler))


def over_stream(
    learner: base.LearnerLike,
    stream: base.TaskStream,
    *,
    tasks_per_chunk: int | None = None,
) -> base.GradientEstimator:
    """Averages a learner's meta-gradient over tasks from the host.

    Args:
      learner: any `MetaLearner`.
      stream: source of the tasks, e.g. `jaxmeta.tasks.stream_few_shot`.
      tasks_per_chunk: as in `over_tasks`. Static.

    Returns:
      A `GradientEstimator` whose `estimate` requires `tasks`, a `Task` with leaves
      [T, ...]; `jaxmeta.training.fit(..., stream=stream)` passes them.

    Raises:
      ValueError: if devices and chunks do not divide the tasks; while tracing, if
        `tasks` do not match the stream's example.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> one = jm.tasks.sinusoid()(jax.random.key(0))
      >>> four = jax.tree.map(lambda x: jnp.stack([x] * 4), one)
      >>> stream = jm.TaskStream(4, one, lambda step: iter([four]))
      >>> learner = jm.maml(jm.models.MLP([8, 1]), jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.01), inner_steps=1)
      >>> init, step = jm.training.make_train_step(
      ...     over_stream(learner, stream), optax.adam(1e-3))
      >>> state, info = jax.jit(step)(init(jax.random.key(0)), tasks=four)
      >>> info.loss.shape
      (4,)
    """
    average = _average(learner, stream.num_tasks, tasks_per_chunk, stream.mesh)
    example = jax.tree.map(jnp.asarray, stream.example)
    batched = lambda x: jax.ShapeDtypeStruct((stream.num_tasks, *x.shape), x.dtype)
    like = jax.tree.map(batched, example)

    def init(key):
        sample = lambda key: example
        return _task_axis.init_replicated(learner, sample, key, stream.mesh), None

    def estimate(key, meta_params, carry, *, tasks=None, **extra: Any):
        if tasks is None:
            raise ValueError(
                "`over_stream` requires `tasks`: call `step(state, tasks=...)`, or "
                "pass `stream=...` to `fit`."
            )
        found, expected = (
            jax.tree.map(lambda x: (*jnp.shape(x),), tree) for tree in (tasks, like)
        )
        if found != expected:
            raise ValueError(
                "`tasks` must be a batch like the stream's example, with shapes "
                f"{expected}, got {found}."
            )
        given = Partial(lambda key, task: task)
        grads, info = average(given, key, (tasks,), meta_params, extra)
        return grads, carry, info

    return base.GradientEstimator(init, estimate)


def _average(learner, num_tasks, tasks_per_chunk, mesh):
    """Returns `(sampler, key, given, meta_params, extra) -> (meta_grads, info)`.

    A task is `sampler(key, *given)`; `given` has leaves [T, ...].
    """
    num_devices = 1 if mesh is None else mesh.size
    _task_axis.check_counts(num_tasks, tasks_per_chunk, num_devices)

    def of_task(shared, one):
        (sampler, meta_params, extra), (key, given) = shared, one
        task_key, learner_key = jax.random.split(key)
        task = sampler(task_key, *given)
        grads, info = learner.meta_grad(learner_key, meta_params, task, **extra)
        # A float, to be summed with the gradients in the same all-reduce.
        kept = jnp.asarray(info.is_valid, jnp.float32)
        return (grads, kept), info

    def average(sampler, key, given, meta_params, extra):
        keys = jax.random.split(key, num_tasks)
        chunk = tasks_per_chunk or _task_axis.default_chunk(
            meta_params, num_tasks // num_devices, mesh
        )
        over_axis = _task_axis.sum_over_tasks(of_task, chunk=chunk, mesh=mesh)
        (total, num_kept), info = over_axis(
            (sampler, meta_params, extra), (keys, given)
        )
        mean = lambda p, t: (t / jnp.maximum(num_kept, 1)).astype(p.dtype)
        return jax.tree.map(mean, meta_params, total), info

    return average
