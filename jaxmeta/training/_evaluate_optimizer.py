"""Evaluation of optimizers, learned or not, on fresh problems."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmeta import _checks, _pytrees, _task_axis, base
from jaxmeta.estimators import _runs
from jaxmeta.training import _evaluate


class LossCurves(NamedTuple):
    """Losses along runs on N problems; index t is after t of T updates."""

    per_problem: jax.Array  # [N, T + 1]

    @property
    def at_step(self) -> _evaluate.MeanWithInterval:
        """The loss after each number of updates, leaves [T + 1]."""
        return _evaluate.mean_with_interval(self.per_problem)

    @property
    def median(self) -> jax.Array:
        """The median over problems, [T + 1]: robust to a few outliers."""
        return jnp.median(self.per_problem, 0)

    @property
    def final(self) -> _evaluate.MeanWithInterval:
        """The loss after the last update, []."""
        return _evaluate.mean_with_interval(self.per_problem[:, -1])

    @property
    def summed(self) -> _evaluate.MeanWithInterval:
        """The sum over updates 1 ... T, []: the meta-training objective."""
        return _evaluate.mean_with_interval(jnp.sum(self.per_problem[:, 1:], 1))


class Tuned(NamedTuple):
    """Result of `tune`."""

    rate: float
    losses: np.ndarray  # final mean loss of each rate; infinite if it diverged


def evaluate_optimizer(
    lopt: base.LearnedOptimizer,
    theta: Any,
    problem: base.OptimizationProblem,
    *,
    num_steps: int,
    num_problems: int,
    key: jax.Array,
    problems_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> LossCurves:
    """Runs an optimizer on freshly drawn problems.

    The same key gives every optimizer the same problems, initial parameters and
    minibatches. Compiled once per optimizer, problem and counts.

    Args:
      lopt: a learned optimizer, or an optax one through `optimizers.learned_rate`.
      theta: its meta-parameters, or the learning rate.
      problem: the family of problems.
      num_steps: T, updates per run.
      num_problems: N.
      key: draws the problems.
      problems_per_chunk: problems per `vmap`; None is all on a device.
      mesh: shards the problems over its devices; they need not divide N.

    Returns:
      The loss of each problem after each update, on a fresh minibatch.

    Raises:
      ValueError: if a count is not a positive int, or the loss is not a scalar.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> lopt = jm.optimizers.learned_rate(optax.sgd)
      >>> curves = evaluate_optimizer(lopt, 0.01, jm.problems.quadratics(2),
      ...                             num_steps=5, num_problems=3,
      ...                             key=jax.random.key(0))
      >>> curves.per_problem.shape
      (3, 6)
    """
    _checks.check_int("num_steps", num_steps)
    _checks.check_int("num_problems", num_problems)
    if problems_per_chunk is not None:
        _checks.check_int("problems_per_chunk", problems_per_chunk)
    arrays = jax.tree.map(jnp.asarray, theta), _pytrees.as_pytree(problem), key
    if mesh is not None:
        arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
    return LossCurves(
        _run_all(lopt, *arrays, num_steps, num_problems, problems_per_chunk, mesh)
    )


def tune(
    lopt: base.LearnedOptimizer,
    rates: Sequence[float],
    problem: base.OptimizationProblem,
    **options: Any,
) -> Tuned:
    """Chooses the learning rate with the lowest mean final loss.

    Args:
      lopt: from `optimizers.learned_rate`.
      rates: the candidates.
      problem: as in `evaluate_optimizer`.
      **options: as in `evaluate_optimizer`. Use another key than for testing.

    Raises:
      ValueError: as `evaluate_optimizer`, or if there are no rates, or runs diverge
        with all of them.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> lopt = jm.optimizers.learned_rate(optax.sgd)
      >>> tuned = tune(lopt, [1e-4, 1e-2, 1e2], jm.problems.quadratics(2), num_steps=20,
      ...              num_problems=9, key=jax.random.key(0))
      >>> tuned.rate
      0.01
    """
    if not len(rates):
        raise ValueError("`rates` must have at least one rate, got none.")
    curves = [evaluate_optimizer(lopt, rate, problem, **options) for rate in rates]
    losses = np.array([float(curve.final.mean) for curve in curves])
    losses = np.where(np.isfinite(losses), losses, np.inf)
    if not np.isfinite(losses).any():
        raise ValueError(f"Runs diverged with all `rates`, {list(rates)}.")
    return Tuned(rate=float(rates[int(losses.argmin())]), losses=losses)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _run_all(lopt, theta, problem, key, num_steps, num_problems, chunk, mesh):
    """Returns losses [N, T + 1]."""
    advance = _runs.advance(lopt, order="constant", rematerialize=False)

    def one_run(shared, key):
        theta, problem = shared
        start_key, run_key = jax.random.split(key)
        run = _runs.start(start_key, theta, lopt, problem, num_steps)
        return advance(run_key, problem, theta, run, num_steps)[1]

    all_runs = _task_axis.map_over_tasks(one_run, chunk=chunk, mesh=mesh)
    return all_runs((theta, problem), jax.random.split(key, num_problems))
