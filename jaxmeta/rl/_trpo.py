"""The longest outer step that keeps adapted policies within a trust region.

References:
  Schulman et al., "Trust Region Policy Optimization", ICML 2015, Appendix C.
  https://arxiv.org/abs/1502.05477
  Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
  Networks", ICML 2017, Section 5.3. https://arxiv.org/abs/1703.03400
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxmeta import _checks, _dtypes, _pytrees, base
from jaxmeta.rl import _batch, _maml


class TrpoInfo(NamedTuple):
    """Diagnostics of one outer update; leaves of the first four [T]."""

    loss: jax.Array  # minus the mean return after adaptation
    metrics: Any
    adapt: Any
    is_valid: jax.Array  # bool; if not, excluded from gradient, curvature and search
    accepted: jax.Array  # [] bool; if not, the line search failed and nothing changed
    kl: jax.Array  # [] of the adapted policies after the update from those before
    improvement: jax.Array  # [] of the surrogate return
    shrinks: jax.Array  # [] int32, how often the step was shortened


def trpo(
    learner: _maml.PolicyLearner,
    sample_task: base.SampleTask,
    *,
    num_tasks: int,
    max_kl: float = 0.01,
    cg_steps: int = 10,
    damping: float = 1e-5,
    max_shrinks: int = 15,
    shrink: float = 0.8,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> base.TrainStep:
    r"""Follows the natural meta-gradient as far as a trust region allows.

    With the surrogate loss :math:`L` and the mean KL divergence :math:`D` of the
    adapted policies from those that drew the episodes, both functions of the initial
    parameters through the inner steps,

    .. math::
      F = \nabla^2 D + \kappa I, \qquad s = F^{-1} \nabla L, \qquad
      \theta' = \theta - \beta^j \sqrt{2 \delta / s^\top F s} \; s

    for the first :math:`j` at which L decreased and :math:`D \le \delta`. The linear
    system is solved by conjugate gradients with Hessian-vector products, which are
    Gauss-Newton products where the divergence is zero: one derivative of the adaptation
    less.

    Args:
      learner: from `jaxmeta.rl.maml`.
      sample_task: `(key) -> task`, the environment's.
      num_tasks: T, tasks per step. Static.
      max_kl: delta.
      cg_steps: conjugate-gradient steps, one Hessian-vector product each. Static.
      damping: kappa.
      max_shrinks: how often the step is shortened before giving up. Static.
      shrink: beta.
      tasks_per_chunk: as in `jaxmeta.estimators.over_tasks`. Static.
      mesh: likewise.

    Returns:
      `(init, step)`, like `jaxmeta.training.make_train_step`.

    Raises:
      ValueError: if `learner` is not a policy learner, a count is not a positive int, a
        number is out of range, or devices and chunks do not divide the tasks.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> env = jm.rl.bandit(2, horizon=3)
      >>> learner = jm.rl.maml(env, jm.rl.categorical_policy(jm.models.MLP([2])),
      ...                      inner_tx=optax.sgd(1.0), num_episodes=4)
      >>> init, step = trpo(learner, env.sample_task, num_tasks=3, max_kl=0.01)
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> bool(info.kl <= 0.01)
      True
    """
    for name, value in {"cg_steps": cg_steps, "max_shrinks": max_shrinks}.items():
        _checks.check_int(name, value)
    for name, value in {"max_kl": max_kl, "damping": damping}.items():
        _checks.check_positive(name, value)
    if not 0 < shrink < 1:
        raise ValueError(f"`shrink` must be between 0 and 1, got {shrink!r}.")
    sampler = _pytrees.as_partial(sample_task)
    batch = _batch.task_batch(
        learner,
        sampler,
        num_tasks=num_tasks,
        tasks_per_chunk=tasks_per_chunk,
        mesh=mesh,
    )
    loop = learner.loop

    def step(sampler, state, **extra):
        del extra
        next_key, step_key = jax.random.split(state.key)
        meta_params = state.meta_params
        samples, info = batch.collect(sampler, step_key, meta_params)
        loss_and_grad = jax.value_and_grad(lambda *args: loop.loss(*args)[0])
        (before, grads), is_valid = batch.mean(loss_and_grad, meta_params, samples)
        samples = samples._replace(is_valid=is_valid)
        info = info._replace(is_valid=is_valid)

        def curvature(vector):
            """(nabla^2 D + kappa I) v."""
            narrow = jax.tree.map(lambda v, p: v.astype(p.dtype), vector, meta_params)
            of_task = lambda both, samples: loop.kl_hessian(both[0], samples, both[1])
            product, _ = batch.mean(of_task, (meta_params, narrow), samples)
            return optax.tree.add_scale(_dtypes.widen(product), damping, vector)

        def evaluate(params):
            of_task = lambda *args: (loop.loss(*args)[0], loop.kl(*args))
            (after, kl), _ = batch.mean(of_task, params, samples, exclude=False)
            return (kl <= max_kl) & (after < before), before - after, kl

        grads = _dtypes.widen(grads)  # Conjugate gradients require the precision.
        # tol=1e-10: all `cg_steps` are made, unless the residual vanishes.
        solution, _ = jax.scipy.sparse.linalg.cg(
            curvature, grads, maxiter=cg_steps, tol=1e-10
        )
        length = jnp.asarray(optax.tree.vdot(solution, curvature(solution)))
        # s^T F s <= 0 only by rounding or with a zero gradient: then make no step.
        is_down = length > 0
        scale = jnp.sqrt(2 * max_kl / jnp.where(is_down, length, 1))
        direction = optax.tree.scale(jnp.where(is_down, scale, 0), solution)
        found = _line_search(evaluate, meta_params, direction, shrink, max_shrinks)
        params, *found = found
        state = state._replace(step=state.step + 1, meta_params=params, key=next_key)
        return state, TrpoInfo(*info, *found)

    return base.TrainStep(batch.init, Partial(step, sampler))


def _line_search(evaluate, params, direction, shrink, max_shrinks):
    """Shortens the step until it is accepted.

    Args:
      evaluate: `(params) -> (is_good, improvement, kl)`.
      params: the initial parameters.
      direction: s; the j-th candidate is params - shrink^j s.
      shrink: beta.
      max_shrinks: the largest j.

    Returns:
      The new parameters, the old ones if none is accepted; whether one is; its KL
      divergence and improvement, zero if not; and j.
    """

    def candidate(shrinks):
        size = shrink**shrinks
        return jax.tree.map(
            lambda p, s: (p - size * s).astype(p.dtype), params, direction
        )

    def attempt(state):
        shrinks, *_ = state
        return shrinks + 1, *evaluate(candidate(shrinks + 1))

    _, improvement, kl = jax.eval_shape(evaluate, params)
    # From -1, so that the first attempt is j = 0, the full step.
    start = (
        jnp.full((), -1, jnp.int32),
        jnp.zeros((), bool),
        jnp.zeros((), improvement.dtype),
        jnp.zeros((), kl.dtype),
    )
    shrinks, accepted, improvement, kl = jax.lax.while_loop(
        lambda state: ~state[1] & (state[0] < max_shrinks), attempt, start
    )
    kept = lambda x: jnp.where(accepted, x, jnp.zeros_like(x))
    params = jax.tree.map(
        lambda p, c: jnp.where(accepted, c, p), params, candidate(shrinks)
    )
    return params, accepted, kept(kl), kept(improvement), shrinks
