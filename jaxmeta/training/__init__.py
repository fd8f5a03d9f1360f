"""Meta-training and evaluation."""

from jaxmeta.base import TrainStep
from jaxmeta.training._checkpoint import Checkpoints, open_checkpoints
from jaxmeta.training._evaluate import (
    Evaluation,
    MeanWithInterval,
    evaluate,
    mean_with_interval,
)
from jaxmeta.training._evaluate_optimizer import (
    LossCurves,
    Tuned,
    evaluate_optimizer,
    tune,
)
from jaxmeta.training._fit import (
    DivergedError,
    FitResult,
    Report,
    fit,
)
from jaxmeta.training._memory import trim_memory
from jaxmeta.training._mesh import shard_params, task_mesh, use_cpu_devices
from jaxmeta.training._responses import (
    UpdateResponses,
    update_responses,
)
from jaxmeta.training._run_files import read_metrics
from jaxmeta.training._saving import load, load_card, save
from jaxmeta.training._step import alternate, make_train_step
from jaxmeta.training._tensorboard import tensorboard

__all__ = [
    "Checkpoints",
    "DivergedError",
    "Evaluation",
    "FitResult",
    "LossCurves",
    "MeanWithInterval",
    "Report",
    "TrainStep",
    "Tuned",
    "UpdateResponses",
    "alternate",
    "evaluate",
    "evaluate_optimizer",
    "fit",
    "load",
    "load_card",
    "make_train_step",
    "mean_with_interval",
    "open_checkpoints",
    "read_metrics",
    "save",
    "shard_params",
    "task_mesh",
    "tensorboard",
    "trim_memory",
    "tune",
    "update_responses",
    "use_cpu_devices",
]
