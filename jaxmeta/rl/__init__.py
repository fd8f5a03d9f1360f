"""Meta-reinforcement learning: environments, policies and policy learners.

A task is an environment's parameters. `maml` turns an `Environment` and a `Policy` into
a learner like any other, for `estimators.over_tasks`, `training.make_train_step`,
`training.evaluate` and `training.fit`. `ppo` and `trpo` are meta-steps of their own, in
place of `training.make_train_step`.

Example:
  >>> import jax, optax, jaxmeta as jm
  >>> env = jm.rl.navigation(horizon=5)
  >>> policy = jm.rl.gaussian_policy(jm.models.MLP([8, 2]))
  >>> learner = jm.rl.maml(env, policy, inner_tx=optax.sgd(0.5), num_episodes=3)
  >>> estimator = jm.estimators.over_tasks(learner, env.sample_task, num_tasks=4)
  >>> init, step = jm.training.make_train_step(estimator, optax.adam(1e-2))
  >>> state, info = jax.jit(step)(init(jax.random.key(0)))
  >>> info.metrics["return"].shape
  (4,)
"""

from jaxmeta.rl._adapters import (
    ant_velocity,
    from_brax,
    from_gymnax,
    half_cheetah_direction,
    half_cheetah_velocity,
)
from jaxmeta.rl._bandits import bandit
from jaxmeta.rl._baseline import linear_baseline
from jaxmeta.rl._env import (
    Box,
    Discrete,
    Environment,
)
from jaxmeta.rl._loop import (
    AdaptationInfo,
    PolicyInfo,
    PolicyLoop,
    Samples,
)
from jaxmeta.rl._maml import PolicyLearner, maml
from jaxmeta.rl._navigation import navigation
from jaxmeta.rl._policies import (
    Categorical,
    Gaussian,
    GaussianParams,
    Policy,
    categorical_policy,
    gaussian_policy,
)
from jaxmeta.rl._ppo import PpoInfo, ppo
from jaxmeta.rl._returns import (
    discounted_sums,
    generalized_advantages,
)
from jaxmeta.rl._rollout import (
    Rollout,
    mean_return,
    rollout,
)
from jaxmeta.rl._surrogates import Batch, objective
from jaxmeta.rl._tabular import (
    TabularTask,
    action_values,
    expected_return,
    tabular,
)
from jaxmeta.rl._trpo import TrpoInfo, trpo

__all__ = [
    "AdaptationInfo",
    "Batch",
    "Box",
    "Categorical",
    "Discrete",
    "Environment",
    "Gaussian",
    "GaussianParams",
    "Policy",
    "PolicyInfo",
    "PolicyLearner",
    "PolicyLoop",
    "PpoInfo",
    "Rollout",
    "Samples",
    "TabularTask",
    "TrpoInfo",
    "action_values",
    "ant_velocity",
    "bandit",
    "categorical_policy",
    "discounted_sums",
    "expected_return",
    "from_brax",
    "from_gymnax",
    "gaussian_policy",
    "generalized_advantages",
    "half_cheetah_direction",
    "half_cheetah_velocity",
    "linear_baseline",
    "maml",
    "mean_return",
    "navigation",
    "objective",
    "ppo",
    "rollout",
    "tabular",
    "trpo",
]
