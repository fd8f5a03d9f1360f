"""Value baselines by least squares.

References:
  Duan et al., "Benchmarking Deep Reinforcement Learning for Continuous Control", ICML
  2016, Appendix. https://arxiv.org/abs/1604.06778
"""

import jax
import jax.numpy as jnp

from jaxmeta.rl import _returns
from jaxmeta.rl._rollout import Rollout


def linear_baseline(
    rollout: Rollout, *, discount: float, ridge: float = 1e-5
) -> jax.Array:
    r"""Fits values to the returns of episodes; returns their values, [B, H].

    The features of a time step are

    .. math::
      \phi = (o, o^2, t/100, (t/100)^2, (t/100)^3, 1),

    and the weights solve :math:`(\Phi^\top \Phi + \rho D) w = \Phi^\top R` for the
    discounted returns R, with D the diagonal of :math:`\Phi^\top \Phi`. For one task's
    episodes under one policy: refit it for new ones.

    Args:
      rollout: the episodes.
      discount: discount of the returns.
      ridge: rho. rllab uses the identity for D, which single precision would lose.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> env = jm.rl.bandit(2, noise=0.0, horizon=2)
      >>> policy = jm.rl.categorical_policy(jm.models.MLP([2]))
      >>> params = policy.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> found = jm.rl.rollout(jax.random.key(1), policy, params, env, jnp.ones(2),
      ...                       num_episodes=1)
      >>> print(linear_baseline(found, discount=1.0).round(2))
      [[2. 1.]]
    """
    num_episodes, horizon = rollout.rewards.shape
    # A Gram matrix needs full precision, and LAPACK has no half precision.
    dtype = jnp.promote_types(rollout.rewards.dtype, jnp.float32)
    targets = _returns.discounted_sums(rollout.rewards.astype(dtype), discount)
    observations = rollout.observations.reshape(num_episodes, horizon, -1)
    observations = jnp.clip(observations.astype(dtype), -10, 10)  # As in rllab.
    t = jnp.arange(horizon, dtype=dtype) / 100
    times = jnp.stack([t, t**2, t**3, jnp.ones_like(t)], -1)  # [H, 4]
    times = jnp.broadcast_to(times[None], (num_episodes, horizon, 4))
    features = jnp.concatenate([observations, observations**2, times], -1)
    features = features * rollout.mask[..., None]

    flat = features.reshape(-1, features.shape[-1])  # [B H, F]
    gram, moments = flat.T @ flat, flat.T @ targets.reshape(-1)
    # Solve for features of unit norm: else the ridge would be smaller than the rounding
    # error of the largest feature.
    scale = jnp.sqrt(jnp.diagonal(gram))
    scale = jnp.where(scale > 0, scale, 1)
    correlations = gram / (scale[:, None] * scale[None]) + ridge * jnp.eye(
        len(gram), dtype=dtype
    )
    weights = jax.scipy.linalg.solve(correlations, moments / scale, assume_a="pos")
    return (features @ (weights / scale)).astype(rollout.rewards.dtype)
