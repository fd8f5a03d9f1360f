"""Adapters for gymnax and brax environments (extra `rl`)."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.rl import _env

# (task, brax state before, action, brax state after) -> reward
BraxReward = Callable[[Any, Any, jax.Array, Any], jax.Array]
# Physics backends, from most accurate to fastest.
BraxBackend = Literal["generalized", "positional", "spring"]


def from_gymnax(
    env: Any,
    sample_task: Callable[[jax.Array], Any] | None = None,
    *,
    horizon: int | None = None,
) -> _env.Environment:
    """Makes an `Environment` from a gymnax one; tasks are its `EnvParams`.

    Args:
      env: the first result of `gymnax.make`.
      sample_task: `(key) -> EnvParams`, e.g. `lambda key: params.replace(gravity=...)`;
        None always returns the default.
      horizon: H; None is the default `max_steps_in_episode`. Static.

    Raises:
      ValueError: if its actions are neither real in one range nor discrete, or it has
        no horizon and none is given.

    Example:
      >>> import jaxmeta as jm
      >>> env = jm.rl.from_gymnax(gymnax.make("CartPole-v1")[0])  # doctest: +SKIP
      >>> env.actions  # doctest: +SKIP
      Discrete(size=2)
    """
    default = env.default_params
    if horizon is None:
        horizon = getattr(default, "max_steps_in_episode", None)
    _checks.check_int("horizon", horizon)

    def step(key, state, action, params):
        observation, after, reward, done, info = env.step_env(
            key, state, action, params
        )
        if hasattr(env, "is_truncated"):  # Separate from `done` since gymnax 1.0.
            done = done | env.is_truncated(after, params)
        after = _as_before(after, state)
        reward = jnp.asarray(reward, jnp.result_type(float))
        return observation, after, reward, jnp.asarray(done, bool), info

    return _env.Environment(
        env.reset_env,
        step,
        sample_task or (lambda key: default),
        _actions(env.action_space(default)),
        int(horizon or 0),
    )


def from_brax(
    env: Any,
    sample_task: Callable[[jax.Array], Any],
    reward: BraxReward,
    *,
    horizon: int = 200,
) -> _env.Environment:
    """Makes an `Environment` from a brax one, with a task-dependent reward.

    Args:
      env: from `brax.envs.get_environment`, unwrapped.
      sample_task: `(key) -> task`, the first argument of `reward`.
      reward: `(task, before, action, after) -> scalar` from brax states; `after` has
        brax's own `reward` and `metrics`.
      horizon: H. Static.

    Raises:
      ValueError: if `horizon` is not a positive int.
    """
    _checks.check_int("horizon", horizon)

    def reset(key, task):
        del task
        state = env.reset(key)
        return state.obs, state

    def step(key, state, action, task):
        del key
        after = _as_before(env.step(state, action), state)
        gained = jnp.asarray(reward(task, state, action, after), jnp.result_type(float))
        return after.obs, after, gained, after.done > 0.5, {}

    actions = _env.Box(env.action_size)
    return _env.Environment(reset, step, sample_task, actions, horizon)


def half_cheetah_direction(
    *, horizon: int = 200, backend: BraxBackend = "generalized"
) -> _env.Environment:
    """A cheetah that must run forwards or backwards; the task is +1 or -1.

    The reward is the velocity in that direction minus 0.05 times the squared action.
    Brax's simulator is not the paper's MuJoCo: returns are comparable only within it.

    References:
      Finn et al. 2017, Section 5.3, and `HalfCheetahEnvRandDirec` in
      https://github.com/cbfinn/maml_rl.
    """

    def reward(direction, before, action, after):
        del before
        return direction * after.metrics["x_velocity"] - 0.05 * jnp.sum(action**2)

    def sample_task(key):
        return jax.random.rademacher(key, (), jnp.result_type(float))

    return from_brax(
        _brax("halfcheetah", backend), sample_task, reward, horizon=horizon
    )


def half_cheetah_velocity(
    *, horizon: int = 200, backend: BraxBackend = "generalized"
) -> _env.Environment:
    """A cheetah that must run at a target velocity, the task, uniform in [0, 2].

    The reward is minus the distance from it, minus 0.05 times the squared action.

    References:
      Finn et al. 2017, Section 5.3, and `HalfCheetahEnvRand` in
      https://github.com/cbfinn/maml_rl.
    """

    def reward(velocity, before, action, after):
        del before
        away = jnp.abs(after.metrics["x_velocity"] - velocity)
        return -away - 0.05 * jnp.sum(action**2)

    sample_task = lambda key: jax.random.uniform(key, maxval=2.0)
    return from_brax(
        _brax("halfcheetah", backend), sample_task, reward, horizon=horizon
    )


def ant_velocity(
    *, horizon: int = 200, backend: BraxBackend = "generalized"
) -> _env.Environment:
    """An ant that must run at a target velocity, the task, uniform in [0, 3].

    The reward is 1 minus the distance from it, minus 0.005 times the squared action,
    plus 0.05 for being upright.

    References:
      Finn et al. 2017, Section 5.3, and `AntEnvRand` in
      https://github.com/cbfinn/maml_rl.
    """

    def reward(velocity, before, action, after):
        del before
        away = jnp.abs(after.metrics["x_velocity"] - velocity)
        return 1.05 - away - 0.005 * jnp.sum(action**2)

    sample_task = lambda key: jax.random.uniform(key, maxval=3.0)
    return from_brax(_brax("ant", backend), sample_task, reward, horizon=horizon)


def _brax(name, backend):
    _checks.check_choice("backend", backend, get_args(BraxBackend))
    try:
        from brax import envs  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("Locomotion requires brax: pip install brax") from error
    return envs.get_environment(name, backend=backend)


def _actions(space):
    """Converts a gymnax space to `Box` or `Discrete`."""
    if hasattr(space, "n"):
        return _env.Discrete(int(space.n))
    low, high = (jnp.unique(jnp.asarray(x)) for x in (space.low, space.high))
    if len(space.shape) > 1 or low.size != 1 or high.size != 1:
        raise ValueError(
            f"`env` must have one range for all actions, in one axis, got {space}. "
            "Rescale them in a wrapper."
        )
    return _env.Box(*space.shape or (1,), low=float(low[0]), high=float(high[0]))


def _as_before(after, before):
    """`after` in the dtypes of `before`: these libraries mix in Python numbers."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.result_type(b)), after, before)
