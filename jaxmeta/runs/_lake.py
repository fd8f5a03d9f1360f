"""Evaluates a run on Lake's one-shot classification challenge."""

import os
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import base, recipes, tasks, training
from jaxmeta.runs import _build, _folder

# Error in percent. Lake et al., "The Omniglot challenge: a 3-year progress report",
# 2019, Table 1 (trained on the background alphabets only); Siamese networks from Koch
# et al. 2015, Table 2 (forty alphabets and augmentation).
PUBLISHED = {
    "people": 4.5,
    "Siamese networks": 8.0,
    "prototypical networks": 13.7,
    "modified Hausdorff distance": 38.8,
}


def lake(
    directory: str | os.PathLike[str], archive: str | os.PathLike[str]
) -> dict[str, Any]:
    """Adapts the best checkpoint to each of Lake's runs and returns the error rate.

    Args:
      directory: folder of a run on Omniglot with 20 ways.
      archive: `all_runs.zip`, as `jaxmeta.tasks.load_lake_runs` reads it.

    Returns:
      `error` in percent, its `half_width` over the runs, `error_per_run`, all three
      again under `inductive` if the model has batch normalisation, and `published`
      errors.

    Raises:
      ValueError: if the run was not trained on Omniglot or has no checkpoint, or the
        archive has another layout.
      FileNotFoundError: if the archive does not exist.
    """
    run = _folder.read(directory)
    recipe = run.recipe
    is_omniglot = isinstance(recipe, recipes.Recipe) and isinstance(
        recipe.tasks, recipes.OmniglotTasks
    )
    if not is_omniglot:
        raise ValueError(f"{run.name} was not trained on Omniglot, which `lake` needs.")
    lake_tasks = tasks.load_lake_runs(archive)
    ways = lake_tasks[0].support.targets.shape[1]
    if not recipe.learner.embeds and recipe.tasks.num_outputs != ways:
        raise ValueError(
            f"{run.name} distinguishes {recipe.tasks.num_outputs} classes, but Lake's "
            f"runs have {ways}. Train it with `--ways {ways}`."
        )
    meta_params = _folder.best_meta_params(run, _build.build(recipe).like)
    key = jax.random.key(recipe.seed)

    def errors(statistics):
        learner = recipe.make_learner(statistics)

        @jax.jit
        def error(meta_params, task: base.Task):
            found = learner.evaluate(
                key, meta_params, task, inner_steps=recipe.learner.test_inner_steps
            )
            return 100 * (1 - found.metrics["accuracy"][-1])

        per_run = jnp.stack([error(meta_params, task) for task in lake_tasks])
        found = training.mean_with_interval(per_run)
        return {
            "error": float(found.mean),
            "half_width": float(found.half_width),
            "error_per_run": per_run.tolist(),
        }

    result: dict[str, Any] = errors("batch")
    if recipe.model.norm is not None:
        result["inductive"] = errors("support")
    return result | {"published": PUBLISHED}
