"""A run, tested on fresh tasks."""

import dataclasses
import os
from typing import Any

from jaxmeta import recipes
from jaxmeta.runs import _build, _folder


def evaluate(
    directory: str | os.PathLike[str],
    *,
    num_tasks: int | None = None,
    inner_steps: int | None = None,
    seed: int | None = None,
    task_settings: recipes.Tasks | None = None,
) -> dict[str, Any]:
    """Tests the best checkpoint of a run on fresh tasks.

    Args:
      directory: the run's.
      num_tasks: None is the recipe's.
      inner_steps: None is the recipe's.
      seed: of the tasks; None is the run's own test tasks.
      task_settings: other settings of the run's tasks, say more shots; None keeps them.

    Returns:
      A dict as under `test` in `summary.json`: lists over 0 ... K inner steps.

    Raises:
      ValueError: if the folder holds no run, no checkpoint, or a damaged one.
    """
    run = _folder.read(directory)
    if task_settings is not None:
        run = run._replace(recipe=dataclasses.replace(run.recipe, tasks=task_settings))
    parts = _build.build(run.recipe)
    return parts.test(
        _folder.best_meta_params(run, parts.like),
        num_tasks=num_tasks,
        inner_steps=inner_steps,
        seed=seed,
    )
