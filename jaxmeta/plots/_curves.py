"""Curves over meta-steps and over inner steps."""

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmeta import _axes, training

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning_curve(
    records: Any,
    *,
    metric: str = "loss",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a metric over meta-training: a training curve and validation points.

    A long run also shows a running mean over its records. Several runs (seeds) show
    their mean, at the steps they share, and a band from the lowest run to the highest.

    Args:
      records: a run folder; or a run's records, from `jaxmeta.training.read_metrics`;
        or an array [S, ...] with a value per meta-step, e.g. `.loss` of the infos that
        `lax.scan` over steps stacks, averaged over its other axes. Or a list of such,
        one per run.
      metric: metric name; accuracies are shown in %. A loss that spans more than a
        factor of ten gets a logarithmic axis.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if there are no records, or the runs share no step with this metric.
      OSError: if a run folder has no records.
      ImportError: if matplotlib is not installed.

    Example:
      >>> records = [{"step": 10, "loss": 4.0, "validation_loss": 3.0},
      ...            {"step": 20, "loss": 2.0, "validation_loss": 2.5}]
      >>> for line in learning_curve(records).lines:
      ...     print(line.get_label(), line.get_ydata())
      training [4. 2.]
      validation [3.  2.5]
    """
    runs = _as_runs(records, metric)
    if not runs or not all(runs):
        raise ValueError("`records` is empty: nothing was logged yet.")
    curves = [_align(runs, metric), _align(runs, f"validation_{metric}")]
    if not any(steps for steps, _ in curves):
        found = sorted(set().union(*(record for run in runs for record in run)))
        raise ValueError(
            f"The runs share no step with the `metric` {metric!r}; they have {found}."
        )
    ax = _axes.figure().subplots() if ax is None else ax
    of_runs = f", mean of {len(runs)} runs" if len(runs) > 1 else ""
    for (steps, values), name, style, color in zip(
        curves,
        ("training", "validation"),
        ("-", "o--"),
        (_axes.DARK, _axes.LIGHT),
        strict=True,
    ):
        if not steps:
            continue
        # A window of about 4 % of the records; none below 50.
        reach = len(steps) // 50 if name == "training" and not of_runs else 0
        if reach:
            ax.plot(steps, values[0], color="0.7", linewidth=1, label=name)
            name += f", running mean of {2 * reach + 1} records"
            values = _running_mean(values[0], reach)[None]
        edges = (values.min(0), values.max(0)) if of_runs else None
        _draw_curve(ax, steps, values.mean(0), edges, name + of_runs, style, color)
    ax.set_xlabel("meta-steps")
    ax.locator_params(axis="x", nbins=5)  # Labels in thousands are long.
    ax.xaxis.set_major_formatter("{x:,.0f}")
    title = "bands from the lowest run to the highest" if of_runs else None
    _axes.finish(ax, metric, [values.ravel() for _, values in curves], title=title)
    return ax


def adaptation_curve(
    evaluation: training.Evaluation | Mapping[str, Any] | str | os.PathLike[str],
    *,
    metric: str = "loss",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a metric over inner steps 0 ... K: means with 95 % bands over tasks.

    Args:
      evaluation: result of `jaxmeta.training.evaluate`; or a tested run folder, or the
        dict under `test` in its `summary.json`, with its inductive curve if any, and
        that of the initial meta-parameters, under `untrained`. Or name -> such for each
        learner to compare, without these.
      metric: metric name, leaves [K + 1]; accuracies are shown in %.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if an evaluation has no such metric.
      OSError: if a run folder has no `summary.json`.
      ImportError: if matplotlib is not installed.

    Example:
      >>> loss = {"mean": [3.0, 1.0, 0.5], "half_width": [0.5, 0.25, 0.125]}
      >>> ax = adaptation_curve({"num_tasks": 100, "loss": loss})
      >>> print(ax.lines[0].get_xdata(), ax.lines[0].get_ydata())
      [0 1 2] [3.  1.  0.5]
    """
    is_one = not _is_of_several(evaluation)
    evaluations: Any = {"": evaluation} if is_one else evaluation
    tables = {name: _as_table(found, metric) for name, found in evaluations.items()}
    curves = {name: table[metric] for name, table in tables.items()}
    counts = {table["num_tasks"] for table in tables.values() if "num_tasks" in table}
    label = "mean and 95 % interval"
    if len(counts) == 1:  # The dict under `inductive` has no `num_tasks`.
        label += f" over {counts.pop():,} tasks"
    title = label
    if is_one:
        beside = {
            name: tables[""][key][metric]
            for key, name in _BESIDE.items()
            if metric in tables[""].get(key, {})
        }
        first = "transductive" if "inductive" in beside else "meta-trained"
        curves = {first if beside else label: curves[""]} | beside
        title = label if beside else None
    ax = _axes.figure().subplots() if ax is None else ax
    drawn = []
    styles = itertools.cycle(("o-", "s--", "^-.", "v:", "D-"))
    for (name, curve), style, color in zip(
        curves.items(), styles, _axes.colors(len(curves)), strict=False
    ):
        mean, half_width = (
            _scale(metric, curve[key]) for key in ("mean", "half_width")
        )
        edges = (mean - half_width, mean + half_width)
        _draw_curve(ax, np.arange(len(mean)), mean, edges, name, style, color)
        drawn += edges
    ax.set_xlabel("inner steps")
    ax.locator_params(axis="x", integer=True)
    _axes.finish(ax, metric, drawn, title=title)
    return ax


# What a run's test has beside its main curve.
_BESIDE = {"inductive": "inductive", "untrained": "before meta-training"}


def _as_runs(source, metric):
    """Returns one list of records per run."""
    is_list = isinstance(source, Sequence) and not isinstance(source, str)
    if is_list and not (source and isinstance(source[0], Mapping)):
        return [_as_records(run, metric) for run in source]
    return [_as_records(source, metric)]


def _as_records(run, metric):
    if isinstance(run, str | os.PathLike):
        return training.read_metrics(pathlib.Path(run) / "metrics.jsonl")
    if isinstance(run, Sequence):
        return run
    values = np.asarray(run, float)
    values = values.mean(tuple(range(1, values.ndim)))
    return [{"step": k + 1, metric: value} for k, value in enumerate(values)]


def _is_of_several(evaluation):
    """Whether it is name -> evaluation instead of a single evaluation."""
    is_table = lambda found: isinstance(found, Mapping) and "mean" in found
    return isinstance(evaluation, Mapping) and not any(
        map(is_table, evaluation.values())
    )


def _as_table(found, metric):
    """Returns the table under `test` in `summary.json`, checked to have the metric."""
    if isinstance(found, str | os.PathLike):
        found = _axes.read_test(found)
    if not isinstance(found, Mapping):
        values = {"loss": found.loss, **found.metrics}
        tables = {name: value._asdict() for name, value in values.items()}
        found = {"num_tasks": found.loss.per_task.shape[0], **tables}
    if metric not in found:
        known = [name for name in found if name not in ("num_tasks", *_BESIDE)]
        raise ValueError(f"`metric` {metric!r} was not evaluated, only {known}.")
    return found


def _draw_curve(ax, x, mean, edges, label, style, color):
    """Draws a line and its band `edges`; for a single point, a marker and a bar."""
    if len(x) == 1:
        style = style.strip("-") or "o"
    ax.plot(x, mean, style, color=color, markersize=4, label=label)
    if edges is None:
        return
    if len(x) == 1:
        ax.vlines(x, *edges, color=color)
    ax.fill_between(x, *edges, color=color, alpha=0.25, linewidth=0)


def _scale(metric, values):
    return np.asarray(values, float) * (100 if metric.startswith("accuracy") else 1)


def _align(runs, name):
    """Returns the steps at which all runs have `name`, and its values [runs, S]."""
    tables = [{r["step"]: r[name] for r in run if name in r} for run in runs]
    steps = sorted(set.intersection(*map(set, tables)))
    values = [[table[step] for step in steps] for table in tables]
    return steps, _scale(name.removeprefix("validation_"), values)


def _running_mean(values, reach):
    """Averages `reach` neighbors on either side; at the ends, as many as there are.

    At the beginning equally many on both: losses fall steeply there.
    """
    reaches = [min(reach, k) for k in range(len(values))]
    return np.array([values[k - n : k + n + 1].mean() for k, n in enumerate(reaches)])
