"""Pictures of runs and tasks, by matplotlib (`pip install 'jaxmeta[plots]'`).

Nothing goes through pyplot: each function draws on `ax`, or on a new
`matplotlib.figure.Figure`, and returns the axes. `ax.figure.savefig(path)` writes the
picture; in a notebook with `%matplotlib inline`, `ax.figure` shows it.
"""

import json
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.tree_util import Partial

from jaxmeta import _checks, base, training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Apart in lightness too, for grey prints.
_DARK, _LIGHT = "#1b4f8a", "#e08214"


def learning_curve(
    records: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
    *,
    metric: str = "loss",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a metric over meta-training: a training curve and validation points.

    A long run gets a running mean over its records. Several runs (seeds) get their
    mean, at the steps that all of them have, and a band from the least run to the
    greatest.

    Args:
      records: of a run, as `jaxmeta.training.read_metrics` gives them; or one such
        list a run.
      metric: which; an accuracy is shown in %. A loss that spans more than a factor
        of ten gets a logarithmic axis.
      ax: where to draw; None makes a figure.

    Raises:
      ValueError: if there are no records, or the runs share no step with this metric.
      ImportError: without matplotlib.

    Example:
      >>> records = [{"step": 10, "loss": 4.0, "validation_loss": 3.0},
      ...            {"step": 20, "loss": 2.0, "validation_loss": 2.5}]
      >>> for line in learning_curve(records).lines:
      ...     print(line.get_label(), line.get_ydata())
      training [4. 2.]
      validation [3.  2.5]
    """
    is_one = bool(records) and isinstance(records[0], Mapping)
    runs: Any = [records] if is_one else records
    if not runs or not all(runs):
        raise ValueError("`records` is empty: nothing was logged yet.")
    curves = [_align(runs, metric), _align(runs, f"validation_{metric}")]
    if not any(steps for steps, _ in curves):
        found = sorted(set().union(*(record for run in runs for record in run)))
        raise ValueError(
            f"`metric` {metric!r} is at no step that the runs share; they have {found}."
        )
    ax = _figure().subplots() if ax is None else ax
    of_runs = f", mean of {len(runs)} runs" if len(runs) > 1 else ""
    for (steps, values), name, style, color in zip(
        curves, ("training", "validation"), ("-", "o--"), (_DARK, _LIGHT), strict=True
    ):
        if not steps:
            continue
        reach = len(steps) // 50 if name == "training" and not of_runs else 0
        if reach:
            ax.plot(steps, values[0], color="0.7", linewidth=1, label=name)
            name += f", running mean of {2 * reach + 1} records"
            values = _running_mean(values[0], reach)[None]
        edges = (values.min(0), values.max(0)) if of_runs else None
        _draw_curve(ax, steps, values.mean(0), edges, name + of_runs, style, color)
    ax.set_xlabel("meta-steps")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    title = "bands from the least run to the greatest" if of_runs else None
    _finish(ax, metric, [values.ravel() for _, values in curves], title=title)
    return ax


def adaptation_curve(
    evaluation: training.Evaluation | Mapping[str, Any],
    *,
    metric: str = "loss",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a metric over inner steps 0 ... K: means with 95 % bands over tasks.

    Args:
      evaluation: what `jaxmeta.training.evaluate` returned, or the dict under `test` in
        a run's `summary.json`, with its inductive curve if it has one.
      metric: which, leaves [K + 1]; an accuracy is shown in %.
      ax: where to draw; None makes a figure.

    Raises:
      ValueError: if the evaluation has no such metric.
      ImportError: without matplotlib.

    Example:
      >>> loss = {"mean": [3.0, 1.0, 0.5], "interval": [0.5, 0.25, 0.125]}
      >>> ax = adaptation_curve({"num_tasks": 100, "loss": loss})
      >>> print(ax.lines[0].get_xdata(), ax.lines[0].get_ydata())
      [0 1 2] [3.  1.  0.5]
    """
    if not isinstance(evaluation, Mapping):
        found = {"loss": evaluation.loss, **evaluation.metrics}
        num_tasks = evaluation.loss.per_task.shape[0]
        tables = {name: value._asdict() for name, value in found.items()}
        evaluation = {"num_tasks": num_tasks, **tables}
    if metric not in evaluation:
        known = [name for name in evaluation if name not in ("num_tasks", "inductive")]
        raise ValueError(f"`metric` {metric!r} was not evaluated, only {known}.")
    label = "mean and 95 % interval"
    if "num_tasks" in evaluation:  # The dict under `inductive` has none.
        label += f" over {evaluation['num_tasks']:,} tasks"
    curves, title = {label: evaluation[metric]}, None
    if metric in (inductive := evaluation.get("inductive", {})):
        curves = {"transductive": evaluation[metric], "inductive": inductive[metric]}
        title = label
    ax = _figure().subplots() if ax is None else ax
    drawn = []
    for (name, curve), style, color in zip(
        curves.items(), ("o-", "s--"), (_DARK, _LIGHT), strict=False
    ):
        mean, interval = (_scale(metric, curve[key]) for key in ("mean", "interval"))
        edges = (mean - interval, mean + interval)
        _draw_curve(ax, np.arange(len(mean)), mean, edges, name, style, color)
        drawn += edges
    ax.set_xlabel("inner steps")
    ax.locator_params(axis="x", integer=True)
    _finish(ax, metric, drawn, title=title)
    return ax


def task_sheet(
    task: base.Task, *, ax: "Axes | None" = None, queries_per_class: int = 5
) -> "Axes":
    """Draws a task: images as a sheet with a row a class, numbers as points.

    A row has the support images of its class, framed, and beside them query images.

    Args:
      task: of images [N, H, W, 1 or 3] and targets one-hot [N, W] or integer [N], or
        of numbers, [N, 1] and [N, 1]. Images in [0, 1] are drawn as they are, others
        scaled to it, all of the task alike.
      ax: where to draw; None makes a figure.
      queries_per_class: how many query images at most.

    Raises:
      ValueError: if the task has other shapes.
      ImportError: without matplotlib.

    Example:
      >>> import jax, jaxmeta as jm
      >>> task = jm.tasks.sinusoid(shots=5, queries=20)(jax.random.key(0))
      >>> [line.get_label() for line in task_sheet(task).lines]
      ['query', 'support']
    """
    _checks.check_task(task)
    _checks.check_int("queries_per_class", queries_per_class)
    shapes = [np.shape(leaf)[1:] for leaf in task.support]
    is_images = len(shapes[0]) == 3 and shapes[0][-1] in (1, 3) and len(shapes[1]) < 2
    if not is_images and any(shape not in ((), (1,)) for shape in shapes):
        raise ValueError(
            "`task` must have image inputs [N, H, W, 1 or 3] and class targets, or "
            f"inputs and targets [N, 1], got [N, ...] with ... = {shapes}."
        )
    is_new = ax is None
    ax = _figure().subplots() if ax is None else ax
    if is_images:
        _draw_sheet(ax, task, queries_per_class)
        if is_new:
            _fit_to_sheets(ax.figure)
        return ax
    points = {"query": (task.query, ".", _LIGHT), "support": (task.support, "o", _DARK)}
    for name, (examples, marker, color) in points.items():
        ax.plot(*map(np.ravel, examples), marker, color=color, label=name)
    ax.set_xlabel("input x")
    # Above the axes: points may be anywhere inside.
    _finish(ax, "target y", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return ax


def plot_run(directory: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Draws a run folder's `learning_curve`, `adaptation_curve` and `tasks`.

    They go to its `plots/` as PNG, each whole or not at all. The adaptation curve needs
    a tested run; `tasks` shows three test tasks.

    Returns:
      The files.

    Raises:
      ValueError: if it is no run folder, has no metrics yet, or is damaged.
      OSError: if it cannot be written.
      ImportError: without matplotlib.
    """
    from jaxmeta import recipes  # Only here: recipes depend on the command line's tyro.

    _figure()  # Without matplotlib, fail first.
    run = recipes.open_run(directory)
    path = run.directory / "metrics.jsonl"
    records = training.read_metrics(path) if path.exists() else []
    if not records:
        raise ValueError(
            f"{run.directory} has no metrics yet: `jaxmeta train {run.name} --out "
            f"{run.directory}` goes on with it."
        )
    metrics = [name for name in ("loss", "accuracy") if name in records[0]]

    def draw_panels(draw, content):
        figure = _figure(width=5 * len(metrics))
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            draw(content, metric=metric, ax=ax)
        loss = run.recipe.tasks.loss.__name__.replace("_", " ")
        axes[0].set_ylabel(f"loss ({loss})")
        figure.suptitle(run.name)
        return figure

    folder = run.directory / "plots"
    paths = [_save(draw_panels(learning_curve, records), folder / "learning_curve.png")]
    if (path := run.directory / "summary.json").exists():
        try:
            summary = json.loads(path.read_text())
            figure = draw_panels(adaptation_curve, summary["test"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read: {error}.") from error
        if published := summary.get("published"):
            note = textwrap.fill(f"published: {published}", 75 * len(metrics))
            figure.supxlabel(note, x=0.01, ha="left", fontsize="small", color="0.3")
        paths.append(_save(figure, folder / "adaptation_curve.png"))
    figure = _draw_tasks(run.recipe)
    figure.suptitle(f"{run.name}: three test tasks")
    return [*paths, _save(figure, folder / "tasks.png")]


def _figure(width: float = 5.0) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib: pip install 'jaxmeta[plots]'"
        ) from error
    return Figure((width, 3.5), layout="constrained")


def _draw_curve(ax, x, mean, edges, label, style, color):
    """Draws a line and its band `edges`, a bar if there is but one point."""
    if len(x) == 1:
        style = style.strip("-") or "o"
    ax.plot(x, mean, style, color=color, markersize=4, label=label)
    if edges is None:
        return
    if len(x) == 1:
        ax.vlines(x, *edges, color=color)
    ax.fill_between(x, *edges, color=color, alpha=0.25, linewidth=0)


def _finish(ax, name, curves=(), **legend):
    """Labels y, adds the legend, and a log axis if the losses of `curves` span it."""
    ax.set_ylabel(f"{name} (%)" if name.startswith("accuracy") else name)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", which="both", color="0.9")
    ax.set_axisbelow(True)
    sizes = {"fontsize": "small", "title_fontsize": "small"}
    ax.legend(frameon=False, handlelength=3, **sizes, **legend)
    finite = [y for curve in curves for y in curve if np.isfinite(y)]
    if name == "loss" and finite and 0 < 10 * min(finite) < max(finite):
        ax.set_yscale("log", subs=[2, 5])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")


def _scale(metric, values):
    return np.asarray(values, float) * (100 if metric.startswith("accuracy") else 1)


def _align(runs, name):
    """Returns the steps at which all runs have `name`, and its values [runs, S]."""
    tables = [{r["step"]: r[name] for r in run if name in r} for run in runs]
    steps = sorted(set.intersection(*map(set, tables)))
    values = [[table[step] for step in steps] for table in tables]
    return steps, _scale(name.removeprefix("validation_"), values)


def _running_mean(values, reach):
    """Averages `reach` neighbours on either side, fewer (equally many) at the ends."""
    reaches = [min(reach, k, len(values) - 1 - k) for k in range(len(values))]
    return np.array([values[k - n : k + n + 1].mean() for k, n in enumerate(reaches)])


def _draw_sheet(ax, task, queries_per_class):
    """Draws the images on one white canvas, and a frame around the support set."""
    from matplotlib.patches import Rectangle

    labels = [np.asarray(examples.targets) for examples in task]
    ways = labels[0].shape[1] if labels[0].ndim == 2 else 1 + max(map(np.max, labels))
    labels = [x.argmax(1) if x.ndim == 2 else x for x in labels]
    images = [np.asarray(examples.inputs, float) for examples in task]
    low = min(0.0, *map(np.min, images))
    high = max(1.0, *map(np.max, images))
    height, width = images[0].shape[1:3]
    gap = max(1, height // 14)

    def draw_block(k, most):
        """Lays out the support (k = 0) or query images, each in white."""
        pixels = (images[k] - low) / (high - low)  # One channel broadcasts to three.
        rows = [pixels[labels[k] == way][:most] for way in range(ways)]
        shape = (ways, gap + height, max(map(len, rows)), gap + width, 3)
        block = np.ones(shape)  # [W, gap + H, N, gap + W, 3]
        for way, row in enumerate(rows):
            block[way, gap:, : len(row), gap:] = row.swapaxes(0, 1)
        block = block.reshape(ways * (gap + height), -1, 3)
        return np.pad(block, [(0, gap), (0, gap), (0, 0)], constant_values=1)

    support, query = draw_block(0, None), draw_block(1, queries_per_class)
    frame, start = support.shape[1], support.shape[1] + 2 * gap
    between = np.ones((len(support), 2 * gap, 3))
    ax.imshow(np.concatenate([support, between, query], axis=1))
    style = {"fill": False, "edgecolor": _LIGHT, "linewidth": 2, "clip_on": False}
    ax.add_patch(Rectangle((-0.5, -0.5), frame, len(support), **style))
    ax.xaxis.tick_top()
    ax.set_xticks([frame / 2, start + query.shape[1] / 2], ["support", "query"])
    ax.set_yticks((gap + height) * (np.arange(ways) + 0.5) + gap / 2, range(ways))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("class")


def _fit_to_sheets(figure):
    """Gives a row of sheets the figure size at which a class is 0.45 inches high."""
    height, width, _ = figure.axes[0].images[0].get_array().shape
    scale = 0.45 * len(figure.axes[0].get_yticks()) / height
    figure.set_size_inches(
        len(figure.axes) * (scale * width + 0.6), scale * height + 0.6
    )


def _draw_tasks(recipe):
    sample_task = recipe.tasks.splits().test
    if not isinstance(sample_task, Partial):  # A Partial's arrays are arguments of jit.
        sample_task = Partial(sample_task)
    sample = jax.jit(lambda sample_task, key: sample_task(key))
    figure = _figure(width=12)
    axes = figure.subplots(1, 3)
    keys = jax.random.split(jax.random.key(recipe.seed), 3)
    for ax, key in zip(axes, keys, strict=True):
        task_sheet(sample(sample_task, key), ax=ax)
    if axes[0].images:
        _fit_to_sheets(figure)
    return figure


def _save(figure, path):
    """Writes whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".tmp")
    figure.savefig(new, format="png", dpi=150)
    os.replace(new, path)
    return path
