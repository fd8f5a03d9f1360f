"""Plots of a run folder."""

import functools
import os
import pathlib
import textwrap
from typing import TYPE_CHECKING

import jax

from jaxmeta import _axes, _pytrees, base, plots, recipes, rl
from jaxmeta.runs import _build, _folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(directory: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Draws `learning_curve`, `adaptation_curve` and `tasks` into the run's `plots/`.

    The files are PNGs, written atomically. The adaptation curve requires a tested run
    of a learner with inner steps and compares it to the initial meta-parameters;
    `tasks` shows three test tasks. Runs of learned optimizers have `optimizer_curves`
    and `update_against_gradient` instead of these two, runs of policies `trajectories`
    instead of `tasks`.

    Returns:
      The paths of the files.

    Raises:
      ValueError: if it is not a run folder, has no metrics yet, or is damaged.
      OSError: if a file cannot be written.
      ImportError: if matplotlib is not installed.
    """
    _axes.figure()  # Fails early if matplotlib is missing.
    run = _folder.read(directory)
    records = _folder.read_records(run)
    folder = run.directory / "plots"
    of_optimizer = isinstance(run.recipe, recipes.OptimizerRecipe)
    tasks = getattr(run.recipe, "tasks", None)
    of_policy = isinstance(tasks, recipes.PolicyTasks)
    metrics = [name for name in ("loss", "accuracy") if name in records[0]]
    if of_policy:  # The loss is minus the return.
        metrics = ["return"]

    def draw_panels(draw, content):
        figure = _axes.figure(width=5 * len(metrics))
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            draw(content, metric=metric, ax=ax)
        if of_optimizer:
            axes[0].set_ylabel("loss, mean over updates")
        elif not of_policy:
            loss = run.recipe.tasks.loss.__name__.replace("_", " ")
            axes[0].set_ylabel(f"loss ({loss})")
        figure.suptitle(run.name)
        return figure

    def draw_test(test):
        """Returns name -> figure, the main one first."""
        if not of_optimizer and len(test["loss"]["mean"]) == 1:
            return {}  # No inner steps, no curve.
        if not of_optimizer:
            return {"adaptation_curve": draw_panels(plots.adaptation_curve, test)}
        curves = _axes.figure(width=7)
        plots.optimizer_curves(test["optimizers"], ax=curves.subplots())
        curves.suptitle(f"{run.name}, {test['num_problems']:,} problems")
        responses = _axes.figure(width=6)
        plots.update_against_gradient(test["responses"], ax=responses.subplots())
        responses.suptitle(f"{run.name}: the update of one parameter")
        return {"optimizer_curves": curves, "update_against_gradient": responses}

    figures = {"learning_curve": draw_panels(plots.learning_curve, records)}
    if summary := _folder.read_summary(run):
        untrained = {k: v for k, v in summary.items() if k == "untrained"}
        try:
            drawn = draw_test(summary["test"] | untrained)
        except (ValueError, KeyError, TypeError) as error:
            path = run.directory / "summary.json"
            raise ValueError(f"{path} cannot be drawn: {error}.") from error
        if published := summary.get("published"):
            note = textwrap.fill(f"published: {published}", 75 * len(metrics))
            main = next(iter(drawn.values()), figures["learning_curve"])
            main.supxlabel(note, x=0.01, ha="left", fontsize="small", color="0.3")
        figures |= drawn
    if isinstance(tasks, recipes.NavigationTasks):
        figures["trajectories"] = draw_walks(run)
        figures["trajectories"].suptitle(f"{run.name}: three test tasks")
    elif not of_optimizer and not of_policy:
        figures["tasks"] = _draw_tasks(run.recipe)
        figures["tasks"].suptitle(f"{run.name}: three test tasks")
    return [_save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _draw_tasks(recipe):
    # A Partial's arrays are arguments of jit.
    sample_task = _pytrees.as_partial(recipe.tasks.splits().test)
    sample = jax.jit(lambda sample_task, key: sample_task(key))
    figure = _axes.figure(width=12)
    axes = figure.subplots(1, 3)
    keys = jax.random.split(jax.random.key(recipe.seed), 3)
    for ax, key in zip(axes, keys, strict=True):
        plots.task_sheet(sample(sample_task, key), ax=ax)
    if axes[0].images:
        _axes.fit_to_sheets(figure)
    return figure


def draw_walks(run: _folder.Run) -> "Figure":
    """Draws walks to three test goals, before and after adaptation."""
    parts = _build.build(run.recipe)
    meta_params = _folder.best_meta_params(run, parts.like)
    env, learner = run.recipe.tasks.environment, run.recipe.make_learner()
    figure = _axes.figure(width=12)
    keys = jax.random.split(jax.random.key(run.recipe.seed), 3)
    for ax, key in zip(figure.subplots(1, 3), keys, strict=True):
        goal, rollouts = _walk(env, learner, meta_params, key)
        plots.trajectories(rollouts, goal=goal, ax=ax)
    return figure


@functools.partial(jax.jit, static_argnums=(0, 1))
def _walk(env, learner, meta_params, key):
    """Draws a task; rolls out before and after the learner's inner steps."""
    task_key, adapt_key, *keys = jax.random.split(key, 4)
    task = env.sample_task(task_key)
    adapted, _ = learner.adapt(adapt_key, meta_params, task)
    if isinstance(adapted, base.Adapted):  # The inner rule has state.
        adapted = adapted.params
    rollouts = [
        rl.rollout(k, learner.loop.policy, params, env, task, num_episodes=5)
        for k, params in zip(keys, (meta_params, adapted), strict=True)
    ]
    return task, rollouts


def _save(figure, path):
    """Writes atomically."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".tmp")
    figure.savefig(new, format="png", dpi=150)
    os.replace(new, path)
    return path
