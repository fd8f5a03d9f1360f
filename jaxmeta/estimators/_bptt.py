"""Back-propagation through the steps of a learned optimizer, whole or truncated.

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
    r"""Differentiates whole runs: the exact meta-gradient.

    The meta-loss is the mean of :math:`\sum_{t=1}^{H} w_t f(\theta_t)` over runs on
    freshly drawn problems.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems.
      horizon: H, updates a run. Static.
      num_problems: runs a meta-step, side by side. Static.
      weight: :math:`w_t` as a function of an array of t = 1 ... H; None is 1.
      second_order: differentiate the gradients that the optimizer sees too. The paper
        drops these derivatives; kept, they cost a Hessian-vector product a step.
        Static.
      hvp: how these derivatives are taken, as in `jaxmeta.maml`. Static.
      rematerialize: compute again, in the backward pass, all of a step but its
        gradients: less memory, more time. Static.
      mesh: shards the runs over this mesh's devices (`training.task_mesh()`).

    Returns:
      A `GradientEstimator` without carry. Its info has the mean loss of each run. A run
      whose gradient is not finite is excluded from the mean.

    Raises:
      ValueError: if a count is not a positive int, runs do not divide into devices, or
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

    The meta-loss of a truncation is :math:`\sum w_t f(\theta_t)` over the points that
    its updates lead to; what came before is constant. A run that reached its horizon is
    replaced by a fresh one.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems.
      unroll: updates a meta-step, and the reach of the derivative. Static.
      horizon: updates a run, a multiple of `unroll`. Of a pair (lowest, highest) each
        run draws its own, log-uniformly. A function `(meta_step) -> updates` is a
        curriculum: a run has the horizon of the meta-step in which it starts. Static.
      num_problems: runs side by side. Static.
      weight: as for `bptt`.
      staggered: let the first runs end one after the other, so that each meta-step sees
        runs of every age; if not, all start together. Static.
      second_order: as for `bptt`. Static.
      hvp: as for `bptt`. Static.
      rematerialize: as for `bptt`. Static.
      mesh: as for `bptt`.

    Returns:
      A `GradientEstimator` whose carry are the runs. Its info has each run's mean loss
      over the truncation. A run that diverges, or whose gradient is not finite, is
      excluded from the mean, and a fresh one takes its place.

    Raises:
      ValueError: if a count is not a positive int, `horizon` is not a multiple of
        `unroll`, runs do not divide into devices, or the loss is not a scalar.

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

    def start(key, theta, problem, meta_step):
        return _runs.start(key, theta, lopt, problem, horizon, unroll, meta_step)

    def truncation_loss(theta, problem, meta_step, key, run):
        start_key, run_key = jax.random.split(key)
        # Inside the derivative: a rule may learn the state that it starts from.
        run = _runs.restart_if_over(run, start(start_key, theta, problem, meta_step))
        run, losses = advance(run_key, problem, theta, run, unroll)
        loss, info = _runs.meta_loss(losses, run, weight)
        return loss, (run, info)

    def init(key):
        theta_key, run_key = jax.random.split(key)
        theta = _runs.init_theta(theta_key, lopt, problem)
        make = lambda key: start(key, theta, problem, 0)
        runs = _runs.start_all(run_key, num_problems, staggered, unroll, make)
        return _over_runs.place(theta, runs, mesh)

    one_run = jax.grad(truncation_loss, has_aux=True)
    return _over_runs.over_runs(one_run, init, problem, num_problems, mesh)
