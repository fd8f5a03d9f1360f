"""Meta-gradient estimators; each returns a `jaxmeta.GradientEstimator`."""

from jaxmeta.estimators._bptt import bptt, truncated_bptt
from jaxmeta.estimators._evolution import (
    EvolutionCarry,
    es,
    pes,
)
from jaxmeta.estimators._imitation import (
    ImitationCarry,
    imitation,
)
from jaxmeta.estimators._mixture import MixtureCarry, MixtureInfo, mixture
from jaxmeta.estimators._over_tasks import (
    over_stream,
    over_tasks,
)
from jaxmeta.estimators._runs import Run, RunInfo

__all__ = [
    "EvolutionCarry",
    "ImitationCarry",
    "MixtureCarry",
    "MixtureInfo",
    "Run",
    "RunInfo",
    "bptt",
    "es",
    "imitation",
    "mixture",
    "over_stream",
    "over_tasks",
    "pes",
    "truncated_bptt",
]
