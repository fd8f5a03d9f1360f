"""What is particular to learners of policies, and the contract of PPO and TRPO."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta import rl
from tests._policy_learners import navigation_learner, tabular_learner

# TRPO's steps compile for as long as the others' together.
STEPS = ["over_tasks", "ppo", pytest.param("trpo", marks=pytest.mark.slow)]


def test_adapted_policies_predict_distributions(key):
    env, learner = navigation_learner()
    task = env.sample_task(key)
    meta_params = learner.init(key, task)
    task_params, info = jax.jit(learner.adapt)(key, meta_params, support=task)
    distribution = learner.predict(task_params, jnp.zeros((5, 2)))
    chex.assert_shape(tuple(distribution), [(5, 2), (5, 2)])
    chex.assert_shape(tuple(info), [(1,)] * 3)


def _train_steps(env, learner, **options):
    options = {"num_tasks": 4} | options
    over_tasks = jm.estimators.over_tasks(learner, env.sample_task, **options)
    return {
        "over_tasks": jm.training.make_train_step(over_tasks, optax.sgd(1.0)),
        "ppo": rl.ppo(
            learner,
            env.sample_task,
            num_epochs=2,
            outer_tx=optax.sgd(0.1),
            kl_penalty=0.1,
            **options,
        ),
        "trpo": rl.trpo(learner, env.sample_task, cg_steps=3, **options),
    }


@pytest.mark.slow  # The contract has the step over tasks.
@pytest.mark.parametrize("name", STEPS[1:])
def test_a_step_is_the_same_on_several_devices_and_in_chunks(name, key):
    with jax.enable_x64(True):
        results = []
        mesh = jm.training.task_mesh(jax.devices()[:2])
        for options in ({}, {"mesh": mesh, "tasks_per_chunk": 1}):
            env, learner = tabular_learner()
            init, step = _train_steps(env, learner, **options)[name]
            state = jax.jit(init)(key)
            after, info = jax.jit(step)(state)
            chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
            moved = optax.tree.sub(after.meta_params, state.meta_params)
            assert optax.tree.norm(moved) > 0
            results.append((after.meta_params, info))
        chex.assert_trees_all_close(*results, rtol=1e-6, atol=1e-9)


def test_one_epoch_of_ppo_is_a_step_on_the_meta_gradient(key):
    """Without a penalty the first epoch's ratio is 1 and nothing is clipped."""
    env, learner = tabular_learner()
    plain = rl.ppo(
        learner, env.sample_task, num_tasks=4, num_epochs=1, outer_tx=optax.sgd(1.0)
    )
    states = [
        jax.jit(step)(init(key))[0]
        for init, step in (plain, _train_steps(env, learner)["over_tasks"])
    ]
    chex.assert_trees_all_equal(states[0].key, states[1].key)
    params = [state.meta_params for state in states]
    chex.assert_trees_all_close(*params, rtol=1e-4, atol=1e-6)
    moved = optax.tree.sub(params[0], plain.init(key).meta_params)
    assert optax.tree.norm(moved) > 1e-3


@pytest.mark.parametrize("max_kl", [pytest.param(1e-4, marks=pytest.mark.slow), 1e-2])
def test_trpo_stays_in_its_trust_region_and_reaches_for_its_edge(max_kl, key):
    with jax.enable_x64(True):
        env, learner = tabular_learner(num_episodes=50)
        init, step = rl.trpo(
            learner, env.sample_task, num_tasks=4, max_kl=max_kl, cg_steps=6
        )
        state = init(key)
        meta_params = state.meta_params
        after, info = jax.jit(step)(state)
        assert info.accepted and info.improvement > 0
        assert max_kl / 4 < info.kl <= max_kl

        # The same surrogate and divergence, computed beside it.
        keys = jax.random.split(jax.random.split(state.key)[1], 4)

        def collect(key):
            task_key, key = jax.random.split(key)
            return learner.loop.collect(key, meta_params, env.sample_task(task_key))[0]

        samples = jax.jit(jax.vmap(collect))(keys)
        kls = jax.jit(jax.vmap(learner.loop.kl, (None, 0)))(after.meta_params, samples)
        np.testing.assert_allclose(kls.mean(), info.kl, rtol=1e-6)


