"""Comparisons of optimizers: their losses, updates and paths."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import _axes, training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))


def optimizer_curves(
    curves: Mapping[str, Any] | str | os.PathLike[str],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the losses of optimizers over updates: means with 95 % bands.

    The first optimizer is highlighted: dark, with its median dotted.

    Args:
      curves: name -> result of `jaxmeta.training.evaluate_optimizer`, or losses
        [N, T + 1] on N problems; or a tested run folder, or the dict under `optimizers`
        in its `summary.json`.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if there are no curves.
      ImportError: if matplotlib is not installed.

    Example:
      >>> loss = {"mean": [2.0, 1.0], "half_width": [0.5, 0.25], "median": [2.0, 0.5]}
      >>> ax = optimizer_curves({"learned": {"loss": loss}})
      >>> print(ax.lines[0].get_label(), ax.lines[0].get_ydata())
      learned [2. 1.]
    """
    is_run = isinstance(curves, str | os.PathLike)
    of_each: Any = _axes.read_test(curves)["optimizers"] if is_run else curves
    if not of_each:
        raise ValueError("`curves` must have at least one optimizer, got none.")
    ax = _axes.figure(width=7).subplots() if ax is None else ax
    drawn = []
    for i, (name, found) in enumerate(of_each.items()):
        mean, half_width, median = _numbers(found)
        color, style = _look(i, len(of_each))
        steps = np.arange(len(mean))
        rate = found.get("rate") if isinstance(found, Mapping) else None
        label = name if rate is None else f"{name}, rate {rate:g}"
        ax.plot(steps, mean, color=color, linestyle=style, label=label)
        ax.fill_between(
            steps, mean - half_width, mean + half_width, color=color, alpha=0.15, lw=0
        )
        drawn.append(mean)
        if not i:
            ax.plot(steps, median, ":", color=color, label=f"{name}, median")
            drawn.append(median)
    ax.set_xlabel("updates")
    # A diverging baseline must not squeeze the others.
    best = min(np.nanmax(curve) for curve in drawn)
    lowest = min(np.nanmin(curve[curve > 0], initial=np.inf) for curve in drawn)
    _axes.finish(ax, "loss", drawn, loc="center left", bbox_to_anchor=(1, 0.5))
    if np.isfinite(lowest):
        ax.set_ylim(lowest * 0.7, best * 2)
    return ax


