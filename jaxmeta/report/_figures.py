"""The curves of a report."""

from collections.abc import Sequence
from typing import Any

from jaxmeta import _axes, plots, recipes
from jaxmeta.report import _contents


def of_run(contents: _contents.Contents) -> dict[str, Any]:
    """A run's own curves: title -> figure."""
    figures = {
        f"{metric}, over meta-training": _alone(
            plots.learning_curve, contents.records, metric
        )
        for metric in _metrics(contents)
    }
    test = contents.summary.get("test", {})
    if "optimizers" in test:
        return figures | {
            "loss, along runs": plots.optimizer_curves(test["optimizers"]).figure,
            "update against gradient": plots.update_against_gradient(
                test["responses"]
            ).figure,
        }
    if _makes_steps(test):
        figures |= {
            f"{metric}, over inner steps": _alone(plots.adaptation_curve, test, metric)
            for metric in _metrics(contents)
        }
    return figures


def compare(found: Sequence[_contents.Contents]) -> dict[str, Any]:
    """Curves of several runs per figure: title -> figure; none for a single run."""
    if len(found) < 2:
        return {}
    figures = {}
    shared = [m for m in _metrics(found[0]) if all(m in _metrics(c) for c in found)]
    for metric in shared:
        figure = _axes.figure(width=6)
        ax = figure.subplots()
        for contents, color in zip(found, _axes.colors(len(found)), strict=True):
            _draw_validation(ax, contents, metric, color)
        ax.set_xlabel("meta-steps")
        _axes.finish(ax, metric)
        figures[f"{metric}, over meta-training"] = figure
        tests = {c.title: c.summary.get("test", {}) for c in found}
        if all(_makes_steps(test) and metric in test for test in tests.values()):
            figures[f"{metric}, over inner steps"] = _alone(
                plots.adaptation_curve, tests, metric
            )
    return figures


def _draw_validation(ax, contents, metric, color):
    """Draws validation points if any; a run just started has only training records."""
    for name, style in ((f"validation_{metric}", "o-"), (metric, "-")):
        curve = [(r["step"], r[name]) for r in contents.records if name in r]
        if curve:
            steps, values = zip(*curve, strict=True)
            scale = 100 if metric == "accuracy" else 1
            what = "validation" if name != metric else "training"
            label = f"{contents.title}, {what}"
            values = [scale * value for value in values]
            ax.plot(steps, values, style, color=color, markersize=3, label=label)
            return


def _alone(draw, content, metric):
    return draw(content, metric=metric, ax=_axes.figure(width=6).subplots()).figure


def _metrics(contents):
    if isinstance(getattr(contents.run.recipe, "tasks", None), recipes.PolicyTasks):
        return ["return"]
    return [name for name in ("accuracy", "loss") if name in contents.records[0]]


def _makes_steps(test):
    return len(test.get("loss", {}).get("mean", ())) > 1
