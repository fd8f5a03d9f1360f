"""The test tasks with the highest loss, and the mistakes on them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmeta import _axes, _pytrees, _task_axis, base, plots, recipes, runs

NUM_TASKS = 100
NUM_SHOWN = 3


class Hardest(NamedTuple):
    """A figure and its caption."""

    figure: Any
    caption: str


def hardest_tasks(run: runs.Run) -> Hardest | None:
    """Finds and draws a run's worst test tasks; None if there are none to draw."""
    recipe = run.recipe
    is_saved = any((run.directory / "checkpoints").glob("*"))
    if not isinstance(recipe, recipes.Recipe) or not is_saved:
        return None
    if isinstance(recipe.tasks, recipes.NavigationTasks):
        caption = "Trajectories to three test goals, before and after adaptation."
        return Hardest(runs.draw_walks(run), caption)
    if isinstance(recipe.tasks, recipes.PolicyTasks):
        return None
    parts = runs.build(recipe)
    meta_params = runs.best_meta_params(run, parts.like)
    inner_steps = recipe.learner.test_inner_steps
    learner = recipe.make_learner(inner_steps=inner_steps)
    sampler = _pytrees.as_partial(recipe.tasks.splits().test)
    keys = jax.random.split(jax.random.key(recipe.seed), NUM_TASKS)

    @jax.jit
    def losses(sampler, meta_params, keys):
        def last_loss(shared, key):
            sampler, meta_params = shared
            return learner.evaluate(
                key, meta_params, sampler(key), inner_steps=inner_steps
            ).loss[-1]

        over_tasks = _task_axis.map_over_tasks(last_loss, chunk=1)
        return over_tasks((sampler, meta_params), keys)

    @jax.jit
    def answer(sampler, meta_params, key):
        task = sampler(key)
        task_params, _ = learner.adapt(key, meta_params, task.support)
        return task, learner.predict(task_params, task.query.inputs)

    found = np.asarray(losses(sampler, meta_params, keys))
    worst = np.argsort(-np.nan_to_num(found, nan=np.inf))[:NUM_SHOWN]
    answers = [
        jax.tree.map(np.asarray, answer(sampler, meta_params, keys[t])) for t in worst
    ]
    figure = _draw_images if np.ndim(answers[0][0].query.inputs) == 4 else _draw_curves
    return figure(answers, found[worst])


def _draw_images(answers, losses):
    figure = _axes.figure(width=12)
    axes = figure.subplots(2, len(answers), height_ratios=(3, 2), squeeze=False)
    for column, (task, logits), loss in zip(axes.T, answers, losses, strict=True):
        is_real = task.query.targets.any(1)  # All-zero rows are padding.
        query = jax.tree.map(lambda x, is_real=is_real: x[is_real], task.query)
        true, taken = (np.argmax(x, 1) for x in (query.targets, logits[is_real]))
        # Mistakes first in each row of the sheet.
        order = np.argsort(true == taken, kind="stable")
        query = base.Examples(query.inputs[order], query.targets[order])
        plots.task_sheet(base.Task(task.support, query), ax=column[0])
        column[0].set_title(f"loss {loss:.2f}, {np.mean(true == taken):.0%} correct")
        ways = task.query.targets.shape[1]
        counts = np.zeros((ways, ways), int)
        np.add.at(counts, (true, taken), 1)
        _draw_confusion(column[1], counts)
    height = 0.45 * answers[0][0].query.targets.shape[1] + 1.0
    figure.set_size_inches(12, min(14.0, height + 0.75 * height + 1))
    return Hardest(
        figure,
        f"The {len(answers)} of {NUM_TASKS} test tasks with the highest loss. Above, "
        "the support images (framed) and queries, misclassified ones first; below, the "
        "confusion matrix of the queries.",
    )


def _draw_confusion(ax, counts):
    ax.imshow(counts, cmap="Blues", vmin=0, vmax=max(1, counts.sum(1).max()))
    ways = len(counts)
    if ways <= 10:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if count > counts.sum(1).max() / 2 else "black"
            ax.text(column, row, str(count), ha="center", va="center", color=color)
    ax.set(xlabel="predicted class", ylabel="class")
    ax.set_xticks(range(ways))
    ax.set_yticks(range(ways))


def _draw_curves(answers, losses):
    figure = _axes.figure(width=12)
    axes = figure.subplots(1, len(answers), squeeze=False)[0]
    for ax, (task, outputs), loss in zip(axes, answers, losses, strict=True):
        plots.task_sheet(task, ax=ax)
        ax.plot(task.query.inputs[:, 0], outputs[:, 0], "x", color="0.2", label="model")
        ax.set_title(f"loss {loss:.2f}", loc="right")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return Hardest(
        figure,
        f"The {len(answers)} of {NUM_TASKS} test tasks with the highest loss after "
        "adaptation to the support points.",
    )
