"""Evaluation on held-out tasks, with confidence intervals."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmeta import _checks, _dtypes, _pytrees, _task_axis, base
from jaxmeta.training import _mesh


class MeanWithInterval(NamedTuple):
    """A mean over tasks and the half-width of its 95 % confidence interval.

    Attributes:
      mean: [...].
      half_width: [...], of the 95 % confidence interval.
      per_task: [T, ...].
    """

    mean: jax.Array
    half_width: jax.Array
    per_task: jax.Array

    def __str__(self) -> str:
        """Mean ± half width; for vectors one per line."""
        if self.mean.ndim == 0:
            return f"{float(self.mean):.4g} ± {float(self.half_width):.2g}"
        if self.mean.ndim > 1:
            return repr(self)
        rows = zip(self.mean, self.half_width, strict=True)
        return "\n".join(str(MeanWithInterval(*row, self.per_task)) for row in rows)


class Evaluation(NamedTuple):
    """Result of `evaluate`; index k is after k inner steps.

    Attributes:
      loss: `mean` and `half_width` [K + 1], `per_task` [T, K + 1].
      metrics: name -> likewise.
    """

    loss: MeanWithInterval
    metrics: Mapping[str, MeanWithInterval]

    def __repr__(self) -> str:
        """A table with a row per number of inner steps and a column per metric.

        After `vmap`, e.g. over seeds, one table each.
        """
        if self.loss.mean.ndim > 1:
            one = lambda i: jax.tree.map(lambda x: x[i], self)
            return "\n".join(f"[{i}]\n{one(i)}" for i in range(len(self.loss.mean)))
        columns = {"loss": self.loss, **self.metrics}
        cells = {name: str(value).split("\n") for name, value in columns.items()}
        lines = ["inner steps  " + "".join(f"{name:<20}" for name in cells)]
        for k, row in enumerate(zip(*cells.values(), strict=True)):
            lines.append(f"{k:>11}  " + "".join(f"{cell:<20}" for cell in row))
        return "\n".join(line.rstrip() for line in lines)


def mean_with_interval(per_task: jax.Array) -> MeanWithInterval:
    """Summarises one number (or array) per task, `per_task` [T, ...].

    The interval is normal, 1.96 standard errors (ddof = 1), and over *tasks*: it does
    not cover the spread over training seeds. For a single task it is NaN.

    Raises:
      ValueError: if `per_task` has no task axis.

    Example:
      >>> import jax.numpy as jnp
      >>> print(mean_with_interval(jnp.array([1.0, 2.0, 3.0, 4.0])))
      2.5 ± 1.3
    """
    if per_task.ndim < 1 or not per_task.shape[0]:
        raise ValueError(f"`per_task` must have shape [T, ...], got {per_task.shape}.")
    num_tasks = per_task.shape[0]
    per_task = _dtypes.widen(per_task)
    mean = jnp.mean(per_task, 0)
    squares = jnp.sum(jnp.square(per_task - mean[None]), 0)
    # 0 / 0 for one task: NaN, without NumPy's warning.
    standard_error = jnp.sqrt(squares / jnp.float32(num_tasks - 1) / num_tasks)
    # 1.96: the 97.5 % quantile of the normal distribution.
    return MeanWithInterval(mean, 1.96 * standard_error, per_task)


def evaluate(
    learner: base.LearnerLike,
    meta_params: base.Params,
    sample_task: base.SampleTask,
    *,
    num_tasks: int,
    key: jax.Array,
    inner_steps: int | None = None,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Evaluates meta-parameters on freshly sampled tasks, after each inner step.

    Compiled once per learner and arguments. Predictions follow the model: a
    transductive one (batch statistics of the queries) gives the transductive result;
    with the same `meta_params`, a learner whose model has `statistics="support"` gives
    the inductive one.

    Args:
      learner: any `MetaLearner`.
      meta_params: trained meta-parameters.
      sample_task: `(key) -> Task`.
      num_tasks: T.
      key: the same key gives the same tasks.
      inner_steps: K; None is the learner's own.
      tasks_per_chunk: as in `jaxmeta.estimators.over_tasks`.
      mesh: shards the tasks over its devices; they need not divide T.

    Raises:
      ValueError: if a count is not a positive int, or `meta_params` do not match the
        learner.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> learner = jm.maml(jm.models.MLP([8, 1]), jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.01), inner_steps=1)
      >>> sample_task, key = jm.tasks.sinusoid(), jax.random.key(0)
      >>> meta_params = learner.init(key, sample_task(key))
      >>> result = evaluate(learner, meta_params, sample_task, num_tasks=20, key=key,
      ...                   inner_steps=3)
      >>> result.loss.mean.shape, result.loss.per_task.shape
      ((4,), (20, 4))
    """
    _checks.check_int("num_tasks", num_tasks)
    if inner_steps is not None:
        _checks.check_int("inner_steps", inner_steps)
    if tasks_per_chunk is not None:
        _checks.check_int("tasks_per_chunk", tasks_per_chunk)
    sampler = _pytrees.as_partial(sample_task)
    arrays = meta_params, sampler, key
    if mesh is not None:  # Restored parameters, for example, are on one device.
        arrays = _mesh.replicate(arrays, mesh)
    per_task = _evaluate_tasks(
        learner,
        *arrays,
        num_tasks,
        inner_steps,
        tasks_per_chunk,
        mesh,
    )
    return Evaluation(
        mean_with_interval(per_task.loss),
        {name: mean_with_interval(x) for name, x in per_task.metrics.items()},
    )


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _evaluate_tasks(
    learner, meta_params, sampler, key, num_tasks, inner_steps, tasks_per_chunk, mesh
):
    """Returns `EvalInfo` with leaves [T, K + 1]."""
    init = lambda key: learner.init(key, sampler(key))
    _checks.check_like("meta_params", meta_params, jax.eval_shape(init, key))
    num_devices = 1 if mesh is None else mesh.size
    chunk = tasks_per_chunk or _task_axis.default_chunk(
        meta_params, -(-num_tasks // num_devices), mesh
    )

    def one_task(shared, key):
        sampler, meta_params = shared
        task_key, learner_key = jax.random.split(key)
        return learner.evaluate(
            learner_key, meta_params, sampler(task_key), inner_steps=inner_steps
        )

    all_tasks = _task_axis.map_over_tasks(one_task, chunk=chunk, mesh=mesh)
    return all_tasks((sampler, meta_params), jax.random.split(key, num_tasks))
