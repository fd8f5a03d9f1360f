"""Episodes of a policy in an environment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, base
from jaxmeta.rl import _env, _policies


class Rollout(NamedTuple):
    """B episodes of H time steps; zero after an episode's end."""

    observations: jax.Array  # [B, H, ...], before the action; the last one repeats
    actions: jax.Array  # [B, H] or [B, H, A], as the policy drew them
    distributions: Any  # leaves [B, H, A], which the actions were drawn from
    rewards: jax.Array  # [B, H]
    mask: jax.Array  # [B, H] bool, whether the episode was still running
    clipped: jax.Array  # [] share of time steps with an out-of-range action


def rollout(
    key: jax.Array,
    policy: _policies.Policy,
    params: base.Params,
    env: _env.Environment,
    env_params: _env.EnvParams,
    *,
    num_episodes: int,
) -> Rollout:
    """Draws episodes.

    Actions outside a `Box` are clipped for the environment; the rollout keeps them as
    drawn, so that their probabilities are right, and reports their share.

    Args:
      key: draws resets, actions and steps.
      policy: a `Policy`.
      params: the policy's.
      env: an `Environment`.
      env_params: the task.
      num_episodes: B. Static.

    Raises:
      ValueError: while tracing, if the environment's step changes shapes or dtypes, the
        policy's actions do not match it, or a count is not a positive int.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> env = jm.rl.bandit(2, noise=0.0, horizon=3)
      >>> policy = jm.rl.categorical_policy(jm.models.MLP([2]))
      >>> params = policy.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> means = jnp.array([1.0, 1.0])
      >>> found = rollout(jax.random.key(1), policy, params, env, means, num_episodes=2)
      >>> print(found.rewards)
      [[1. 1. 1.]
       [1. 1. 1.]]
    """
    _checks.check_int("num_episodes", num_episodes)
    _env.check_environment(env)
    _env.check_step(env, env_params)
    _policies.check_policy(policy, env)
    batched_step = jax.vmap(env.step, (0, 0, 0, None))

    def act(carry, key):
        observations, states, mask = carry
        action_key, step_key = jax.random.split(key)
        distributions = policy.apply(params, observations)
        _policies.check_distribution(distributions, env)
        actions = policy.sample(action_key, distributions)
        allowed = actions
        if isinstance(env.actions, _env.Box):
            allowed = jnp.clip(actions, env.actions.low, env.actions.high)
        is_clipped = jnp.any((allowed != actions).reshape(num_episodes, -1), -1)
        step_keys = jax.random.split(step_key, num_episodes)
        after, states, rewards, done, _ = batched_step(
            step_keys, states, allowed, env_params
        )
        made = (observations, actions, distributions, rewards, mask, is_clipped)
        mask = mask & ~done
        # Gradients flow through masked steps too, so repeat the last valid observation
        # instead of one that may be NaN.
        after = jnp.where(
            mask.reshape(-1, *(1,) * (after.ndim - 1)), after, observations
        )
        return (after, states, mask), made

    reset_key, key = jax.random.split(key)
    reset_keys = jax.random.split(reset_key, num_episodes)
    observations, states = jax.vmap(env.reset, (0, None))(reset_keys, env_params)
    start = (observations, states, jnp.ones(num_episodes, bool))
    _, made = jax.lax.scan(act, start, jax.random.split(key, env.horizon))
    made = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)  # [B, H, ...]
    observations, *made, mask, is_clipped = made

    def until_done(x):
        # After its end an environment may return anything, and 0 * inf is NaN.
        shape = mask.shape + (1,) * (x.ndim - 2)
        return jnp.where(mask.reshape(shape), x, jnp.zeros_like(x))

    actions, distributions, rewards = jax.tree.map(until_done, made)
    clipped = jnp.sum(is_clipped & mask) / jnp.sum(mask)
    return Rollout(observations, actions, distributions, rewards, mask, clipped)


def mean_return(rollout: Rollout) -> jax.Array:
    """Returns the mean over episodes of the undiscounted sum of rewards, []."""
    return jnp.mean(jnp.sum(rollout.rewards, -1))
