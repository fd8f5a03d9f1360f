"""Two-dimensional navigation.

References:
  Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
  Networks", ICML 2017, Section 5.3. https://arxiv.org/abs/1703.03400
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.rl import _env

STEP = 0.1  # the maximum move along an axis
REACHED = 0.01  # a goal this close along both axes ends the episode


def navigation(
    variant: Literal["released", "paper"] = "released", *, horizon: int = 100
) -> _env.Environment:
    """A point in the plane that must reach a goal it cannot observe.

    The point starts at the origin and observes its position; an action in [-1, 1]^2
    moves it by up to 0.1 along each axis. The task is the goal, uniform in
    [-0.5, 0.5]^2; the episode ends within 0.01 of it along both axes.

    Args:
      variant: "released" is the authors' code: the reward is minus the distance to the
        goal. Their results (-40 before adaptation) are for this variant. "paper" is the
        text: minus the squared distance. Static.
      horizon: H. Static.

    Raises:
      ValueError: if `variant` is unknown or `horizon` is not a positive int.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> env, key = navigation(), jax.random.key(0)
      >>> goal = jnp.array([0.1, 0.5])
      >>> _, state = env.reset(key, goal)
      >>> position, _, reward, done, _ = env.step(key, state, jnp.array([1, 2]), goal)
      >>> print(position, reward, done)
      [0.1 0.1] -0.4 False

    References:
      Finn et al. 2017, Section 5.3; `PointEnvRandGoal` under `normalize` in
      https://github.com/cbfinn/maml_rl.
    """
    _checks.check_choice("variant", variant, ("released", "paper"))
    _checks.check_int("horizon", horizon)

    def reset(key, goal):
        del key
        position = jnp.zeros_like(goal)
        return position, position

    def step(key, position, action, goal):
        del key
        position = position + STEP * jnp.clip(action, -1, 1).astype(position.dtype)
        squared = jnp.sum((position - goal) ** 2)
        reward = -squared if variant == "paper" else -jnp.sqrt(squared)
        done = jnp.all(jnp.abs(position - goal) < REACHED)
        return position, position, reward, done, {}

    def sample_task(key):
        return jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)

    return _env.Environment(reset, step, sample_task, _env.Box(2), horizon)
