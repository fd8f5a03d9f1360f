"""Environments as pure functions of their parameters, which are the task.

Two letters besides those of `jaxmeta.base`: B episodes, H time steps (the horizon).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta import _checks, base

EnvParams: TypeAlias = base.PyTree
EnvState: TypeAlias = base.PyTree


class Box(NamedTuple):
    """Real actions [size] between `low` and `high`."""

    size: int
    low: float = -1.0
    high: float = 1.0


class Discrete(NamedTuple):
    """Actions 0 ... `size` - 1."""

    size: int


class Environment(NamedTuple):
    """A family of environments, one for each value of the parameters.

    The functions have gymnax's signatures, but no automatic reset: everything after the
    end of an episode is ignored.

    Attributes:
      reset: `(key, params) -> (observation, state)`.
      step: `(key, state, action, params) -> (observation, state, reward, done, info)`,
        `reward` a float and `done` a bool, both []; `info` is ignored.
      sample_task: `(key) -> params`, a task.
      actions: action space of `step`, a `Box` or `Discrete`.
      horizon: H, maximum time steps per episode. Static.

    Example:
      >>> import jax, jaxmeta as jm
      >>> env = jm.rl.navigation()
      >>> goal = env.sample_task(jax.random.key(0))
      >>> observation, state = env.reset(jax.random.key(1), goal)
      >>> print(observation)
      [0. 0.]
    """

    reset: Callable[[jax.Array, EnvParams], tuple[jax.Array, EnvState]]
    step: Callable[..., tuple[jax.Array, EnvState, jax.Array, jax.Array, base.PyTree]]
    sample_task: Callable[[jax.Array], EnvParams]
    actions: Box | Discrete
    horizon: int


def check_environment(env: Environment) -> None:
    """Raises unless `env` has all fields, with a valid horizon and actions."""
    missing = [name for name in Environment._fields if not hasattr(env, name)]
    if missing:
        raise ValueError(
            f"`env` must be a `jaxmeta.rl.Environment`, got {type(env).__name__} "
            f"without {missing}. For gymnax and brax use `jaxmeta.rl.from_gymnax` and "
            "`from_brax`."
        )
    _checks.check_int("horizon", env.horizon)
    if not isinstance(env.actions, Box | Discrete):
        raise ValueError(
            "`actions` must be a `jaxmeta.rl.Box` or `Discrete`, got "
            f"{type(env.actions).__name__}."
        )
    _checks.check_int("actions.size", env.actions.size)
    if isinstance(env.actions, Box) and not env.actions.low < env.actions.high:
        raise ValueError(f"`actions` must have low < high, got {env.actions}.")


def check_step(env: Environment, params: EnvParams) -> None:
    """Raises unless `step` keeps the shapes and dtypes of `reset`.

    Traces both once, with abstract values.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    reset = jax.eval_shape(env.reset, key, params)
    if not isinstance(reset, tuple) or len(reset) != 2:
        raise ValueError(
            f"`reset` must return (observation, state), got {_describe_outputs(reset)}."
        )
    if not isinstance(reset[0], jax.ShapeDtypeStruct):
        raise ValueError(
            "`reset` must return an observation in one array, got "
            f"{type(reset[0]).__name__}. Concatenate its parts in a wrapper."
        )
    if isinstance(env.actions, Box):
        action = jax.ShapeDtypeStruct((env.actions.size,), jnp.result_type(float))
    else:
        action = jax.ShapeDtypeStruct((), jnp.int32)
    outputs = jax.eval_shape(env.step, key, reset[1], action, params)
    if not isinstance(outputs, tuple) or len(outputs) != 5:
        raise ValueError(
            "`step` must return (observation, state, reward, done, info), got "
            f"{_describe_outputs(outputs)}."
        )
    observation, state, reward, done, _ = outputs
    for name, before, after in zip(
        ("observation", "state"), reset, (observation, state), strict=True
    ):
        shapes = [_describe(tree) for tree in (before, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"`step` must keep the shapes and dtypes of the {name} that `reset` "
                f"returns, {shapes[0]}, got {shapes[1]}. Cast the result of `step` "
                "(`x.astype(state.x.dtype)`)."
            )
    is_float = jnp.issubdtype(reward.dtype, jnp.floating)
    if reward.shape != () or not is_float:
        raise ValueError(
            f"`step` must return a reward that is a float scalar, got shape "
            f"{reward.shape} and dtype {reward.dtype}."
        )
    if done.shape != () or done.dtype != jnp.bool_:
        raise ValueError(
            f"`step` must return a `done` that is a bool scalar, got shape "
            f"{done.shape} and dtype {done.dtype}. Compare it: `done > 0.5`."
        )


def _describe_outputs(outputs):
    is_tuple = isinstance(outputs, tuple)
    return f"{len(outputs)} outputs" if is_tuple else f"a {type(outputs).__name__}"


def _describe(tree):
    return {
        jax.tree_util.keystr(path) or "it": f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
