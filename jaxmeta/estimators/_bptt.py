"""Backpropagation through the steps of a learned optimizer, full or truncated.

References:
  Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
  NeurIPS 2016, Equation 3 and Figure 2. https://arxiv.org/abs/1606.04474
"""

import jax
from jax.sharding import Mesh

from jaxmeta import _checks, _unroll, base
from jaxmeta.estimators import _over_runs, _runs


def bptt(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    *,
    horizon: int,
    num_problems: int,
    weight: _runs.Weight | None = None,
    second_order: bool = True,
    hvp: _unroll.Hvp = "auto",
    rematerialize: bool = True,
    mesh: Mesh | None = None,
) -> base.GradientEstimator:
    r"""Differentiates full runs: the exact meta-gradient.

    The meta-loss is the mean of :math:`\sum_{t=1}^{H} w_t f(\theta_t)` over runs on
    freshly drawn problems.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems.
      horizon: H, updates per run. Static.
      num_problems: parallel runs per meta-step. Static.
      weight: `(t, H) -> w`, :math:`w_t` for an array of t = 1 ... H; None is 1. The
        loss at the end only: `lambda t, H: t == H`.
      second_order: also differentiate the gradients that the optimizer sees. The paper
        drops these derivatives; they cost a Hessian-vector product per step. Static.
      hvp: how these derivatives are computed, as in `jaxmeta.maml`. Static.
      rematerialize: recompute each step except its gradients in the backward pass: less
        memory, more time. Static.
      mesh: shards the runs over this mesh's devices (`training.task_mesh()`).

    Returns:
      A `GradientEstimator` without carry. Its info has the mean loss of each run. Runs
      with a non-finite gradient are excluded from the mean.

    Raises:
      ValueError: if a count is not a positive int, devices do not divide the runs, or
        the loss is not a scalar.
    """
    _checks.check_int("horizon", horizon)
    _runs.check_arguments(lopt, num_problems, 1, horizon, mesh)
    order = _runs.gradient_order(second_order, hvp)
    advance = _runs.advance(lopt, order=order, rematerialize=rematerialize)

    def run_loss(theta, problem, meta_step, key, carry):
        del meta_step
        start_key, run_key = jax.random.split(key)
        run = _runs.start(start_key, theta, lopt, problem, horizon)
        run, losses = advance(run_key, problem, theta, run, horizon)
        loss, info = _runs.meta_loss(losses, run, weight)
        return loss, (carry, info)

    def init(key):
        return _over_runs.place(_runs.init_theta(key, lopt, problem), None, mesh)

    one_run = jax.grad(run_loss, has_aux=True)
    return _over_runs.over_runs(one_run, init, problem, num_problems, mesh)


def truncated_bptt(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    *,
    unroll: int,
    horizon: _runs.Horizon,
    num_problems: int,
    weight: _runs.Weight | None = None,
    staggered: bool = False,
    second_order: bool = True,
    hvp: _unroll.Hvp = "auto",
    rematerialize: bool = True,
    mesh: Mesh | None = None,
) -> base.GradientEstimator:
    r"""Differentiates `unroll` updates at a time; runs continue between meta-steps.

    The meta-loss of a truncation is :math:`\sum w_t f(\theta_t)` over the points its
    updates reach; everything before is constant. A run that reached its horizon is
    replaced by a fresh one.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems.
      unroll: updates per meta-step, through which the derivative is taken. Static.
      horizon: updates per run, a multiple of `unroll`. With a pair (lowest, highest)
        each run draws its own log-uniformly. A function `(meta_step) -> updates` is a
        curriculum, evaluated at the meta-step in which a run starts. Static.
      num_problems: parallel runs. Static.
      weight: as for `bptt`.
      staggered: make the first runs end one after another, so that each meta-step sees
        runs of every age; otherwise all start together. Static.
      second_order: as for `bptt`. Static.
      hvp: as for `bptt`. Static.
      rematerialize: as for `bptt`. Static.
      mesh: as for `bptt`.

    Returns:
      A `GradientEstimator` with the runs as carry. Its info has each run's mean loss
      over the truncation. A run that diverges or has a non-finite gradient is excluded
      from the mean and replaced by a fresh one.

    Raises:
      ValueError: if a count is not a positive int, `horizon` is not a multiple of
        `unroll`, devices do not divide the runs, or the loss is not a scalar.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> estimator = truncated_bptt(jm.optimizers.lstm(4), jm.problems.quadratics(2),
      ...                            unroll=5, horizon=10, num_problems=3)
      >>> init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> print(state.carry.step, info.loss.shape)
      [5 5 5] (3,)
    """
    _runs.check_arguments(lopt, num_problems, unroll, horizon, mesh)
    order = _runs.gradient_order(second_order, hvp)
    advance = _runs.advance(lopt, order=order, rematerialize=rematerialize)

    def start(key, theta, problem, meta_step, drawn=None):
        more = unroll, meta_step, drawn
        return _runs.start(key, theta, lopt, problem, horizon, *more)

    def truncation_loss(theta, problem, meta_step, key, carry):
        run, start_key, drawn = carry
        # Inside the derivative, because a rule may learn its initial state.
        fresh = start(start_key, theta, problem, meta_step, drawn)
        run = _runs.restart_if_over(run, fresh)
        run, losses = advance(key, problem, theta, run, unroll)
        loss, info = _runs.meta_loss(losses, run, weight)
        return loss, (run, info)

    def init(key):
        theta_key, run_key = jax.random.split(key)
        theta = _runs.init_theta(theta_key, lopt, problem)
        make = lambda key: start(key, theta, problem, 0)
        runs = _runs.start_all(run_key, num_problems, staggered, unroll, make)
        return _over_runs.place(theta, runs, mesh)

    one_run = jax.grad(truncation_loss, has_aux=True)
    args = one_run, init, problem, num_problems, mesh
    return _over_runs.over_runs(*args, runs_of=lambda runs: runs)
