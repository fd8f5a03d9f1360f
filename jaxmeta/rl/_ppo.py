"""Several clipped outer steps on the same episodes.

References:
  Schulman et al., "Proximal Policy Optimization Algorithms", 2017.
  https://arxiv.org/abs/1707.06347
  Rothfuss et al., "ProMP: Proximal Meta-Policy Search", ICLR 2019, Algorithm 1.
  https://arxiv.org/abs/1810.06784
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxmeta import _checks, _pytrees, base
from jaxmeta.rl import _batch, _maml


class PpoInfo(NamedTuple):
    """Diagnostics of one outer update; leaves of the first four [T]."""

    loss: jax.Array  # minus the mean return after adaptation
    metrics: Any
    adapt: Any
    is_valid: jax.Array  # bool; if not, excluded in at least one epoch
    surrogates: jax.Array  # [epochs], the objective before each epoch
    inner_kls: jax.Array  # [epochs], of the inner policies from the sampling ones


def ppo(
    learner: _maml.PolicyLearner,
    sample_task: base.SampleTask,
    *,
    num_tasks: int,
    outer_tx: optax.GradientTransformation,
    num_epochs: int = 5,
    clip: float = 0.3,
    kl_penalty: float = 0.0,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> base.TrainStep:
    r"""Updates several times on the episodes of one batch of tasks.

    Every epoch repeats the inner steps on the same episodes and follows the gradient,
    with respect to the initial parameters, of the clipped surrogate

    .. math::
      -\mathbb{E}_t \min(\rho_t A_t,
        \operatorname{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon) A_t)
      + \eta \operatorname{KL}(\pi_{\text{old}} \,\|\, \pi_{\theta}),

    with the KL divergence of the policies *before* adaptation from those that drew the
    inner episodes. With `surrogate="low-variance"` this is ProMP.

    Args:
      learner: from `jaxmeta.rl.maml`.
      sample_task: `(key) -> task`, the environment's.
      num_tasks: T, tasks per step. Static.
      outer_tx: the update of an epoch, `optax.adam(1e-3)` in ProMP.
      num_epochs: updates on the same episodes. Static.
      clip: epsilon.
      kl_penalty: eta; ProMP starts with 5e-4.
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
      >>> init, step = ppo(learner, env.sample_task, num_tasks=3, num_epochs=2,
      ...                  outer_tx=optax.adam(1e-2))
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> info.surrogates.shape
      (2,)
    """
    _checks.check_int("num_epochs", num_epochs)
    _checks.check_positive("clip", clip)
    _checks.check_not_negative("kl_penalty", kl_penalty)
    _checks.check_plain_transformation("outer_tx", outer_tx)
    sampler = _pytrees.as_partial(sample_task)
    batch = _batch.task_batch(
        learner,
        sampler,
        num_tasks=num_tasks,
        tasks_per_chunk=tasks_per_chunk,
        mesh=mesh,
    )

    def of_task(params, samples):
        objective = jax.value_and_grad(learner.loop.loss, has_aux=True)
        (value, inner_kl), grads = objective(params, samples, clip, kl_penalty)
        return grads, value, inner_kl

    def step(sampler, state, **extra):
        del extra
        next_key, step_key = jax.random.split(state.key)
        samples, info = batch.collect(sampler, step_key, state.meta_params)

        def epoch(carry, _):
            params, opt_state = carry
            found, is_valid = batch.mean(of_task, params, samples)
            grads, value, inner_kl = found
            grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
            updates, opt_state = outer_tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), (is_valid, value, inner_kl)

        start = (state.meta_params, state.opt_state)
        (params, opt_state), (is_valid, *found) = jax.lax.scan(
            epoch, start, length=num_epochs
        )
        info = info._replace(is_valid=jnp.all(is_valid, 0))
        state = state._replace(
            step=state.step + 1, meta_params=params, opt_state=opt_state, key=next_key
        )
        return state, PpoInfo(*info, *found)

    init = lambda key: batch.init(key, outer_tx)
    return base.TrainStep(init, Partial(step, sampler))
