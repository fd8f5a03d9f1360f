"""Tests a run on fresh tasks."""

import dataclasses
import os
from typing import Any

from jaxmeta import _checks, recipes
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
      directory: the run folder.
      num_tasks: defaults to the recipe's.
      inner_steps: defaults to the recipe's.
      seed: seed of the tasks; defaults to the run's own test tasks.
      task_settings: changed task settings, e.g. more shots; defaults to the recipe's.

    Returns:
      A dict like `test` in `summary.json`: lists over 0 ... K inner steps.

    Raises:
      ValueError: if the folder is not a run, its checkpoint is missing or damaged, or
        `seed` is not from 0 to 2**32 - 1.
    """
    if seed is not None:
        _checks.check_seed("seed", seed)
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
