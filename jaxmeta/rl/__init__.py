"""Meta-reinforcement learning: environments, policies and learners of policies.

A task is an environment's parameters. `maml` makes of an `Environment` and a `Policy`
a learner like all others: `estimators.over_tasks`, `training.make_train_step`,
`training.evaluate` and `training.fit` take it as it is. `ppo` and `trpo` are estimators
that update on a batch of tasks; follow them by `optax.sgd(1.0)`.

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
    ant_velocity as ant_velocity,
    from_brax as from_brax,
    from_gymnax as from_gymnax,
    half_cheetah_direction as half_cheetah_direction,
    half_cheetah_velocity as half_cheetah_velocity,
)
from jaxmeta.rl._bandits import bandit as bandit
from jaxmeta.rl._baseline import linear_baseline as linear_baseline
from jaxmeta.rl._env import (
    Box as Box,
    Discrete as Discrete,
    Environment as Environment,
)
from jaxmeta.rl._loop import (
    AdaptationInfo as AdaptationInfo,
    PolicyInfo as PolicyInfo,
    PolicyLoop as PolicyLoop,
    Samples as Samples,
)
from jaxmeta.rl._maml import PolicyLearner as PolicyLearner, maml as maml
from jaxmeta.rl._navigation import navigation as navigation
from jaxmeta.rl._policies import (
    Categorical as Categorical,
    Gaussian as Gaussian,
    GaussianParams as GaussianParams,
    Policy as Policy,
    categorical_policy as categorical_policy,
    gaussian_policy as gaussian_policy,
)
from jaxmeta.rl._ppo import PpoInfo as PpoInfo, ppo as ppo
from jaxmeta.rl._returns import (
    discounted_sums as discounted_sums,
    generalized_advantages as generalized_advantages,
)
from jaxmeta.rl._rollout import (
    Rollout as Rollout,
    mean_return as mean_return,
    rollout as rollout,
)
from jaxmeta.rl._surrogates import Batch as Batch, objective as objective
from jaxmeta.rl._tabular import (
    TabularTask as TabularTask,
    action_values as action_values,
    expected_return as expected_return,
    tabular as tabular,
)
from jaxmeta.rl._trpo import TrpoInfo as TrpoInfo, trpo as trpo
