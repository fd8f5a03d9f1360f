"""Pictures of runs and tasks, by matplotlib (the extra `plots`).

Nothing goes through pyplot: each function draws on `ax`, or on a new
`matplotlib.figure.Figure`, and returns the axes. `ax.figure.savefig(path)` writes the
picture; in a notebook with `%matplotlib inline`, `ax.figure` shows it.
"""

from jaxmeta.plots._curves import (
    adaptation_curve as adaptation_curve,
    learning_curve as learning_curve,
)
from jaxmeta.plots._optimizers import (
    horizon_sweep as horizon_sweep,
    optimizer_curves as optimizer_curves,
    update_against_gradient as update_against_gradient,
    width_depth_grid as width_depth_grid,
)
from jaxmeta.plots._run import plot_run as plot_run
from jaxmeta.plots._sheet import task_sheet as task_sheet
from jaxmeta.plots._trajectories import trajectories as trajectories
