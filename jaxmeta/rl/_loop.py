"""The inner loop of a policy: sampled once, then replayed as often as gradients ask."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _inner_loop, base
from jaxmeta.rl import (
    _baseline,
    _env,
    _policies,
    _returns,
    _rollout,
    _surrogates,
)

Baseline = Literal["linear"]
AverageOver = Literal["steps", "episodes"]


class Samples(NamedTuple):
    """What was sampled of one task while adapting to it."""

    inner: _surrogates.Batch  # leaves [K, B, H, ...], before each inner step
    outer: _surrogates.Batch  # leaves [B, H, ...], after the last
    skipped: jax.Array  # [] bool, not all finite: everything above is then zero


class AdaptationInfo(NamedTuple):
    """Diagnostics of an adaptation."""

    losses: jax.Array  # [K] inner surrogate before each step
    returns: jax.Array  # [K] mean return before each step
    clipped: jax.Array  # [K] share of actions out of range


class PolicyInfo(NamedTuple):
    """Diagnostics of one meta-gradient."""

    loss: jax.Array  # [] minus the mean return after adaptation
    metrics: dict[str, jax.Array]  # each []: the return after and before adaptation
    adapt: Any
    skipped: jax.Array  # [] bool, left out: something was not finite


class Settings(NamedTuple):
    """What the factories take; see `maml`."""

    inner_tx: optax.GradientTransformation
    inner_steps: int
    num_episodes: int
    test_episodes: int
    surrogate: _surrogates.Surrogate
    sampling_term: float
    first_order: bool
    hvp: _inner_loop.Hvp
    discount: float
    gae_lambda: float
    baseline: Baseline | None
    standardize: bool
    average_over: AverageOver


class PolicyLoop(NamedTuple):
    """An environment, a policy and a way to adapt, tied together.

    Attributes:
      init: `(key, task) -> params`.
      adapt: `(key, params, task) -> (params, AdaptationInfo)`.
      returns: `(key, params, task, inner_steps) -> [K + 1]`, mean returns of the test
        episodes after 0 ... K inner steps.
      collect: `(key, params, task) -> (Samples, AdaptationInfo, (mean return, share of
        clipped actions))`, the last two of the outer episodes.
      loss: `(params, samples, clip=None, kl_penalty=0) -> (loss, inner KL)`, the outer
        surrogate after `replay`.
      kl: `(params, samples) -> scalar`, of the adapted policy from the one that drew
        the outer episodes.
      kl_hessian: `(params, samples, vector) -> vector`, the product with its Hessian
        where the two policies are the same.
      predict: `(params, observations) -> distribution`.
      policy: whose loop it is.
    """

    init: Callable[..., base.Params]
    adapt: Callable[..., Any]
    returns: Callable[..., jax.Array]
    collect: Callable[..., Any]
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    kl: Callable[..., jax.Array]
    kl_hessian: Callable[..., base.Params]
    predict: Callable[..., Any]
    policy: _policies.Policy


def policy_loop(
    env: _env.Environment, policy: _policies.Policy, settings: Settings
) -> PolicyLoop:
    """Checks what users gave, and ties it together."""
    check_settings(settings)
    _env.check_environment(env)
    _policies.check_policy(policy, env)
    inner_tx = optax.with_extra_args_support(settings.inner_tx)

    def init(key, task):
        _env.check_step(env, task)
        reset_key, init_key = jax.random.split(key)
        observation, _ = env.reset(reset_key, task)
        return policy.init(init_key, observation[None])

    def gather(key, params, task, num_episodes):
        """Returns a batch, its mean return and its share of clipped actions."""
        found = _rollout.rollout(
            key, policy, params, env, task, num_episodes=num_episodes
        )
        values = jnp.zeros_like(found.rewards)
        if settings.baseline is not None:
            values = _baseline.linear_baseline(found, discount=settings.discount)
        advantages = _returns.generalized_advantages(
            found.rewards,
            values,
            discount=settings.discount,
            gae_lambda=settings.gae_lambda,
        )
        advantages = jnp.where(found.mask, advantages, 0)
        if settings.standardize:
            advantages = _returns.standardize(advantages, values, found.mask)
        log_probs = policy.log_prob(found.distributions, found.actions)
        batch = _surrogates.Batch(
            observations=found.observations,
            actions=found.actions,
            distributions=found.distributions,
            log_probs=jnp.where(found.mask, log_probs, 0),
            rewards=found.rewards,
            values=values,
            advantages=advantages,
            mask=found.mask,
        )
        return batch, (_rollout.mean_return(found), found.clipped)

    def replayed(params, batch):
        """Distributions and log-probabilities [B, H] under `params`."""
        flat = batch.observations.reshape(-1, *batch.observations.shape[2:])
        distributions = jax.tree.map(
            lambda x: x.reshape(*batch.mask.shape, *x.shape[1:]),
            policy.apply(params, flat),
        )
        log_probs = policy.log_prob(distributions, batch.actions)
        return distributions, jnp.where(batch.mask, log_probs, 0)

    def average(terms, batch):
        """Sums terms [B, H]; divides by the time steps or by the episodes."""
        counts = jnp.sum(batch.mask) if over_steps else batch.mask.shape[0]
        return jnp.sum(jnp.where(batch.mask, terms, 0)) / jnp.maximum(counts, 1)

    over_steps = settings.average_over == "steps"

    def inner_loss(params, batch):
        _, log_probs = replayed(params, batch)
        terms = _surrogates.objective(
            settings.surrogate, log_probs, batch, discount=settings.discount
        )
        return -average(terms, batch)

    def explore(key, params, task, inner_steps, num_episodes, keep):
        def inner_step(carry, key):
            params, inner_state = carry
            batch, (returns, clipped) = gather(key, params, task, num_episodes)
            loss, grads = jax.value_and_grad(inner_loss)(params, batch)
            updates, inner_state = inner_tx.update(
                grads, inner_state, params, value=loss
            )
            params = optax.apply_updates(params, updates)
            kept = batch if keep else None
            return (params, inner_state), (kept, AdaptationInfo(loss, returns, clipped))

        _checks.check_params(params)
        carry = (params, inner_tx.init(params))
        keys = jax.random.split(key, inner_steps)
        (params, _), (batches, info) = jax.lax.scan(inner_step, carry, keys)
        return params, batches, info

    def adapt(key, params, task):
        steps, episodes = settings.inner_steps, settings.num_episodes
        params, _, info = explore(key, params, task, steps, episodes, keep=False)
        return params, info

    def returns(key, params, task, inner_steps):
        # An inner step's episodes are of the policy before it, and fresh.
        inner_key, last_key = jax.random.split(key)
        episodes = settings.test_episodes
        params, _, info = explore(
            inner_key, params, task, inner_steps, episodes, keep=False
        )
        _, (last, _) = gather(last_key, params, task, episodes)
        return jnp.append(info.returns, last)

    def collect(key, params, task):
        inner_key, outer_key = jax.random.split(key)
        episodes = settings.num_episodes
        params, inner, info = explore(
            inner_key, params, task, settings.inner_steps, episodes, keep=True
        )
        outer, last = gather(outer_key, params, task, episodes)
        is_finite = all_finite((inner, outer))
        zero = lambda x: jnp.where(is_finite, x, jnp.zeros_like(x))
        # Zeros, so that what is differentiated is finite for every task.
        inner, outer = jax.tree.map(zero, (inner, outer))
        samples = Samples(inner, outer, skipped=~is_finite)
        return jax.lax.stop_gradient(samples), info, last

    def replay(params, samples, hvp: _inner_loop.Hvp = settings.hvp):
        def support_loss(params, key, batches, step):
            del key
            return inner_loss(params, jax.tree.map(lambda x: x[step], batches))

        def probe(params, step):
            """Log-probability ratio and KL of a batch's policy from its sampler."""
            batch = jax.tree.map(
                lambda x: x[step % settings.inner_steps], samples.inner
            )
            distributions, log_probs = replayed(params, batch)
            kl = policy.kl(batch.distributions, distributions)
            ratio = jnp.sum(log_probs - batch.log_probs)
            return ratio, masked_mean(kl, batch.mask)

        run = _inner_loop.unroll(
            support_loss,
            inner_tx,
            first_order=settings.first_order,
            hvp=hvp,
        )
        result = run(
            jax.random.key(0), params, samples.inner, settings.inner_steps, probe
        )
        return result.params, jax.tree.map(lambda x: x[:-1], result.probed)

    def loss(params, samples, clip=None, kl_penalty=0.0):
        task_params, (inner_ratios, inner_kl) = replay(params, samples)
        batch = samples.outer
        _, log_probs = replayed(task_params, batch)
        weights = _surrogates.discounts(settings.surrogate, settings.discount, batch)
        terms = weights * _surrogates.clipped_ratio(log_probs, batch, clip)
        value = -average(terms, batch)
        if settings.sampling_term:
            returns = _returns.discounted_sums(batch.rewards, settings.discount)
            first = jnp.pad(returns[:, :1], ((0, 0), (0, returns.shape[1] - 1)))
            gain = average(first, batch)
            # Linear: an exponential of so many ratios would not stay finite.
            value -= settings.sampling_term * jnp.sum(inner_ratios) * gain
        kl = jnp.mean(inner_kl)
        return value + kl_penalty * kl, kl

    def kl(params, samples):
        task_params, _ = replay(params, samples)
        distributions, _ = replayed(task_params, samples.outer)
        return mean_kl(distributions, samples)

    def mean_kl(distributions, samples):
        found = policy.kl(samples.outer.distributions, distributions)
        return masked_mean(found, samples.outer.mask)

    def kl_hessian(params, samples, vector):
        # Gauss and Newton's product is the Hessian's where the divergence has its
        # minimum: there its slope in the distributions is zero.
        def distributions(params):
            task_params, _ = replay(params, samples, hvp="reverse-over-reverse")
            return replayed(task_params, samples.outer)[0]

        outputs, push = jax.linearize(distributions, params)
        slope = jax.grad(lambda outputs: mean_kl(outputs, samples))
        _, curved = jax.jvp(slope, (outputs,), (push(vector),))
        (product,) = jax.linear_transpose(push, params)(curved)
        return product

    return PolicyLoop(
        init, adapt, returns, collect, loss, kl, kl_hessian, policy.apply, policy
    )


def check_settings(settings: Settings) -> None:
    """Raises unless every setting is one that can be."""
    for name in ("inner_steps", "num_episodes", "test_episodes"):
        _checks.check_int(name, getattr(settings, name))
    _checks.check_plain_transformation("inner_tx", settings.inner_tx)
    _checks.check_choice("surrogate", settings.surrogate, _surrogates.SURROGATES)
    _checks.check_choice("hvp", settings.hvp, _inner_loop.HVP_MODES)
    _checks.check_choice("baseline", settings.baseline, (None, *get_args(Baseline)))
    _checks.check_choice("average_over", settings.average_over, get_args(AverageOver))
    _checks.check_not_negative("sampling_term", settings.sampling_term)
    for name in ("discount", "gae_lambda"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value!r}.")


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values` where `mask` is set, zero if nowhere."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def all_finite(tree: Any) -> jax.Array:
    """Whether every float in the tree is finite, []."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
