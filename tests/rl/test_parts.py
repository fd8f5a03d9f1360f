"""Distributions against SciPy, returns and baselines against NumPy loops, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxmeta import models, rl
from tests._policy_learners import navigation_learner, table_policy, tabular_learner

rng = np.random.default_rng(0)


def test_gaussians_agree_with_scipy():
    policy = rl.gaussian_policy(models.MLP([3]))
    means, log_stds = rng.normal(size=(2, 2, 5, 3)).astype(np.float32)
    p, q = (
        rl.Gaussian(*map(jnp.asarray, x)) for x in zip(means, log_stds, strict=True)
    )
    actions = rng.normal(size=(5, 3)).astype(np.float32)
    theirs = scipy.stats.norm(p.mean, np.exp(p.log_std))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4)
    close(policy.log_prob(p, actions), theirs.logpdf(actions).sum(-1))
    close(policy.entropy(p), theirs.entropy().sum(-1))
    # The divergence by quadrature, an action at a time.
    grid = np.linspace(-40, 40, 200_001)[:, None, None]
    other = scipy.stats.norm(q.mean, np.exp(q.log_std))
    integrand = theirs.pdf(grid) * (theirs.logpdf(grid) - other.logpdf(grid))
    close(policy.kl(p, q), integrand.sum(0).sum(-1) * (grid[1] - grid[0]).item())
    draws = policy.sample(
        jax.random.key(0), jax.tree.map(lambda x: x[:1].repeat(50_000, 0), p)
    )
    np.testing.assert_allclose(draws.std(0), np.exp(p.log_std[0]), rtol=0.02)


def test_categoricals_agree_with_scipy():
    policy = table_policy()
    p, q = (rl.Categorical(jnp.asarray(x)) for x in rng.normal(size=(2, 5, 4)))
    weights, others = (np.asarray(jax.nn.softmax(x.logits)) for x in (p, q))
    actions = jnp.array([0, 1, 2, 3, 0])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4)
    close(policy.log_prob(p, actions), np.log(weights[np.arange(5), actions]))
    close(policy.entropy(p), scipy.stats.entropy(weights, axis=-1))
    close(policy.kl(p, q), scipy.stats.entropy(weights, others, axis=-1))
    assert policy.kl(p, p).max() < 1e-6


def test_a_least_standard_deviation_holds():
    policy = rl.gaussian_policy(models.MLP([1]), min_std=0.1)
    params = policy.init(jax.random.key(0), jnp.ones((1, 2)))
    low = params._replace(log_std=jnp.full((1,), -20.0))
    found = policy.apply(low, jnp.ones((4, 2)))
    np.testing.assert_allclose(jnp.exp(found.log_std), 0.1, rtol=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_advantages_agree_with_a_loop(gae_lambda):
    rewards, values = rng.normal(size=(2, 3, 6))
    expected = np.zeros((3, 6))
    for b in range(3):
        for t in range(6):
            for k in range(6 - t):
                following = values[b, t + k + 1] if t + k + 1 < 6 else 0.0
                error = rewards[b, t + k] + 0.9 * following - values[b, t + k]
                expected[b, t] += (0.9 * gae_lambda) ** k * error
    found = rl.generalized_advantages(
        jnp.asarray(rewards), jnp.asarray(values), discount=0.9, gae_lambda=gae_lambda
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def _walks(num_episodes=6, horizon=12):
    env = rl.navigation(horizon=horizon)
    policy = rl.gaussian_policy(models.MLP([2]))
    params = policy.init(jax.random.key(1), jnp.ones((1, 2)))
    goal = jnp.array([0.1, 0.0])
    return rl.rollout(
        jax.random.key(0), policy, params, env, goal, num_episodes=num_episodes
    )


def test_the_baseline_agrees_with_a_loop():
    found = _walks()
    mask = found.mask.at[0, 5:].set(False)  # As of an episode that was over.
    found = found._replace(mask=mask, rewards=found.rewards * mask)
    with jax.enable_x64(True):
        double = jax.tree.map(
            lambda x: x.astype(float) if x.dtype == jnp.float32 else x, found
        )
        values = rl.linear_baseline(double, discount=0.9, ridge=1e-5)
    rows, returns, places = [], [], []
    observations, rewards = np.asarray(double.observations), np.asarray(double.rewards)
    for b in range(6):
        for t in range(12):
            if mask[b, t]:
                o, time = np.clip(observations[b, t], -10, 10), t / 100
                rows.append([*o, *o**2, time, time**2, time**3, 1])
                steps = range(t, 12)
                returns.append(sum(0.9 ** (k - t) * rewards[b, k] for k in steps))
                places.append((b, t))
    rows, returns = np.array(rows), np.array(returns)
    gram = rows.T @ rows
    ridge = 1e-5 * np.diag(np.diag(gram))
    expected = np.zeros((6, 12))
    fitted = rows @ np.linalg.solve(gram + ridge, rows.T @ returns)
    for place, value in zip(places, fitted, strict=True):
        expected[place] = value
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9)
    single = rl.linear_baseline(found, discount=0.9)
    np.testing.assert_allclose(single, expected, rtol=0.02, atol=0.02)


def test_the_baseline_of_constant_observations_is_finite():
    env = rl.bandit(2, horizon=4)
    policy = table_policy(1, 2)
    found = rl.rollout(
        jax.random.key(0), policy, jnp.zeros((1, 2)), env, jnp.ones(2), num_episodes=50
    )
    values = rl.linear_baseline(found, discount=1.0)
    np.testing.assert_allclose(values[0], [4, 3, 2, 1], atol=0.6)


def test_navigation_of_the_paper_and_of_its_code():
    goal, key = jnp.array([0.3, 0.4]), jax.random.key(0)
    for variant, reward in (("released", -0.5), ("paper", -0.25)):
        env = rl.navigation(variant)
        _, state = env.reset(key, goal)
        _, _, found, done, _ = env.step(key, state, jnp.zeros(2), goal)
        np.testing.assert_allclose(found, reward, rtol=1e-6)
        assert not done
    position, _, _, done, _ = env.step(key, goal - 0.105, jnp.array([9.0, 9.0]), goal)
    np.testing.assert_allclose(position, goal - 0.005, rtol=1e-5)
    assert done


def test_nothing_counts_after_the_end():
    found = _walks(num_episodes=400, horizon=60)
    assert not found.mask.all()
    gone = ~np.asarray(found.mask)
    assert np.all(np.asarray(found.rewards)[gone] == 0)
    assert np.all(np.diff(found.mask.astype(int), axis=1) <= 0)
    # The last time step of an episode that ended brought it to the goal.
    ended = np.flatnonzero(gone.any(1))
    lengths = np.asarray(found.mask.sum(1))
    last = np.asarray(found.rewards)[ended, lengths[ended] - 1]
    assert np.all(last > -0.02)


def test_clipped_actions_are_counted():
    found = _walks()
    outside = np.any(np.abs(found.actions) > 1, -1)[np.asarray(found.mask)]
    np.testing.assert_allclose(found.clipped, outside.mean(), rtol=1e-5)
    assert 0 < found.clipped < 1


def test_random_tables_are_solved(key):
    """The exact return against many episodes."""
    env, learner = tabular_learner()
    task = env.sample_task(key)
    np.testing.assert_allclose(task.transitions.sum(-1), 1, rtol=1e-5)
    logits = learner.init(key, task)
    found = rl.rollout(key, table_policy(), logits, env, task, num_episodes=20_000)
    returns = found.rewards.sum(-1)
    exact = rl.expected_return(task, jax.nn.softmax(logits), horizon=3)
    assert abs(returns.mean() - exact) < 4 * returns.std() / np.sqrt(20_000)
    assert returns.std() / np.sqrt(20_000) < 0.02


def test_bernoulli_arms_pay_as_often_as_they_say(key):
    env = rl.bandit(2, rewards="bernoulli", horizon=1)
    means = jnp.array([0.25, 0.25])
    found = rl.rollout(
        key, table_policy(1, 2), jnp.zeros((1, 2)), env, means, num_episodes=10_000
    )
    assert set(np.unique(found.rewards)) == {0.0, 1.0}
    assert abs(found.rewards.mean() - 0.25) < 0.02


def _broken(**changes):
    env = rl.navigation(horizon=3)
    step = env.step

    def wrong(key, state, action, params):
        names = ("observation", "state", "reward", "done", "info")
        outputs = dict(zip(names, step(key, state, action, params), strict=True))
        for name, change in changes.items():
            outputs[name] = change(outputs[name])
        return tuple(outputs[name] for name in names)

    return env._replace(step=wrong)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("observation", lambda x: x[:1], r"observation.*float32\[2\].*float32\[1\]"),
        ("state", lambda x: x.astype(jnp.bfloat16), r"state.*float32.*bfloat16"),
        ("reward", lambda x: x[None], r"reward that is a float scalar.*\(1,\)"),
        ("reward", lambda x: x.astype(int), "reward that is a float scalar.*int32"),
        ("done", lambda x: x.astype(float), "`done` that is a bool scalar.*float32"),
    ],
)
def test_steps_that_change_shapes_are_named(name, change, message, key):
    env = _broken(**{name: change})
    policy = rl.gaussian_policy(models.MLP([2]))
    learner = rl.maml(env, policy, inner_tx=optax.sgd(0.1))
    task = jnp.zeros(2)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.init, key, task)
    meta_params = jax.eval_shape(policy.init, key, jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.meta_grad, key, meta_params, task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reset": lambda key, goal: goal},
            r"`reset` must return \(observation, state\), got a ShapeDtypeStruct",
        ),
        (
            {"reset": lambda key, goal: ({"position": goal}, goal)},
            "an observation in one array, got dict",
        ),
        (
            {"step": lambda key, state, action, goal: (state, 0.0, False, {})},
            r"`step` must return \(observation, .*, info\), got 4 outputs",
        ),
    ],
)
def test_environments_with_other_outputs_are_named(changes, message, key):
    env = rl.navigation(horizon=3)._replace(**changes)
    policy = rl.gaussian_policy(models.MLP([2]))
    learner = rl.maml(env, policy, inner_tx=optax.sgd(0.1))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.init, key, jnp.zeros(2))


def test_wrong_settings_are_named(key):
    env = rl.navigation()
    policy = rl.gaussian_policy(models.MLP([2]))
    make = lambda **options: rl.maml(
        env, policy, **{"inner_tx": optax.sgd(1), **options}
    )
    with pytest.raises(ValueError, match="`horizon` must be an int >= 1, got 0"):
        rl.navigation(horizon=0)
    with pytest.raises(ValueError, match="`horizon` must be an int >= 1, got 0"):
        rl.maml(env._replace(horizon=0), policy, inner_tx=optax.sgd(1))
    with pytest.raises(ValueError, match="`surrogate` must be one of 'loaded-dice'"):
        make(surrogate="nice")
    with pytest.raises(ValueError, match=r"`discount` must be in \[0, 1\], got 1.1"):
        make(discount=1.1)
    with pytest.raises(ValueError, match="`num_episodes` must be an int >= 1"):
        make(num_episodes=0)
    with pytest.raises(ValueError, match="`sampling_term` must be at least 0"):
        make(sampling_term=float("nan"))
    options = {"num_tasks": 2, "outer_tx": optax.adam(1e-3), "kl_penalty": -0.1}
    with pytest.raises(ValueError, match="`kl_penalty` must be at least 0"):
        rl.ppo(make(), env.sample_task, **options)
    with pytest.raises(ValueError, match=r"`policy` must have.*Box\(size=2"):
        rl.maml(env, table_policy(), inner_tx=optax.sgd(1))
    with pytest.raises(ValueError, match=r"without .*jaxmeta.rl.gaussian_policy"):
        rl.maml(env, models.MLP([2]), inner_tx=optax.sgd(1))
    with pytest.raises(ValueError, match="from_gymnax"):
        rl.maml(object(), policy, inner_tx=optax.sgd(1))
    with pytest.raises(ValueError, match="low < high"):
        rl.maml(
            env._replace(actions=rl.Box(2, 1.0, -1.0)), policy, inner_tx=optax.sgd(1)
        )
    wide = rl.maml(env, rl.gaussian_policy(models.MLP([3])), inner_tx=optax.sgd(1))
    meta_params = jax.eval_shape(wide.init, key, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"the environment's 2 actions.*\[3\]"):
        jax.eval_shape(wide.adapt, key, meta_params, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"`jaxmeta\.rl\.PolicyLearner`"):
        rl.ppo(make()[:5], env.sample_task, num_tasks=2, outer_tx=optax.adam(1e-3))
    _, learner = navigation_learner()
    with pytest.raises(ValueError, match="`num_tasks` must be an int"):
        rl.trpo(learner, env.sample_task, num_tasks=0)
    with pytest.raises(ValueError, match="`max_kl` must be positive"):
        rl.trpo(learner, env.sample_task, num_tasks=2, max_kl=0.0)
