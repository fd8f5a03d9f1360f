"""jaxmeta: functional meta-learning in JAX."""

from importlib import metadata as _metadata

from jaxmeta import (
    estimators as estimators,
    learners as learners,
    losses as losses,
    models as models,
    optimizers as optimizers,
    plots as plots,
    tasks as tasks,
    training as training,
)
from jaxmeta.base import (
    AdaptInfo as AdaptInfo,
    EvalInfo as EvalInfo,
    Examples as Examples,
    GradientEstimator as GradientEstimator,
    LearnedOptimizer as LearnedOptimizer,
    MetaGradInfo as MetaGradInfo,
    MetaLearner as MetaLearner,
    Model as Model,
    OptimizationProblem as OptimizationProblem,
    Task as Task,
    TrainState as TrainState,
)
from jaxmeta.learners import MamlParams as MamlParams, maml as maml

__version__ = _metadata.version("jaxmeta")
