"""The inner loop of a policy: sampled once, then replayed for each differentiation."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _messages, _unroll, base
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
    """Episodes sampled while adapting to one task."""

    inner: _surrogates.Batch  # leaves [K, B, H, ...], before each inner step
    outer: _surrogates.Batch  # leaves [B, H, ...], after the last
    is_valid: jax.Array  # [] bool, all finite; if not, all of the above is zero


class AdaptationInfo(NamedTuple):
    """Diagnostics of an adaptation."""

    losses: jax.Array  # [K] inner surrogate before each step
    returns: jax.Array  # [K] mean return before each step
    clipped: jax.Array  # [K] share of out-of-range actions


class PolicyInfo(NamedTuple):
    """Diagnostics of one meta-gradient."""

    loss: jax.Array  # [] minus the mean return after adaptation
    metrics: dict[str, jax.Array]  # each []: the return after and before adaptation
    adapt: Any
    is_valid: jax.Array  # [] bool; if not, excluded because of non-finite values


class Settings(NamedTuple):
    """Settings of the factories; see `maml`."""

    inner_tx: optax.GradientTransformation
    inner_steps: int
    num_episodes: int
    test_episodes: int
    surrogate: _surrogates.Surrogate
    sampling_term: float
    first_order: bool
    hvp: _unroll.Hvp
    discount: float
    gae_lambda: float
    baseline: Baseline | None
    standardize: bool
    average_over: AverageOver


class PolicyLoop(NamedTuple):
    """An environment, a policy and a way to adapt, made by `policy_loop`."""

    env: _env.Environment
    policy: _policies.Policy
    settings: Settings

    def init(self, key: jax.Array, task: base.PyTree) -> base.Params:
        """Draws the policy's parameters."""
        _env.check_step(self.env, task)
        reset_key, init_key = jax.random.split(key)
        observation, _ = self.env.reset(reset_key, task)
        return self.policy.init(init_key, observation[None])

    def predict(self, task_params: base.Params, inputs: base.PyTree) -> Any:
        """Returns the policy's distributions for observations [N, ...]."""
        if isinstance(task_params, base.Adapted):
            task_params = task_params.params
        return self.policy.apply(task_params, inputs)

    def adapt(
        self, key: jax.Array, meta_params: base.Params, support: base.PyTree
    ) -> tuple[base.Params, AdaptationInfo]:
        """Makes K inner steps on episodes of the task `support`.

        Pass task parameters instead of meta-parameters to resume, with the inner rule's
        state.
        """
        steps, episodes = self.settings.inner_steps, self.settings.num_episodes
        result, info = self._explore(key, meta_params, support, steps, episodes)
        if not jax.tree.leaves(result.state):
            return result.params, info
        made = meta_params.step if isinstance(meta_params, base.Adapted) else 0
        step = jnp.asarray(made + steps, jnp.int32)
        return base.Adapted(result.params, result.state, step, result.params), info

    def returns(
        self, key: jax.Array, params: base.Params, task: base.PyTree, inner_steps: int
    ) -> jax.Array:
        """Returns mean returns [K + 1] of the test episodes after 0 ... K steps."""
        # An inner step's fresh episodes come from the policy before it, so they are the
        # test episodes of steps 0 ... K - 1; the last policy needs its own.
        inner_key, last_key = jax.random.split(key)
        episodes = self.settings.test_episodes
        result, info = self._explore(inner_key, params, task, inner_steps, episodes)
        _, (last, _) = self._gather(last_key, result.params, task, episodes)
        return jnp.append(info.returns, last)

    def collect(
        self, key: jax.Array, params: base.Params, task: base.PyTree
    ) -> tuple[Samples, PolicyInfo]:
        """Draws the episodes of all inner steps and of the adapted policy."""
        inner_key, outer_key = jax.random.split(key)
        steps, episodes = self.settings.inner_steps, self.settings.num_episodes
        result, adapt_info = self._explore(inner_key, params, task, steps, episodes)
        inner, _ = result.aux
        outer, (after, clipped) = self._gather(outer_key, result.params, task, episodes)
        is_valid = all_finite((inner, outer))
        # Zeros, so that the derivative is finite for every task.
        zero = lambda x: jnp.where(is_valid, x, jnp.zeros_like(x))
        inner, outer = jax.tree.map(zero, (inner, outer))
        samples = jax.lax.stop_gradient(Samples(inner, outer, is_valid))
        metrics = {
            "return": after,
            "return_before": adapt_info.returns[0],
            "clipped": clipped,
        }
        return samples, PolicyInfo(-after, metrics, adapt_info, is_valid)

    def loss(
        self,
        params: base.Params,
        samples: Samples,
        clip: float | None = None,
        kl_penalty: float = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the outer surrogate after `replay`, and the inner KL divergence."""
        settings, batch = self.settings, samples.outer
        task_params, (inner_ratios, inner_kl) = self._replay(params, samples)
        _, log_probs = self._replayed(task_params, batch)
        weights = _surrogates.discounts(settings.surrogate, settings.discount, batch)
        terms = weights * _surrogates.clipped_ratio(log_probs, batch, clip)
        value = -self._average(terms, batch)
        if settings.sampling_term:
            returns = _returns.discounted_sums(batch.rewards, settings.discount)
            # [B, H] with the return of the whole episode at t = 0 and zeros after it.
            first = jnp.pad(returns[:, :1], ((0, 0), (0, returns.shape[1] - 1)))
            gain = self._average(first, batch)
            # Linear in the log-ratio: its exponential over B H steps would overflow.
            value -= settings.sampling_term * jnp.sum(inner_ratios) * gain
        kl = jnp.mean(inner_kl)
        return value + kl_penalty * kl, kl

    def kl(self, params: base.Params, samples: Samples) -> jax.Array:
        """KL of the adapted policy from the one that drew the outer episodes, []."""
        task_params, _ = self._replay(params, samples)
        distributions, _ = self._replayed(task_params, samples.outer)
        return self._mean_kl(distributions, samples)

    def kl_hessian(
        self, params: base.Params, samples: Samples, vector: base.Params
    ) -> base.Params:
        """Hessian-vector product of the KL divergence, where both policies agree."""

        # The Gauss-Newton product J^T H J v equals the Hessian's at the divergence's
        # minimum, where its gradient in the distributions is zero.
        def distributions(params):
            task_params, _ = self._replay(params, samples, order="reverse-over-reverse")
            return self._replayed(task_params, samples.outer)[0]

        with _messages.explain_forward_mode(model=True):
            outputs, push = jax.linearize(distributions, params)
            slope = jax.grad(lambda outputs: self._mean_kl(outputs, samples))
            _, curved = jax.jvp(slope, (outputs,), (push(vector),))
        (product,) = jax.linear_transpose(push, params)(curved)
        return product

    def _gather(self, key, params, task, num_episodes):
        """Returns a batch, its mean return and the share of clipped actions."""
        settings, policy = self.settings, self.policy
        found = _rollout.rollout(
            key, policy, params, self.env, task, num_episodes=num_episodes
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
        # Masked log-probabilities are 0: their ratio is 1 and their gradient 0.
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

    def _explore(self, key, params, task, inner_steps, num_episodes):
        """Adapts on fresh episodes, returned as the result's `aux`; no derivatives."""
        start, state = params, None
        if isinstance(params, base.Adapted):
            start, state = params.params, params.inner_state
        _checks.check_params(start)

        def objective(params, key, step, task):
            del step
            # Episodes are constant to the policy gradient.
            fixed = jax.lax.stop_gradient(params)
            batch, found = self._gather(key, fixed, task, num_episodes)
            return self._inner_loss(params, batch), (batch, found)

        result = _unroll.unroll(
            objective,
            self.settings.inner_tx,
            start,
            jax.random.split(key, inner_steps),
            task,
            order="constant",
            state=state,
            rematerialize=False,
        )
        _, (returns, clipped) = result.aux
        return result, AdaptationInfo(result.losses, returns, clipped)

    def _replay(self, params, samples, order: _unroll.Order | None = None):
        """Repeats the inner steps on their episodes, differentiable in `params`."""
        settings, policy = self.settings, self.policy

        def objective(params, key, step, batches):
            del key
            batch = jax.tree.map(lambda x: x[step], batches)
            return self._inner_loss(params, batch), None

        def probe(params, step):
            """Log-probability ratio and KL of a batch's policy from its sampler."""
            # The modulo only keeps the last probe in range, which is dropped below.
            batch = jax.tree.map(
                lambda x: x[step % settings.inner_steps], samples.inner
            )
            distributions, log_probs = self._replayed(params, batch)
            kl = policy.kl(batch.distributions, distributions)
            ratio = jnp.sum(log_probs - batch.log_probs)
            return ratio, masked_mean(kl, batch.mask)

        exact = "constant" if settings.first_order else settings.hvp
        order = exact if order is None or settings.first_order else order
        result = _unroll.unroll(
            objective,
            settings.inner_tx,
            params,
            jax.random.split(jax.random.key(0), settings.inner_steps),  # Unused.
            samples.inner,
            order=order,
            probe=probe,
            rematerialize=order != "constant",
        )
        return result.params, jax.tree.map(lambda x: x[:-1], result.probed)

    def _replayed(self, params, batch):
        """Distributions and log-probabilities [B, H] under `params`."""
        flat = batch.observations.reshape(-1, *batch.observations.shape[2:])
        distributions = jax.tree.map(
            lambda x: x.reshape(*batch.mask.shape, *x.shape[1:]),
            self.policy.apply(params, flat),
        )
        log_probs = self.policy.log_prob(distributions, batch.actions)
        return distributions, jnp.where(batch.mask, log_probs, 0)

    def _inner_loss(self, params, batch):
        settings = self.settings
        _, log_probs = self._replayed(params, batch)
        terms = _surrogates.objective(
            settings.surrogate, log_probs, batch, discount=settings.discount
        )
        return -self._average(terms, batch)

    def _average(self, terms, batch):
        """Sums terms [B, H] and divides by the number of time steps or of episodes."""
        over_steps = self.settings.average_over == "steps"
        counts = jnp.sum(batch.mask) if over_steps else batch.mask.shape[0]
        return jnp.sum(jnp.where(batch.mask, terms, 0)) / jnp.maximum(counts, 1)

    def _mean_kl(self, distributions, samples):
        found = self.policy.kl(samples.outer.distributions, distributions)
        return masked_mean(found, samples.outer.mask)


def policy_loop(
    env: _env.Environment, policy: _policies.Policy, settings: Settings
) -> PolicyLoop:
    """Checks the user's arguments and builds a `PolicyLoop`."""
    check_settings(settings)
    _env.check_environment(env)
    _policies.check_policy(policy, env)
    return PolicyLoop(env, policy, settings)


def check_settings(settings: Settings) -> None:
    """Raises unless every setting is valid."""
    for name in ("inner_steps", "num_episodes", "test_episodes"):
        _checks.check_int(name, getattr(settings, name))
    _checks.check_plain_transformation("inner_tx", settings.inner_tx)
    _checks.check_choice("surrogate", settings.surrogate, _surrogates.SURROGATES)
    _checks.check_choice("hvp", settings.hvp, _unroll.HVP_MODES)
    _checks.check_choice("baseline", settings.baseline, (None, *get_args(Baseline)))
    _checks.check_choice("average_over", settings.average_over, get_args(AverageOver))
    _checks.check_not_negative("sampling_term", settings.sampling_term)
    for name in ("discount", "gae_lambda"):
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value!r}.")


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values` where `mask` is set; zero if it is empty."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def all_finite(tree: Any) -> jax.Array:
    """Whether every float in the tree is finite, []."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
