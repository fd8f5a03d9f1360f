"""Meta-training and evaluation."""

from jaxmeta.training._checkpoint import (
    Checkpoints as Checkpoints,
    load as load,
    open_checkpoints as open_checkpoints,
    save as save,
)
from jaxmeta.training._evaluate import (
    Evaluation as Evaluation,
    MeanWithInterval as MeanWithInterval,
    evaluate as evaluate,
    mean_with_interval as mean_with_interval,
)
from jaxmeta.training._lock import locked as locked
from jaxmeta.training._loop import (
    DivergedError as DivergedError,
    FitResult as FitResult,
    Report as Report,
    check_counts as check_counts,
    fit as fit,
    read_metrics as read_metrics,
)
from jaxmeta.training._mesh import task_mesh as task_mesh
from jaxmeta.training._optimizers import (
    LossCurves as LossCurves,
    Tuned as Tuned,
    evaluate_optimizer as evaluate_optimizer,
    tune as tune,
)
from jaxmeta.training._responses import (
    UpdateResponses as UpdateResponses,
    update_responses as update_responses,
)
from jaxmeta.training._step import (
    TrainStep as TrainStep,
    alternate as alternate,
    make_train_step as make_train_step,
)
