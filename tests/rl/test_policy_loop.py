"""The inner loop, with all its defaults and episodes that end early, against loops."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import models, rl

GAMMA, LAMBDA, RATE, HORIZON, EPISODES = 0.9, 0.8, 0.3, 12, 5


def _fenced():
    """Navigation that is over where a walk leaves a square."""
    env = rl.navigation(horizon=HORIZON)

    def step(key, state, action, goal):
        observation, state, reward, _, info = env.step(key, state, action, goal)
        return observation, state, reward, jnp.max(jnp.abs(observation)) > 0.2, info

    return env._replace(step=step)


@pytest.fixture(scope="module")
def drawn():
    """A loop, parameters, other parameters, and the episodes of the first."""
    with jax.enable_x64(True):
        key = jax.random.key(1)
        policy = rl.gaussian_policy(models.MLP([2]), std=0.5)
        learner = rl.maml(
            _fenced(),
            policy,
            inner_tx=optax.sgd(RATE),
            num_episodes=EPISODES,
            discount=GAMMA,
            gae_lambda=LAMBDA,
        )
        goal = jnp.array([0.1, 0.3])
        params = jax.jit(learner.init)(key, goal)
        samples, _ = jax.jit(learner.loop.collect)(key, params, goal)
        moved = jax.tree.map(
            lambda x: x + 0.02 * jax.random.normal(key, x.shape, x.dtype), params
        )
        assert 0 < samples.inner.mask.mean() < 1
        assert 0 < samples.outer.mask.mean() < 1
        yield learner.loop, params, moved, samples


def _advantages(batch):
    """Standardised, by loops over what lies before each episode's end."""
    rewards, values = np.asarray(batch.rewards), np.asarray(batch.values)
    lengths = np.asarray(batch.mask).sum(1)
    found = []
    for b, length in enumerate(lengths):
        for t in range(length):
            total = 0.0
            for k in range(t, length):
                following = values[b, k + 1] if k + 1 < length else 0.0
                error = rewards[b, k] + GAMMA * following - values[b, k]
                total += (GAMMA * LAMBDA) ** (k - t) * error
            found.append(total)
    found = (np.array(found) - np.mean(found)) / np.std(found)
    return np.split(found, np.cumsum(lengths)[:-1])


def _log_prob(params, observation, action):
    layer = params.mean["params"]["Dense_0"]
    mean = observation @ layer["kernel"] + layer["bias"]
    std = jnp.exp(params.log_std)
    density = jnp.exp(-(((action - mean) / std) ** 2) / 2) / (std * (2 * np.pi) ** 0.5)
    return jnp.log(density).sum()


def _objective(params, batch, term):
    """Mean over time steps of gamma^t times a term of the ratios and advantages."""
    total, count = 0.0, 0
    for b, advantages in enumerate(_advantages(batch)):
        ratios = []
        for t, advantage in enumerate(advantages):
            new = _log_prob(params, batch.observations[b, t], batch.actions[b, t])
            ratios.append(jnp.exp(new - batch.log_probs[b, t]))
            total += GAMMA**t * term(ratios, advantage)
            count += 1
    return total / count


def _loaded_dice(ratios, advantage):
    product = 1.0
    for ratio in ratios:
        before, product = product, product * ratio
    return (product - before) * advantage


def _adapted(params, samples):
    batch = jax.tree.map(lambda x: x[0], samples.inner)
    ascent = jax.grad(_objective)(params, batch, _loaded_dice)
    return jax.tree.map(lambda p, g: p + RATE * g, params, ascent)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_losses_agree_with_loops(clip, drawn):
    loop, params, moved, samples = drawn
    clipped = []

    def term(ratios, advantage):
        ratio = ratios[-1]
        if clip is None:
            return ratio * advantage
        allowed = jnp.clip(ratio, 1 - clip, 1 + clip)
        clipped.append(ratio * advantage > allowed * advantage)
        return jnp.where(clipped[-1], allowed, ratio) * advantage

    def loss(params):
        return -_objective(_adapted(params, samples), samples.outer, term)

    with jax.enable_x64(True):
        for at in (params, moved):
            expected = jax.value_and_grad(loss)(at)
            ours = lambda params: loop.loss(params, samples, clip)[0]
            found = jax.jit(jax.value_and_grad(ours))(at)
            for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_the_divergence_is_of_the_new_policy_from_the_one_that_drew(drawn):
    loop, _, moved, samples = drawn
    with jax.enable_x64(True):
        after = _adapted(moved, samples)
        layer = after.mean["params"]["Dense_0"]
        total, count = 0.0, 0
        old = samples.outer.distributions
        for b, t in np.argwhere(samples.outer.mask):
            mean = samples.outer.observations[b, t] @ layer["kernel"] + layer["bias"]
            p_std, q_std = np.exp(old.log_std[b, t]), np.exp(after.log_std)
            gap = p_std**2 + (old.mean[b, t] - mean) ** 2
            total += (np.log(q_std / p_std) + gap / (2 * q_std**2) - 0.5).sum()
            count += 1
        found = jax.jit(loop.kl)(moved, samples)
        np.testing.assert_allclose(found, total / count, rtol=1e-9)
        assert found > 1e-4


def test_a_penalty_adds_the_divergence_before_adaptation(drawn):
    loop, _, moved, samples = drawn
    with jax.enable_x64(True):
        value, inner_kl = jax.jit(loop.loss)(moved, samples)
        more, _ = jax.jit(loop.loss)(moved, samples, kl_penalty=3.0)
        np.testing.assert_allclose(more - value, 3 * inner_kl, rtol=1e-9)
        assert inner_kl > 1e-4


def test_derivatives_of_the_divergence_are_those_of_its_differences(drawn):
    loop, _, moved, samples = drawn
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(moved)
        kl = jax.jit(lambda flat: loop.kl(unravel(flat), samples))
        steps = 1e-5 * np.eye(flat.size)
        differences = [(kl(flat + h) - kl(flat - h)) / 2e-5 for h in steps]
        grads = jax.jit(jax.grad(kl))(flat)
        np.testing.assert_allclose(grads, differences, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("baseline", [None, "linear"])
@pytest.mark.parametrize("reward", [1 / 3, -100.3])
def test_equal_returns_teach_nothing(reward, baseline, key):
    """Rounding, divided by itself, would be advantages of +-1."""
    env = rl.bandit(2, noise=0.0, horizon=1)
    policy = rl.categorical_policy(models.MLP([2]))
    options = {"inner_tx": optax.sgd(1.0), "baseline": baseline}
    learner = rl.maml(env, policy, **options)
    means = jnp.full(2, reward)
    params = learner.init(key, means)
    grads, _ = jax.jit(learner.meta_grad)(key, params, means)
    assert optax.tree.norm(grads) < 1e-5
    means = means * jnp.array([1.0, 1.01])  # Rewards that do differ still teach.
    grads, _ = jax.jit(learner.meta_grad)(key, params, means)
    assert optax.tree.norm(grads) > 1e-2
