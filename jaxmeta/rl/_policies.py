"""Policies: a model and a distribution over actions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _model, base
from jaxmeta.rl import _env


class Gaussian(NamedTuple):
    """Independent normal actions."""

    mean: jax.Array  # [..., A]
    log_std: jax.Array  # [..., A]


class Categorical(NamedTuple):
    """One of A actions."""

    logits: jax.Array  # [..., A]


class GaussianParams(NamedTuple):
    """Parameters of `gaussian_policy`."""

    mean: base.Params  # the model's
    log_std: jax.Array  # [A]


class Policy(NamedTuple):
    """A distribution over actions for each observation.

    Distributions are pytrees with leaves [..., A]; all but `init` and `apply` are
    functions of them.

    Attributes:
      init: `(key, observations [N, ...]) -> params`.
      apply: `(params, observations [N, ...]) -> distribution`, leaves [N, A].
      sample: `(key, distribution) -> actions [...]` or [..., A].
      log_prob: `(distribution, actions) -> [...]`.
      kl: `(p, q) -> [...]`, the divergence of `q` from `p`, KL(p || q).
      entropy: `(distribution) -> [...]`.
      actions: the class of its action space, `Box` or `Discrete`.
    """

    init: Callable[..., base.Params]
    apply: Callable[[base.Params, base.PyTree], Any]
    sample: Callable[[jax.Array, Any], jax.Array]
    log_prob: Callable[[Any, jax.Array], jax.Array]
    kl: Callable[[Any, Any], jax.Array]
    entropy: Callable[[Any], jax.Array]
    actions: type


def gaussian_policy(
    model: base.ModelLike, *, std: float = 1.0, min_std: float = 1e-6
) -> Policy:
    """Normal actions around a model's outputs, with a learned standard deviation.

    The standard deviation of each action is a parameter, independent of the observation
    (as in rllab and Finn et al. 2017).

    Args:
      model: maps observations [N, ...] to means [N, A].
      std: initial standard deviation.
      min_std: minimum standard deviation.

    Raises:
      ValueError: if a standard deviation is not positive, or `model` lacks `init` or
        `apply`.

    Example:
      >>> import jax.numpy as jnp, jaxmeta as jm
      >>> policy = gaussian_policy(jm.models.MLP([2]))
      >>> p = Gaussian(mean=jnp.zeros(2), log_std=jnp.zeros(2))
      >>> q = Gaussian(mean=jnp.ones(2), log_std=jnp.zeros(2))
      >>> print(policy.kl(p, q))
      1.0

    References:
      Duan et al., "Benchmarking Deep Reinforcement Learning for Continuous Control",
      ICML 2016. https://arxiv.org/abs/1604.06778
    """
    _checks.check_positive("std", std)
    _checks.check_positive("min_std", min_std)
    net = _model.normalize(model)

    def init(key, observations):
        mean = net.init(key, observations)
        outputs = jax.eval_shape(net.apply, mean, observations)
        log_std = jnp.full(outputs.shape[-1:], math.log(std), outputs.dtype)
        return GaussianParams(mean, log_std)

    def apply(params, observations):
        mean = net.apply(params.mean, observations)
        log_std = jnp.maximum(params.log_std, math.log(min_std))
        return Gaussian(mean, jnp.broadcast_to(log_std, mean.shape))

    def sample(key, p):
        noise = jax.random.normal(key, p.mean.shape, p.mean.dtype)
        return p.mean + jnp.exp(p.log_std) * noise

    def log_prob(p, actions):
        z = (actions - p.mean) * jnp.exp(-p.log_std)
        return -jnp.sum(z**2 / 2 + p.log_std + math.log(2 * math.pi) / 2, -1)

    def kl(p, q):
        ratio = jnp.exp(2 * (p.log_std - q.log_std))
        shift = ((p.mean - q.mean) * jnp.exp(-q.log_std)) ** 2
        return jnp.sum((ratio + shift - 1) / 2 + q.log_std - p.log_std, -1)

    def entropy(p):
        return jnp.sum(p.log_std + (1 + math.log(2 * math.pi)) / 2, -1)

    return Policy(init, apply, sample, log_prob, kl, entropy, _env.Box)


def categorical_policy(model: base.ModelLike) -> Policy:
    """One of A actions, with a model's outputs as logits.

    Args:
      model: maps observations [N, ...] to logits [N, A]; -inf forbids an action.

    Raises:
      ValueError: if `model` lacks `init` or `apply`.

    Example:
      >>> import jax.numpy as jnp, jaxmeta as jm
      >>> policy = categorical_policy(jm.models.MLP([4]))
      >>> p = Categorical(jnp.zeros(4))
      >>> print(jnp.exp(policy.log_prob(p, jnp.array(3))))
      0.25
    """
    net = _model.normalize(model)

    def apply(params, observations):
        logits = net.apply(params, observations)
        # Finite logits: 0 * inf in entropies and divergences would be NaN. Min / 4
        # leaves room for differences in the softmax.
        return Categorical(jnp.maximum(logits, jnp.finfo(logits.dtype).min / 4))

    def sample(key, p):
        return jax.random.categorical(key, p.logits).astype(jnp.int32)

    def log_prob(p, actions):
        log_probs = jax.nn.log_softmax(p.logits)
        return jnp.take_along_axis(log_probs, actions[..., None], -1)[..., 0]

    def kl(p, q):
        log_p, log_q = jax.nn.log_softmax(p.logits), jax.nn.log_softmax(q.logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)

    def entropy(p):
        log_p = jax.nn.log_softmax(p.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, -1)

    return Policy(
        lambda key, observations: net.init(key, observations),
        apply,
        sample,
        log_prob,
        kl,
        entropy,
        _env.Discrete,
    )


def check_policy(policy: Policy, env: _env.Environment) -> None:
    """Raises unless `policy` has the action space of `env`."""
    missing = [name for name in Policy._fields if not hasattr(policy, name)]
    if missing:
        raise ValueError(
            f"`policy` must be a `jaxmeta.rl.Policy`, got {type(policy).__name__} "
            f"without {missing}. Wrap a model with `jaxmeta.rl.gaussian_policy` or "
            "`categorical_policy`."
        )
    if not isinstance(env.actions, policy.actions):
        raise ValueError(
            f"`policy` must have the environment's action space, {env.actions}, got "
            f"{policy.actions.__name__}: `gaussian_policy` is for Box, "
            "`categorical_policy` for Discrete."
        )


def check_distribution(distribution: Any, env: _env.Environment) -> None:
    """Raises unless a policy's distribution is over the environment's actions."""
    sizes = {leaf.shape[-1] for leaf in jax.tree.leaves(distribution)}
    if sizes != {env.actions.size}:
        raise ValueError(
            f"`policy` must cover the environment's {env.actions.size} actions, got "
            f"outputs of size {sorted(sizes)}. Change the model's output size."
        )
