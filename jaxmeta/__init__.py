"""jaxmeta: functional meta-learning in JAX.

  maml, reptile, anil, boil, meta_sgd, maml_plus_plus, cavia, imaml, meta_curvature,
  meta_lstm, proto_maml; prototypical, matching, siamese, relation, ridge (r2d2),
  svm (metaoptnet), subspace (dsn), feat
                      learners: `MetaLearner`, five pure functions of one task
  losses, models      building blocks of learners
  optimizers          rules for inner loops, and learned optimizers: `LearnedOptimizer`
  tasks               `sample_task(key) -> Task`: sinusoid, glyphs, few_shot, ...
  problems            objectives for optimizers: quadratics, classification, ...
  estimators          meta-gradients: over_tasks for learners; bptt, truncated_bptt, es,
                      pes, imitation for learned optimizers
  rl                  meta-reinforcement learning: environments, policies, maml, ppo,
                      trpo
  training            make_train_step, evaluate, evaluate_optimizer, fit, save, load
  plots               learning, adaptation and loss curves, sheets of tasks
  testing             check_learner: tests your own learner against the contract
  recipes, runs       named experiments and their run folders
  report              an HTML report of runs

Example:
  >>> import jax, optax, jaxmeta as jm
  >>> sample_task = jm.tasks.sinusoid(shots=10, queries=10)
  >>> learner = jm.maml(jm.models.MLP([40, 40, 1]), jm.losses.squared_error,
  ...                   inner_tx=optax.sgd(0.01), inner_steps=1)
  >>> estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=25)
  >>> init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
  >>> state, info = jax.jit(step)(init(jax.random.key(0)))
  >>> info.loss.shape
  (25,)
"""

import importlib as _importlib
from importlib import metadata as _metadata

from jaxmeta import (
    estimators as estimators,
    learners as learners,
    losses as losses,
    models as models,
    optimizers as optimizers,
    plots as plots,
    problems as problems,
    rl as rl,
    tasks as tasks,
    testing as testing,
    training as training,
)
from jaxmeta.base import (
    Adapted as Adapted,
    AdaptInfo as AdaptInfo,
    EvalInfo as EvalInfo,
    Examples as Examples,
    GradientEstimator as GradientEstimator,
    Info as Info,
    LearnedOptimizer as LearnedOptimizer,
    MetaGradInfo as MetaGradInfo,
    MetaLearner as MetaLearner,
    Model as Model,
    OptimizationProblem as OptimizationProblem,
    Task as Task,
    TaskStream as TaskStream,
    TrainState as TrainState,
)
from jaxmeta.learners import (
    anil as anil,
    boil as boil,
    cavia as cavia,
    dsn as dsn,
    feat as feat,
    imaml as imaml,
    maml as maml,
    maml_plus_plus as maml_plus_plus,
    matching as matching,
    meta_curvature as meta_curvature,
    meta_lstm as meta_lstm,
    meta_sgd as meta_sgd,
    metaoptnet as metaoptnet,
    proto_maml as proto_maml,
    prototypical as prototypical,
    r2d2 as r2d2,
    relation as relation,
    reptile as reptile,
    ridge as ridge,
    siamese as siamese,
    subspace as subspace,
    svm as svm,
)

__version__ = _metadata.version("jaxmeta")


def __getattr__(name: str):
    """Imports rarely needed modules on first access."""
    if name in ("cli", "recipes", "report", "runs"):
        return _importlib.import_module(f"jaxmeta.{name}")
    raise AttributeError(f"module 'jaxmeta' has no attribute {name!r}")