def horizon_sweep(
    curves: Mapping[str, Any],
    *,
    horizon: int | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws losses against the number of updates, far beyond the trained horizon.

    Both axes are logarithmic. Each point is the mean over runs and over the last tenth
    of the updates up to it, which averages out minibatch noise.

    Args:
      curves: as for `optimizer_curves`, by name; the runs may differ in length.
      horizon: meta-training horizon, marked by a vertical line.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if there are no curves.
      ImportError: if matplotlib is not installed.

    Example:
      >>> loss = {"mean": [2.0, 1.0, 0.5], "half_width": [0] * 3, "median": [0] * 3}
      >>> ax = horizon_sweep({"learned": {"loss": loss}}, horizon=1)
      >>> print(ax.lines[0].get_xdata(), ax.lines[0].get_ydata())
      [1 2] [1.  0.5]
    """
    if not curves:
        raise ValueError("`curves` must have at least one optimizer, got none.")
    ax = _axes.figure(width=7).subplots() if ax is None else ax
    drawn = []
    for i, (name, found) in enumerate(curves.items()):
        mean, _, _ = _numbers(found)
        # 60 points, evenly spaced on the log axis; integers repeat at its start.
        ends = np.unique(np.geomspace(1, len(mean) - 1, 60).astype(int))
        smooth = np.array([mean[end - end // 10 : end + 1].mean() for end in ends])
        color, style = _look(i, len(curves))
        ax.plot(ends, smooth, color=color, linestyle=style, label=name)
        drawn.append(smooth)
    if horizon is not None:
        ax.axvline(horizon, color="0.6", lw=1, label="meta-trained horizon")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("updates")
    _axes.finish(ax, "loss", drawn, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def width_depth_grid(
    losses: Mapping[str, Any],
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws final losses on networks of several widths and depths.

    Args:
      losses: optimizer name -> [D, W].
      widths: [W], units per hidden layer.
      depths: [D], hidden layers; each has its own markers.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if losses do not have shape [D, W], or there are none.
      ImportError: if matplotlib is not installed.

    Example:
      >>> ax = width_depth_grid({"learned": [[0.4, 0.3], [0.6, 0.5]]}, [5, 20], [1, 2])
      >>> [line.get_label() for line in ax.lines]
      ['learned, 1 layer', 'learned, 2 layers']
    """
    if not losses:
        raise ValueError("`losses` must have at least one optimizer, got none.")
    ax = _axes.figure(width=7).subplots() if ax is None else ax
    for i, (name, of_optimizer) in enumerate(losses.items()):
        of_optimizer = np.asarray(of_optimizer, float)
        if of_optimizer.shape != (len(depths), len(widths)):
            raise ValueError(
                f"`losses` of {name!r} must have shape [D, W], "
                f"{(len(depths), len(widths))}, got {of_optimizer.shape}."
            )
        color, style = _look(i, len(losses))
        for depth, row, marker in zip(depths, of_optimizer, _markers(), strict=False):
            label = f"{name}, {depth} layer{'s' * (depth > 1)}"
            ax.plot(widths, row, color=color, linestyle=style, label=label, **marker)
    ax.set_xlabel("units per hidden layer")
    rows = [row for found in losses.values() for row in np.asarray(found, float)]
    _axes.finish(ax, "loss", rows, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def update_against_gradient(
    responses: training.UpdateResponses | Mapping[str, Any] | str | os.PathLike[str],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a coordinate's update against its gradient, along runs.

    One line per number of earlier updates: the median over runs, with a band from the
    first to the third quartile. A straight line through the origin is gradient descent,
    with minus the learning rate as slope; a step is a sign rule, or clipping; an offset
    from the origin is momentum.

    Args:
      responses: result of `jaxmeta.training.update_responses`; or a tested run folder,
        or the dict under `responses` in its `summary.json`.
      ax: axes to draw on; None makes a figure.

    Raises:
      ImportError: if matplotlib is not installed.

    Example:
      >>> responses = {"steps": [0, 9], "gradients": [-1.0, 1.0],
      ...              "updates": [[[0.1, -0.1], [0.2, -0.2]]]}
      >>> ax = update_against_gradient(responses)
      >>> print(ax.lines[1].get_label(), ax.lines[1].get_ydata())
      after 9 updates [ 0.2 -0.2]
    """
    told: Any = responses
    if isinstance(responses, str | os.PathLike):
        told = _axes.read_test(responses)["responses"]
    elif not isinstance(responses, Mapping):
        told = responses._asdict()
    gradients = np.asarray(told["gradients"], float)
    updates = np.asarray(told["updates"], float)
    order = np.argsort(gradients)
    ax = _axes.figure(width=6).subplots() if ax is None else ax
    steps = np.asarray(told["steps"]).tolist()
    for i, step in enumerate(steps):
        low, middle, high = np.percentile(updates[:, i, order], [25, 50, 75], axis=0)
        color, style = _look(i, len(steps))
        label = f"after {step} update{'s' * (step != 1)}"
        ax.plot(gradients[order], middle, color=color, linestyle=style, label=label)
        ax.fill_between(gradients[order], low, high, color=color, alpha=0.15, lw=0)
    ax.axhline(0, color="0.6", lw=0.5, zorder=0)
    if np.all(gradients):
        ax.set_xscale("symlog", linthresh=float(np.min(np.abs(gradients))))
    ax.set_xlabel("gradient of the coordinate")
    _axes.finish(ax, "its update")
    return ax


def optimizer_paths(
    loss: Callable[[jax.Array], jax.Array],
    paths: Mapping[str, "jax.typing.ArrayLike"],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the paths of optimizers in a plane, over contour lines of the loss.

    Args:
      loss: `(params [2]) -> scalar`.
      paths: optimizer name -> parameters [K + 1, 2], before and after each update.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if there are no paths, or they are not two-dimensional.
      ImportError: if matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> paths = {"descent": jnp.array([[1.0, 2.0], [0.5, 1.0], [0.25, 0.5]])}
      >>> ax = optimizer_paths(lambda x: jnp.sum(x**2), paths)
      >>> print(ax.lines[0].get_label(), ax.lines[0].get_xdata())
      descent [1.   0.5  0.25]
    """
    ways = {name: np.asarray(path, float) for name, path in paths.items()}
    wrong = {name: x.shape for name, x in ways.items() if x.shape[1:] != (2,)}
    if wrong or not ways:
        raise ValueError(
            f"`paths` must have at least one optimizer, [K + 1, 2], got {wrong}."
        )
    ax = _axes.figure().subplots() if ax is None else ax
    places = np.concatenate(list(ways.values()))
    places = places[np.isfinite(places).all(1)]
    low, high = places.min(0), places.max(0)
    reach = 0.15 * np.maximum(high - low, 1e-6)
    x, y = (
        np.linspace(a, b, 80) for a, b in zip(low - reach, high + reach, strict=True)
    )
    grid = np.stack(np.meshgrid(x, y), -1)  # [80, 80, 2]
    heights = np.asarray(jax.vmap(jax.vmap(loss))(jnp.asarray(grid)))
    # Levels at quantiles, so that a flat valley has as many lines as its walls.
    levels = np.unique(np.quantile(heights, np.linspace(0.02, 0.98, 14)))
    ax.contour(x, y, heights, levels, colors="0.8", linewidths=0.8)
    for i, (name, path) in enumerate(ways.items()):
        color, style = _look(i, len(ways))
        ax.plot(*path.T, color=color, linestyle=style, label=name, marker=".")
        ax.plot(*path[0], "o", color="black", markersize=5, label="_nolegend_")
    ax.set_xlabel("first parameter")
    _axes.finish(ax, "second parameter")
    ax.grid(False)
    return ax


def _look(i, count):
    """Color and line style: dark for the first, greys for the others."""
    if not i:
        return _axes.DARK, "-"
    grey = str(0.2 + 0.5 * (i - 1) / max(1, count - 2))
    return grey, _STYLES[(i - 1) % len(_STYLES)]


def _markers():
    return ({"marker": marker, "markersize": 4} for marker in "os^vDP*X")


def _numbers(found):
    if isinstance(found, Mapping):
        loss = found["loss"]
        return tuple(
            np.asarray(loss[k], float) for k in ("mean", "half_width", "median")
        )
    if not hasattr(found, "at_step"):
        found = training.LossCurves(jnp.asarray(found))
    at_step = found.at_step
    return tuple(
        np.asarray(x) for x in (at_step.mean, at_step.half_width, found.median)
    )
