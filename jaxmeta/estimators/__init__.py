"""Estimators of meta-gradients: each returns a `jaxmeta.GradientEstimator`."""

from jaxmeta.estimators._over_tasks import (
    default_chunk as default_chunk,
    over_tasks as over_tasks,
)
