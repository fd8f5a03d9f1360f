"""Imitation of an analytic optimizer.

References:
  Chen et al., "Training stronger baselines for learning to optimize", NeurIPS 2020,
  Section 3.2. https://arxiv.org/abs/2010.09089
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmeta import _checks, base
from jaxmeta.estimators import _over_runs, _runs


class ImitationCarry(NamedTuple):
    """Runs of the teacher, and its states."""

    runs: _runs.Run  # with the learned optimizer's state along the teacher's path
    teacher_state: Any


def imitation(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    teacher: optax.GradientTransformation,
    *,
    unroll: int,
    horizon: _runs.Horizon,
    num_problems: int,
    mesh: Mesh | None = None,
) -> base.GradientEstimator:
    r"""Trains a learned optimizer to imitate the updates of another optimizer.

    Along the teacher's runs, the learned optimizer sees the same gradients, and its
    updates :math:`g_t` are compared with the teacher's :math:`\hat g_t`:

    .. math::
      \sum_t \tfrac12 \operatorname{mean}_k (g_{t,k} - \hat g_{t,k})^2

    The mean is over all parameters k. The path does not depend on the learned
    optimizer, so training is stable for runs of any length. Combine it with training on
    the loss itself: see `jaxmeta.training.alternate`.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems.
      teacher: the optimizer to imitate, e.g. `optax.adam(0.01)`.
      unroll: updates per meta-step, through which the derivative is taken. Static.
      horizon: as for `truncated_bptt`.
      num_problems: parallel runs. Static.
      mesh: as for `bptt`.

    Returns:
      A `GradientEstimator` with the runs as carry. Its info has the problem's mean loss
      along the teacher's truncation.

    Raises:
      ValueError: as `truncated_bptt`.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> lopt = jm.optimizers.lstm(4)
      >>> estimator = imitation(lopt, jm.problems.quadratics(dim=2), optax.adam(0.01),
      ...                       unroll=5, horizon=10, num_problems=3)
      >>> init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> info.loss.shape
      (3,)
    """
    _runs.check_arguments(lopt, num_problems, unroll, horizon, mesh)
    if not hasattr(teacher, "update"):
        raise ValueError(
            f"`teacher` must be an optax transformation such as `optax.adam(0.01)`, "
            f"got {teacher!r}."
        )
    teacher = optax.with_extra_args_support(teacher)

    def start(key, theta, problem, meta_step, drawn=None):
        more = unroll, meta_step, drawn
        run = _runs.start(key, theta, lopt, problem, horizon, *more)
        return ImitationCarry(run, teacher.init(run.params))

    def truncation_loss(theta, problem, meta_step, key, carry):
        carry, start_key, drawn = carry
        fresh = start(start_key, theta, problem, meta_step, drawn)
        is_over = carry.runs.step >= carry.runs.horizon
        run, teacher_state = optax.tree.where(is_over, fresh, carry)
        tx = _runs.told_horizon(lopt.transform(theta), run.horizon)

        def scalar_loss(params, key):
            value = problem.loss(params, run.instance, key)
            _checks.check_scalar_loss("problem.loss", value)
            return value

        def step(state, step_key):
            params, opt_state, teacher_state = state
            value, grads = jax.value_and_grad(scalar_loss)(params, step_key)
            updates, opt_state = tx.update(grads, opt_state, params, value=value)
            expected, teacher_state = teacher.update(
                grads, teacher_state, params, value=value
            )
            count = sum(x.size for x in jax.tree.leaves(params))
            error = optax.tree.norm(optax.tree.sub(updates, expected), squared=True)
            params = optax.apply_updates(params, expected)
            return (params, opt_state, teacher_state), (value, 0.5 * error / count)

        keys = jax.random.split(key, unroll)
        # The backward pass recomputes each step from its inputs.
        step = jax.checkpoint(step, prevent_cse=False)
        state = (run.params, run.opt_state, teacher_state)
        state, (values, imitation_losses) = jax.lax.scan(step, state, keys)
        params, opt_state, teacher_state = state
        run = run._replace(params=params, opt_state=opt_state)
        run = _runs.after_updates(run, values, unroll)
        info = _runs.run_info(values, jnp.mean(imitation_losses))
        return jnp.sum(imitation_losses), (ImitationCarry(run, teacher_state), info)

    def init(key):
        theta_key, run_key = jax.random.split(key)
        theta = _runs.init_theta(theta_key, lopt, problem)
        make = lambda key: start(key, theta, problem, 0)
        runs = jax.vmap(make)(jax.random.split(run_key, num_problems))
        return _over_runs.place(theta, runs, mesh)

    one_run = jax.grad(truncation_loss, has_aux=True)
    args = one_run, init, problem, num_problems, mesh
    return _over_runs.over_runs(*args, runs_of=lambda carry: carry.runs)
