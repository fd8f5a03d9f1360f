"""Small environments and policies that several test files share."""

import jax
import jax.numpy as jnp
import optax

import jaxmeta as jm

STATES, ACTIONS, HORIZON = 3, 2, 3


def table_policy(num_states=STATES, num_actions=ACTIONS):
    """Logits in a table: a policy for one-hot observations."""

    def init(key, observations):
        del observations
        return jax.random.normal(key, (num_states, num_actions))

    return jm.rl.categorical_policy(jm.Model(init, lambda w, x: x @ w))


def tabular_learner(**options):
    """MAML on small tables without what biases or rescales gradients."""
    env = jm.rl.tabular(STATES, ACTIONS, horizon=HORIZON)
    options = {
        "inner_tx": optax.sgd(0.5),
        "num_episodes": 4,
        "baseline": None,
        "standardize": False,
        "average_over": "episodes",
    } | options
    return env, jm.rl.maml(env, table_policy(), **options)


def navigation_learner(hidden=(8,), horizon=6, **options):
    """MAML of a small network on short walks."""
    env = jm.rl.navigation(horizon=horizon)
    policy = jm.rl.gaussian_policy(jm.models.MLP([*hidden, 2], activation=jnp.tanh))
    options = {"inner_tx": optax.sgd(0.1), "num_episodes": 3} | options
    return env, jm.rl.maml(env, policy, **options)


POLICY_LEARNERS = {
    "policy": navigation_learner,
    "policy, first order": lambda: navigation_learner(first_order=True),
    "policy, low variance, two steps": lambda: navigation_learner(
        surrogate="low-variance", inner_steps=2
    ),
    "policy of tables": tabular_learner,
    "policy, sampling term": lambda: tabular_learner(
        surrogate="log-likelihood", sampling_term=1.0
    ),
}
