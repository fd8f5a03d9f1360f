"""Matplotlib figures of runs and tasks (extra `plots`).

Without pyplot: each function draws on `ax`, or on a new `matplotlib.figure.Figure`, and
returns the axes. `ax.figure.savefig(path)` saves the figure; in a notebook with
`%matplotlib inline`, `ax.figure` shows it.
"""

from jaxmeta.plots._curves import (
    adaptation_curve,
    learning_curve,
)
from jaxmeta.plots._embedding_map import embedding_map
from jaxmeta.plots._optimizers import (
    horizon_sweep,
    optimizer_curves,
    optimizer_paths,
    update_against_gradient,
    width_depth_grid,
)
from jaxmeta.plots._sheet import task_sheet
from jaxmeta.plots._trajectories import trajectories

__all__ = [
    "adaptation_curve",
    "embedding_map",
    "horizon_sweep",
    "learning_curve",
    "optimizer_curves",
    "optimizer_paths",
    "task_sheet",
    "trajectories",
    "update_against_gradient",
    "width_depth_grid",
]
