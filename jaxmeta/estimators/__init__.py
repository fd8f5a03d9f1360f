"""Estimators of meta-gradients: each returns a `jaxmeta.GradientEstimator`."""

from jaxmeta.estimators._bptt import bptt as bptt, truncated_bptt as truncated_bptt
from jaxmeta.estimators._evolution import (
    EvolutionCarry as EvolutionCarry,
    es as es,
    pes as pes,
)
from jaxmeta.estimators._imitation import (
    ImitationCarry as ImitationCarry,
    imitation as imitation,
)
from jaxmeta.estimators._over_tasks import (
    default_chunk as default_chunk,
    over_tasks as over_tasks,
)
from jaxmeta.estimators._runs import Run as Run, RunInfo as RunInfo