def test_curvature_of_trpo_is_the_hessian_of_the_divergence(key):
    with jax.enable_x64(True):
        env = rl.navigation(horizon=4)
        policy = rl.gaussian_policy(jm.models.MLP([3, 2]))
        inner = {"inner_tx": optax.sgd(0.5), "inner_steps": 2, "num_episodes": 2}
        loop = rl.maml(env, policy, surrogate="low-variance", **inner).loop
        task = env.sample_task(key)
        params = loop.init(key, task)
        samples, _ = loop.collect(key, params, task)
        flat, unravel = jax.flatten_util.ravel_pytree(params)

        def slope(flat):
            return jax.grad(lambda flat: loop.kl(unravel(flat), samples))(flat)

        def product(vector):
            found = loop.kl_hessian(params, samples, unravel(vector))
            return jax.flatten_util.ravel_pytree(found)[0]

        expected = jax.jit(jax.jacrev(slope))(flat)  # Reverse over reverse.
        found = jax.jit(jax.vmap(product))(jnp.eye(flat.size))
        assert jnp.max(jnp.abs(expected)) > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def _with_nan(env, below=0.0):
    """The environment, its reward NaN where the task's first number is lower."""

    def step(key, state, action, goal):
        observation, state, reward, done, info = env.step(key, state, action, goal)
        return (
            observation,
            state,
            jnp.where(goal[0] < below, jnp.nan, reward),
            done,
            info,
        )

    return env._replace(step=step)


