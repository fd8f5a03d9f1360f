"""Loss curves of optimizers side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta import training
from jaxmeta.plots import _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))


def optimizer_curves(
    curves: Mapping[str, training.LossCurves | Mapping[str, Any]],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the losses of optimizers over updates: means, with 95 % bands.

    The first is the one that matters: dark, with its median dotted.

    Args:
      curves: of each optimizer what `jaxmeta.training.evaluate_optimizer` returned; or
        the dict under `optimizers` in a run's `summary.json`.
      ax: where to draw; None makes a figure.

    Raises:
      ValueError: if there are no curves.
      ImportError: without matplotlib.

    Example:
      >>> loss = {"mean": [2.0, 1.0], "interval": [0.5, 0.25], "median": [2.0, 0.5]}
      >>> ax = optimizer_curves({"learned": {"loss": loss}})
      >>> print(ax.lines[0].get_label(), ax.lines[0].get_ydata())
      learned [2. 1.]
    """
    if not curves:
        raise ValueError("`curves` must be of at least one optimizer, got none.")
    ax = _axes.figure(width=7).subplots() if ax is None else ax
    drawn = []
    for i, (name, found) in enumerate(curves.items()):
        mean, interval, median = _numbers(found)
        if not i:
            color, style = _axes.DARK, "-"
        else:
            color = str(0.2 + 0.5 * (i - 1) / max(1, len(curves) - 2))
            style = _STYLES[(i - 1) % len(_STYLES)]
        steps = np.arange(len(mean))
        rate = found.get("rate") if isinstance(found, Mapping) else None
        label = name if rate is None else f"{name}, rate {rate:g}"
        ax.plot(steps, mean, color=color, linestyle=style, label=label)
        ax.fill_between(
            steps, mean - interval, mean + interval, color=color, alpha=0.15, lw=0
        )
        drawn.append(mean)
        if not i:
            ax.plot(steps, median, ":", color=color, label=f"{name}, median")
            drawn.append(median)
    ax.set_xlabel("updates")
    # A baseline that diverges must not squeeze the others.
    best = min(np.nanmax(curve) for curve in drawn)
    lowest = min(np.nanmin(curve[curve > 0], initial=np.inf) for curve in drawn)
    _axes.finish(ax, "loss", drawn, loc="center left", bbox_to_anchor=(1, 0.5))
    if np.isfinite(lowest):
        ax.set_ylim(lowest * 0.7, best * 2)
    return ax


def _numbers(found):
    if isinstance(found, Mapping):
        loss = found["loss"]
        return tuple(np.asarray(loss[k], float) for k in ("mean", "interval", "median"))
    at_step = found.at_step
    return tuple(np.asarray(x) for x in (at_step.mean, at_step.interval, found.median))
