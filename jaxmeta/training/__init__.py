"""Meta-training and evaluation."""

from jaxmeta.training._evaluate import (
    Evaluation as Evaluation,
    MeanWithInterval as MeanWithInterval,
    evaluate as evaluate,
    mean_with_interval as mean_with_interval,
)
from jaxmeta.training._mesh import task_mesh as task_mesh
from jaxmeta.training._step import (
    TrainStep as TrainStep,
    make_train_step as make_train_step,
)
