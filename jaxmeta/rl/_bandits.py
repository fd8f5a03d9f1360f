"""Multi-armed bandits.

References:
  Duan et al., "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
  2016, Section 3.1. https://arxiv.org/abs/1611.02779
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.rl import _env


def bandit(
    num_arms: int = 5,
    *,
    rewards: Literal["gaussian", "bernoulli"] = "gaussian",
    noise: float = 1.0,
    horizon: int = 10,
) -> _env.Environment:
    """Arms with unknown mean rewards; the task is their means, [A].

    The observation is a constant, [1].

    Args:
      num_arms: A. Static.
      rewards: "gaussian": means are standard normal, rewards normal around them;
        "bernoulli": means are uniform in [0, 1], rewards 0 or 1. Static.
      noise: standard deviation of Gaussian rewards.
      horizon: H, pulls per episode. Static.

    Raises:
      ValueError: if a size is not a positive int, `noise` is negative, or `rewards` is
        unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> env, key = bandit(2, noise=0.0), jax.random.key(0)
      >>> means = jnp.array([0.0, 3.0])
      >>> _, state = env.reset(key, means)
      >>> print(env.step(key, state, 1, means)[2])
      3.0
    """
    _checks.check_int("num_arms", num_arms)
    _checks.check_int("horizon", horizon)
    _checks.check_choice("rewards", rewards, ("gaussian", "bernoulli"))
    if noise < 0:
        raise ValueError(f"`noise` must not be negative, got {noise!r}.")

    def reset(key, means):
        del key
        return jnp.ones((1,), means.dtype), ()

    def step(key, state, action, means):
        mean = means[action]
        if rewards == "gaussian":
            reward = mean + noise * jax.random.normal(key, dtype=mean.dtype)
        else:
            reward = jax.random.bernoulli(key, mean).astype(mean.dtype)
        return jnp.ones((1,), means.dtype), state, reward, jnp.zeros((), bool), {}

    def sample_task(key):
        draw = jax.random.normal if rewards == "gaussian" else jax.random.uniform
        return draw(key, (num_arms,))

    return _env.Environment(reset, step, sample_task, _env.Discrete(num_arms), horizon)
