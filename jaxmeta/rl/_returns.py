"""Returns and advantages."""

import jax
import jax.numpy as jnp


def discounted_sums(rewards: jax.Array, discount: float) -> jax.Array:
    r"""Returns :math:`\sum_{k \ge 0} \gamma^k r_{t+k}` for rewards [B, H].

    Example:
      >>> import jax.numpy as jnp
      >>> print(discounted_sums(jnp.array([[1.0, 2.0, 4.0]]), 0.5))
      [[3. 4. 4.]]
    """

    def back(following, reward):
        total = reward + discount * following
        return total, total

    zeros = jnp.zeros_like(rewards[:, 0])
    _, sums = jax.lax.scan(back, zeros, rewards.T, reverse=True)
    return sums.T


def generalized_advantages(
    rewards: jax.Array, values: jax.Array, *, discount: float, gae_lambda: float
) -> jax.Array:
    r"""Returns generalised advantage estimates [B, H].

    .. math::
      A_t = \sum_{k \ge 0} (\gamma \lambda)^k \delta_{t+k}, \qquad
      \delta_t = r_t + \gamma V_{t+1} - V_t.

    Args:
      rewards: [B, H], zero after the end of an episode.
      values: V, [B, H], zero after the end. It is also 0 after the last time step: the
        horizon ends an episode, as in rllab.
      discount: gamma.
      gae_lambda: lambda. 1: discounted returns minus values; 0: one-step errors.

    Example:
      >>> import jax.numpy as jnp
      >>> rewards, values = jnp.array([[1.0, 1.0]]), jnp.array([[3.0, 1.0]])
      >>> print(generalized_advantages(rewards, values, discount=1.0, gae_lambda=1.0))
      [[-1.  0.]]

    References:
      Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
      Estimation", ICLR 2016, Equation 16. https://arxiv.org/abs/1506.02438
    """
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))  # V_{t+1}, 0 at the end
    errors = rewards + discount * following - values
    return discounted_sums(errors, discount * gae_lambda)


def standardize(advantages: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Shifts and scales advantages [B, H] to mean 0 and variance 1 where `mask` is set.

    If they differ only by the rounding error of the returns (advantages plus `values`),
    they count as equal and become 0.

    Example:
      >>> import jax.numpy as jnp
      >>> mask = jnp.array([[True, True, False]])
      >>> print(standardize(jnp.array([[1.0, 3.0, 9.0]]), jnp.zeros((1, 3)), mask))
      [[-1.  1.  0.]]
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(advantages * mask) / count
    centred = jnp.where(mask, advantages - mean, 0)
    deviation = jnp.sqrt(jnp.sum(centred**2) / count)
    largest = jnp.max(jnp.abs(jnp.where(mask, advantages + values, 0)))
    # 16 eps: a margin for rounding errors. The inner `where` avoids 0 / 0.
    is_signal = deviation > 16 * jnp.finfo(advantages.dtype).eps * largest
    return jnp.where(is_signal, centred / jnp.where(is_signal, deviation, 1), 0)
