"""Back-propagation through the steps of a learned optimizer, whole or truncated.

References:
  Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
  NeurIPS 2016, Equation 3 and Figure 2. https://arxiv.org/abs/1606.04474
"""

import jax
import jax.numpy as jnp

from jaxmeta import _checks, base
from jaxmeta.estimators import _runs


def bptt(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    *,
    horizon: int,
    num_problems: int,
    second_order: bool = True,
    rematerialize: bool = True,
) -> base.GradientEstimator:
    r"""Differentiates whole runs: the exact meta-gradient.

    The meta-loss is the mean of :math:`\sum_{t=1}^{H} f(\theta_t)` over runs on freshly
    drawn problems.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems.
      horizon: H, updates a run. Static.
      num_problems: runs a meta-step, side by side. Static.
      second_order: differentiate the gradients that the optimizer sees too. The paper
        drops these derivatives; kept, they cost a Hessian-vector product a step.
        Static.
      rematerialize: compute again, in the backward pass, all of a step but its
        gradients: less memory, more time. Static.

    Returns:
      A `GradientEstimator` without carry. Its info has the mean loss of each run.

    Raises:
      ValueError: if a count is not a positive int or the loss is not a scalar.
    """
    _checks.check_int("horizon", horizon)
    _checks.check_int("num_problems", num_problems)
    go = _runs.advance(
        lopt, problem, second_order=second_order, rematerialize=rematerialize
    )

    def run_loss(theta, key):
        start_key, run_key = jax.random.split(key)
        _, losses = go(
            run_key, theta, _runs.start(start_key, theta, lopt, problem), horizon
        )
        return jnp.sum(losses), _runs.RunInfo(jnp.mean(losses))

    def estimate(key, meta_params, carry, **extra):
        del extra
        keys = jax.random.split(key, num_problems)
        grad_fn = jax.vmap(jax.grad(run_loss, has_aux=True), (None, 0))
        grads, info = grad_fn(meta_params, keys)
        return jax.tree.map(lambda g: jnp.mean(g, 0), grads), carry, info

    def init(key):
        return _init_theta(key, lopt, problem), None

    return base.GradientEstimator(init, estimate)


def truncated_bptt(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    *,
    unroll: int,
    horizon: int,
    num_problems: int,
    second_order: bool = True,
    rematerialize: bool = True,
) -> base.GradientEstimator:
    r"""Differentiates `unroll` updates at a time of runs that go on between meta-steps.

    The meta-loss of a stretch is :math:`\sum f(\theta_t)` over the points that its
    updates lead to; what came before is constant. A run that reached the horizon is
    replaced by a fresh one.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems.
      unroll: updates a meta-step, and the reach of the derivative. Static.
      horizon: updates a run, a multiple of `unroll`. Static.
      num_problems: runs side by side. Static.
      second_order: as for `bptt`. Static.
      rematerialize: as for `bptt`. Static.

    Returns:
      A `GradientEstimator` whose carry are the runs. Its info has each run's mean loss
      over the stretch.

    Raises:
      ValueError: if a count is not a positive int, `horizon` is not a multiple of
        `unroll`, or the loss is not a scalar.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> estimator = truncated_bptt(jm.optimizers.lstm(4), jm.tasks.quadratics(dim=2),
      ...                            unroll=5, horizon=10, num_problems=3)
      >>> init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> print(state.carry.step, info.loss.shape)
      [5 5 5] (3,)
    """
    for name, value in {
        "unroll": unroll,
        "horizon": horizon,
        "num_problems": num_problems,
    }.items():
        _checks.check_int(name, value)
    if horizon % unroll:
        raise ValueError(
            f"`horizon` must be a multiple of `unroll`, {unroll}, got {horizon}."
        )
    go = _runs.advance(
        lopt, problem, second_order=second_order, rematerialize=rematerialize
    )

    def stretch_loss(theta, key, run):
        start_key, run_key = jax.random.split(key)
        # Inside the derivative: a rule may learn the state that it starts from.
        fresh = _runs.start(start_key, theta, lopt, problem)
        is_over = run.step >= horizon
        run = jax.tree.map(lambda a, b: jnp.where(is_over, a, b), fresh, run)
        run, losses = go(run_key, theta, run, unroll)
        return jnp.sum(losses), (run, _runs.RunInfo(jnp.mean(losses)))

    def estimate(key, meta_params, carry, **extra):
        del extra
        keys = jax.random.split(key, num_problems)
        grad_fn = jax.vmap(jax.grad(stretch_loss, has_aux=True), (None, 0, 0))
        grads, (runs, info) = grad_fn(meta_params, keys, carry)
        return jax.tree.map(lambda g: jnp.mean(g, 0), grads), runs, info

    def init(key):
        theta_key, run_key = jax.random.split(key)
        theta = _init_theta(theta_key, lopt, problem)
        keys = jax.random.split(run_key, num_problems)
        start = lambda key: _runs.start(key, theta, lopt, problem)
        return theta, jax.vmap(start)(keys)

    return base.GradientEstimator(init, estimate)


def _init_theta(key, lopt, problem):
    """Draws theta; rules with a parameter of their own for each see an instance's."""
    problem_key, theta_key = jax.random.split(key)
    sample_key, init_key = jax.random.split(problem_key)
    params = problem.init(init_key, problem.sample(sample_key))
    return lopt.init(theta_key, params)
