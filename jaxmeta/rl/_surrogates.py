"""Surrogate objectives with the policy gradient, and with documented Hessian bias.

All have the same gradient (in expectation); they differ in its derivative, from which
the meta-gradient is built.

References:
  Foerster et al., "DiCE: The Infinitely Differentiable Monte Carlo Estimator", ICML
  2018. https://arxiv.org/abs/1802.05098
  Farquhar, Whiteson, Foerster, "Loaded DiCE", NeurIPS 2019.
  https://arxiv.org/abs/1909.10549
  Rothfuss et al., "ProMP: Proximal Meta-Policy Search", ICLR 2019.
  https://arxiv.org/abs/1810.06784
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

Surrogate = Literal["loaded-dice", "dice", "low-variance", "log-likelihood"]
SURROGATES: tuple[Surrogate, ...] = get_args(Surrogate)


class Batch(NamedTuple):
    """Data of B episodes for policy gradients; zero after an episode's end."""

    observations: jax.Array  # [B, H, ...], the last one repeated after the end
    actions: jax.Array  # [B, H] or [B, H, A]
    distributions: Any  # leaves [B, H, A], which the actions were drawn from
    log_probs: jax.Array  # [B, H], of the actions under these distributions
    rewards: jax.Array  # [B, H]
    values: jax.Array  # [B, H], of the baseline
    advantages: jax.Array  # [B, H]
    mask: jax.Array  # [B, H] bool


def objective(
    surrogate: Surrogate, log_probs: jax.Array, batch: Batch, *, discount: float
) -> jax.Array:
    r"""Returns the contribution of each time step to a surrogate return, [B, H].

    With :math:`\operatorname{magic}(x) = e^{x - \bot x}`, which is 1 and has the
    derivatives of :math:`e^x`, and :math:`W_t = \sum_{u \le t} \log \pi_u`.
    :math:`\bot` fixes the probabilities at sampling, so that after an outer step
    these are importance ratios, and their gradients are still correct:

    - "dice": :math:`\gamma^t (\operatorname{magic}(W_t) r_t + (1 -
      \operatorname{magic}(\log \pi_t)) V_t)`. Unbiased for derivatives of every order;
      the baseline reduces the variance of only the first.
    - "loaded-dice": :math:`\gamma^t (\operatorname{magic}(W_t) -
      \operatorname{magic}(W_{t-1})) A_t`. The same with advantages, which reduce the
      variance of all orders. Unbiased if they are, i.e. with `gae_lambda=1`.
    - "low-variance": :math:`A_t \pi_t / \bot \pi_t`. Its Hessian omits the products
      over different time steps,
      :math:`\mathbb{E} \sum_{u < t} (\nabla \log \pi_u \nabla^\top Q_t + \ldots)`
      (H12 and its transpose in Rothfuss et al., Theorem 1): biased except at horizon 1,
      with less variance. No :math:`\gamma^t`.
    - "log-likelihood": :math:`A_t \log \pi_t`, the original of Finn et al. 2017. Its
      Hessian omits all products of scores: biased. No :math:`\gamma^t`.

    Args:
      surrogate: the kind.
      log_probs: log-probabilities of the actions, [B, H], to differentiate; zero after
        the end of an episode.
      batch: the episodes.
      discount: gamma.
    """
    if surrogate == "log-likelihood":
        return log_probs * batch.advantages
    # log pi_t - log bot pi_t; not `stop_gradient`, since they differ after an outer
    # step.
    ratios = log_probs - batch.log_probs
    if surrogate == "low-variance":
        return jnp.exp(ratios) * batch.advantages
    fade = discounts(surrogate, discount, batch)
    until_now = jnp.cumsum(ratios, axis=1)
    if surrogate == "dice":
        control = (1 - jnp.exp(ratios)) * batch.values
        return fade * (jnp.exp(until_now) * batch.rewards + control)
    before = until_now - ratios  # W_{t-1}
    return fade * (jnp.exp(until_now) - jnp.exp(before)) * batch.advantages


def discounts(surrogate: Surrogate, discount: float, batch: Batch) -> jax.Array:
    r"""Returns the weights of the time steps, [1, H].

    They are :math:`\gamma^t` for DiCE, which estimates the discounted return, and 1 for
    the others, which omit it like most policy gradients.
    """
    times = jnp.arange(batch.rewards.shape[1], dtype=batch.rewards.dtype)[None]
    return discount**times if "dice" in surrogate else jnp.ones_like(times)


def clipped_ratio(log_probs: jax.Array, batch: Batch, clip: float | None) -> jax.Array:
    r"""Returns PPO's clipped objective, [B, H]; without `clip`, :math:`\rho_t A_t`.

    .. math::
      \min(\rho_t A_t, \operatorname{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon) A_t),
      \qquad \rho_t = \pi(a_t \mid s_t) / \pi_{\text{old}}(a_t \mid s_t)

    References:
      Schulman et al., "Proximal Policy Optimization Algorithms", 2017, Equation 7.
      https://arxiv.org/abs/1707.06347
    """
    ratio = jnp.exp(log_probs - batch.log_probs)
    plain = ratio * batch.advantages
    if clip is None:
        return plain
    return jnp.minimum(plain, jnp.clip(ratio, 1 - clip, 1 + clip) * batch.advantages)