@pytest.mark.parametrize("name", STEPS)
def test_a_task_with_nan_rewards_is_left_out_and_counted(name, key, x64):
    env = rl.navigation(horizon=4)
    policy = rl.gaussian_policy(jm.models.MLP([4, 2]))
    options = {"inner_tx": optax.sgd(0.1), "num_episodes": 2}
    good, bad = (rl.maml(e, policy, **options) for e in (env, _with_nan(env)))
    init, step = _train_steps(_with_nan(env), bad, num_tasks=8)[name]
    state = init(key)
    keys = jax.random.split(jax.random.split(state.key)[1], 8)
    goals = jax.vmap(lambda k: env.sample_task(jax.random.split(k)[0]))(keys)
    num_bad = int((goals[:, 0] < 0).sum())
    assert 0 < num_bad < 8
    after, info = jax.jit(step)(state)
    difference = optax.tree.sub(state.meta_params, after.meta_params)
    chex.assert_tree_all_finite(difference)
    assert optax.tree.norm(difference) > 0
    assert int((~info.is_valid).sum()) == num_bad
    if name == "over_tasks":  # The mean is over the others, not over all.

        def meta_grad(key):
            task_key, key = jax.random.split(key)
            return good.meta_grad(key, state.meta_params, env.sample_task(task_key))[0]

        each = jax.jit(jax.vmap(meta_grad))(keys)
        kept = np.asarray(goals[:, 0] >= 0)
        expected = jax.tree.map(lambda x: x[kept].mean(0), each)
        chex.assert_trees_all_close(difference, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", STEPS[1:])
def test_a_task_whose_gradient_is_not_finite_is_left_out_and_counted(name, key):
    """Its episodes are, but optax's Adam has no derivative at a gradient of zero."""
    env = rl.bandit(2, noise=0.0, horizon=2)
    policy = rl.categorical_policy(jm.models.MLP([2]))

    def sample_task(key):  # Half of the tasks pay nothing: their gradient is zero.
        pays = jax.random.bernoulli(key)
        return jnp.where(pays, jnp.array([1.0, 0.0]), jnp.zeros(2))

    learner = rl.maml(env, policy, inner_tx=optax.adam(0.1), num_episodes=8)
    env = env._replace(sample_task=sample_task)
    init, step = _train_steps(env, learner, num_tasks=8)[name]
    state = init(key)
    after, info = jax.jit(step)(state)
    difference = optax.tree.sub(state.meta_params, after.meta_params)
    keys = jax.random.split(jax.random.split(state.key)[1], 8)
    task_keys = jax.vmap(lambda k: jax.random.split(k)[0])(keys)
    expected = jax.vmap(sample_task)(task_keys)[:, 0] == 0
    assert 0 < expected.sum() < 8
    np.testing.assert_array_equal(~info.is_valid, expected)
    chex.assert_tree_all_finite(difference)
    assert optax.tree.norm(difference) > 0


@pytest.mark.slow
def test_trpo_updates_parameters_of_half_precision(key):
    env = rl.bandit(3, horizon=2)

    def init(key, observations):
        return jax.random.normal(key, (1, 3), jnp.bfloat16)

    model = jm.Model(init, lambda w, x: (x @ w).astype(jnp.float32))
    policy = rl.categorical_policy(model)
    learner = rl.maml(env, policy, inner_tx=optax.sgd(0.5), num_episodes=8)
    init, step = rl.trpo(learner, env.sample_task, num_tasks=4, max_kl=0.05)
    state = jax.jit(init)(key)
    after, info = jax.jit(step)(state)
    assert after.meta_params.dtype == jnp.bfloat16
    assert info.accepted and 0 < info.kl <= 0.05


def test_what_follows_an_episode_poisons_no_gradient(key):
    """A model that divides by the norm of what it sees, which is not zero before."""
    env = rl.navigation(horizon=4)

    def step(key, state, action, goal):
        observation, state, reward, _, info = env.step(key, state, action, goal)
        return observation + 1, state, reward, observation[0] > 0, info

    def reset(key, goal):
        observation, state = env.reset(key, goal)
        return observation + 1, state

    unit = lambda w, x: (x / jnp.linalg.norm(x, axis=-1, keepdims=True)) @ w
    model = jm.Model(lambda key, x: jnp.zeros((2, 2)), unit)
    learner = rl.maml(
        env._replace(reset=reset, step=step),
        rl.gaussian_policy(model),
        inner_tx=optax.sgd(0.1),
        num_episodes=5,
    )
    task = env.sample_task(key)
    meta_params = learner.init(key, task)
    samples, _ = jax.jit(learner.loop.collect)(key, meta_params, task)
    assert not samples.inner.mask.all()
    grads, info = jax.jit(learner.meta_grad)(key, meta_params, task)
    assert info.is_valid and optax.tree.norm(grads) > 0


def test_actions_can_be_forbidden(key):
    env = rl.bandit(3, horizon=2)
    mask = jnp.array([[0.0, -jnp.inf, 0.0]])
    model = jm.Model(lambda key, x: jnp.zeros((1, 3)), lambda w, x: x @ w + mask)
    policy = rl.categorical_policy(model)
    learner = rl.maml(env, policy, inner_tx=optax.sgd(0.5), num_episodes=20)
    task = env.sample_task(key)
    meta_params = learner.init(key, task)
    samples, _ = jax.jit(learner.loop.collect)(key, meta_params, task)
    assert set(np.unique(samples.outer.actions)) == {0, 2}
    grads, info = jax.jit(learner.meta_grad)(key, meta_params, task)
    assert info.is_valid and optax.tree.norm(grads) > 0
    p = policy.apply(meta_params, jnp.ones((1, 1)))
    np.testing.assert_allclose(policy.entropy(p), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(policy.kl(p, p), 0, atol=1e-6)


@pytest.mark.parametrize("below", [-0.1, 0.3])
def test_fit_records_what_was_left_out(below, key):
    """A warning of a third of the tasks; an end once they are the half."""
    env = _with_nan(rl.navigation(horizon=3), below)
    policy = rl.gaussian_policy(jm.models.MLP([2]))
    learner = rl.maml(env, policy, inner_tx=optax.sgd(0.1), num_episodes=2)
    estimator = jm.estimators.over_tasks(learner, env.sample_task, num_tasks=8)
    train_step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    records = []
    fit = lambda: jm.training.fit(
        train_step, num_steps=4, key=key, log_every=2, report=records.append
    )
    said = "% of the tasks or runs before step"
    with pytest.warns(UserWarning, match=said):
        if below < 0:
            fit()
            assert [record["step"] for record in records] == [1, 2, 4]
        else:
            with pytest.raises(jm.training.DivergedError, match=f"{said} 2 had"):
                fit()
    assert all(0 < record["excluded"] < 1 for record in records)
    assert all(np.isfinite(record["return"]) for record in records)


def test_meta_training_raises_the_return_after_adaptation(key):
    """Bandits whose better arm is always one of the first two of five."""
    env = rl.bandit(5, noise=0.1, horizon=5)
    sample_task = lambda key: (
        jax.random.permutation(key, jnp.array([1.0, -1.0])) @ jnp.eye(2, 5)
        - 2 * jnp.array([0.0, 0.0, 1.0, 1.0, 1.0])
    )
    policy = rl.categorical_policy(jm.models.MLP([5]))
    learner = rl.maml(env, policy, inner_tx=optax.sgd(2.0), num_episodes=5)
    estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=10)
    init, step = jm.training.make_train_step(estimator, optax.adam(0.05))
    train = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: (step(s)[0], None), s, length=150)[0]
    )
    state = jax.jit(init)(key)
    before, after = (
        jm.training.evaluate(
            learner, s.meta_params, sample_task, num_tasks=100, key=key
        )
        .metrics["return"]
        .mean
        for s in (state, train(state))
    )
    assert after[1] > before[1] + 2
    assert after[1] > after[0] + 1
