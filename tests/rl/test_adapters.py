"""Environments of gymnax and brax, where they are installed."""

import warnings

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxmeta import models, rl


@pytest.fixture
def gymnax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("gymnax")


@pytest.fixture
def brax_envs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("brax.envs")


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.filterwarnings("ignore")
def test_gymnax_environments_are_tasks(gymnax, name, key):
    theirs, params = gymnax.make(name)

    def sample_task(key):
        gravity = jax.random.uniform(key, minval=8.0, maxval=12.0)
        field = "gravity" if hasattr(params, "gravity") else "g"
        return params.replace(**{field: gravity})

    env = rl.from_gymnax(theirs, sample_task, horizon=5)
    net = models.MLP([env.actions.size])
    is_box = isinstance(env.actions, rl.Box)
    policy = (rl.gaussian_policy if is_box else rl.categorical_policy)(net)
    learner = rl.maml(env, policy, inner_tx=optax.sgd(0.1), num_episodes=2)
    task = env.sample_task(key)
    meta_params = learner.init(key, task)
    grads, info = jax.jit(learner.meta_grad)(key, meta_params, task)
    chex.assert_tree_all_finite(grads)
    assert info.is_valid
    _, state = env.reset(key, task)  # Outside `jit` there are Python numbers.
    _, after, reward, _, _ = env.step(key, state, env_action(env), task)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert reward.dtype == jnp.float32


def env_action(env):
    if isinstance(env.actions, rl.Box):
        return jnp.zeros(env.actions.size)
    return jnp.zeros((), int)


@pytest.mark.parametrize(
    "make", [rl.half_cheetah_direction, rl.half_cheetah_velocity, rl.ant_velocity]
)
@pytest.mark.filterwarnings("ignore")
def test_brax_environments_keep_their_shapes(brax_envs, make, key):
    env = make(horizon=3)
    policy = rl.gaussian_policy(models.MLP([env.actions.size]))

    def trace(key):
        task = env.sample_task(key)
        observation, _ = env.reset(key, task)
        params = policy.init(key, observation[None])
        return rl.rollout(key, policy, params, env, task, num_episodes=2)

    found = jax.eval_shape(trace, key)
    chex.assert_shape(found.rewards, (2, 3))


def test_brax_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "brax", None)
    with pytest.raises(ImportError, match="pip install brax"):
        rl.ant_velocity()
