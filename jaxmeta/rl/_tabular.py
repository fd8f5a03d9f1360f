"""Random finite Markov decision processes, small enough to solve exactly.

References:
  Duan et al., "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
  2016, Section 3.2. https://arxiv.org/abs/1611.02779
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.rl import _env


class TabularTask(NamedTuple):
    """A Markov decision process with S states and A actions."""

    start: jax.Array  # [S] probabilities
    transitions: jax.Array  # [S, A, S] probabilities of the next state
    rewards: jax.Array  # [S, A]


def tabular(
    num_states: int = 10, num_actions: int = 5, *, horizon: int = 10
) -> _env.Environment:
    """Markov decision processes with random transitions and rewards.

    Transitions are uniform on the simplex, rewards normal with mean 1 and standard
    deviation 1, both drawn once per task; episodes start in state 0. The observation is
    the state, one-hot [S]. Duan et al. add noise to each reward; here rewards are
    deterministic, so that returns can be computed exactly.

    Args:
      num_states: S. Static.
      num_actions: A. Static.
      horizon: H. Static.

    Raises:
      ValueError: if a size is not a positive int.

    Example:
      >>> import jax
      >>> env = tabular(num_states=3, num_actions=2)
      >>> task = env.sample_task(jax.random.key(0))
      >>> observation, _ = env.reset(jax.random.key(1), task)
      >>> print(task.transitions.shape, observation)
      (3, 2, 3) [1. 0. 0.]
    """
    sizes = {"num_states": num_states, "num_actions": num_actions, "horizon": horizon}
    for name, value in sizes.items():
        _checks.check_int(name, value)

    def reset(key, task):
        state = _draw(key, task.start)
        return observe(state, task), state

    def step(key, state, action, task):
        following = _draw(key, task.transitions[state, action])
        reward = task.rewards[state, action]
        return observe(following, task), following, reward, jnp.zeros((), bool), {}

    def observe(state, task):
        return jax.nn.one_hot(state, num_states, dtype=task.rewards.dtype)

    def sample_task(key):
        transition_key, reward_key = jax.random.split(key)
        return TabularTask(
            start=jax.nn.one_hot(0, num_states, dtype=jnp.result_type(float)),
            transitions=jax.random.dirichlet(
                transition_key, jnp.ones(num_states), (num_states, num_actions)
            ),
            rewards=1 + jax.random.normal(reward_key, (num_states, num_actions)),
        )

    actions = _env.Discrete(num_actions)
    return _env.Environment(reset, step, sample_task, actions, horizon)


def action_values(
    task: TabularTask, policy: jax.Array, *, horizon: int, discount: float = 1.0
) -> jax.Array:
    r"""Returns the values of actions, [H, S, A], under a policy [S, A].

    .. math::
      Q_t(s, a) = r(s, a) + \gamma \sum_{s'} P(s' \mid s, a)
        \sum_{a'} \pi(a' \mid s') Q_{t+1}(s', a').

    Differentiable in the policy and in the task.

    Example:
      >>> import jax.numpy as jnp
      >>> task = TabularTask(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[0.0, 4.0]]))
      >>> print(action_values(task, jnp.array([[0.5, 0.5]]), horizon=2))
      [[[2. 6.]]
      <BLANKLINE>
       [[0. 4.]]]
    """

    def back(values, _):
        q = task.rewards + discount * task.transitions @ values
        return jnp.sum(policy * q, -1), q

    _, q = jax.lax.scan(back, jnp.zeros_like(task.start), length=horizon)
    return q[::-1]  # The scan goes backwards from the last step.


def expected_return(
    task: TabularTask, policy: jax.Array, *, horizon: int, discount: float = 1.0
) -> jax.Array:
    """Returns the exact expected discounted return, [], of a policy [S, A].

    Example:
      >>> import jax.numpy as jnp
      >>> task = TabularTask(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[0.0, 4.0]]))
      >>> print(expected_return(task, jnp.array([[0.5, 0.5]]), horizon=3))
      6.0
    """
    q = action_values(task, policy, horizon=horizon, discount=discount)
    return task.start @ jnp.sum(policy * q[0], -1)


def _draw(key, probabilities):
    """Draws an index by the cumulative sum, without the logarithm of probabilities."""
    cumulative = jnp.cumsum(probabilities)
    threshold = cumulative[-1] * jax.random.uniform(key, dtype=probabilities.dtype)
    # Rounding must not exceed the last index.
    index = jnp.sum(cumulative <= threshold)
    return jnp.minimum(index, len(probabilities) - 1).astype(jnp.int32)
