"""Adapts a run to a folder of images."""

import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmeta import _images, base, recipes, tasks
from jaxmeta.runs import _build, _folder


class Prediction(NamedTuple):
    """Prediction for one unlabelled image."""

    path: pathlib.Path
    label: str
    probability: float


def adapt(
    directory: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    inner_steps: int | None = None,
) -> list[Prediction]:
    """Adapts a run's best checkpoint to labelled images and predicts unlabelled ones.

    Predictions are independent of each other: batch normalisation, if any, uses
    the statistics of the labelled images.

    Args:
      directory: the run folder.
      folder: labelled images are `folder/LABEL/*.png`, unlabelled `folder/*.png`.
      inner_steps: defaults to the recipe's.

    Raises:
      ValueError: if the run was not trained on images, there are no labels or too
        many, or there is no image to predict.
    """
    run = _folder.read(directory)
    recipe = run.recipe
    if not isinstance(recipe, recipes.Recipe) or isinstance(
        recipe.tasks, recipes.SinusoidTasks | recipes.PolicyTasks
    ):
        raise ValueError(f"{run.name} was not trained on images, which `adapt` needs.")
    ways = recipe.tasks.num_outputs
    labels, labelled, paths, unlabelled = _read_images(
        pathlib.Path(folder), getattr(recipe.tasks, "size", 28)
    )
    if recipe.learner.embeds:  # Any number of ways.
        ways = len(labels)
    if len(labels) > ways:
        raise ValueError(
            f"{folder} has {len(labels)} labels, but {run.name} distinguishes {ways}. "
            "Train with more `--ways`, or remove labels."
        )
    parts = _build.build(recipe)
    meta_params = _folder.best_meta_params(run, parts.like)
    steps = recipe.learner.test_inner_steps if inner_steps is None else inner_steps
    # Statistics of the support alone, so that predictions are independent.
    learner = recipe.make_learner("support", inner_steps=steps)
    targets = np.repeat(np.eye(ways)[: len(labels)], [len(x) for x in labelled], axis=0)
    support = base.Examples(_to_inputs(np.concatenate(labelled)), jnp.asarray(targets))

    @jax.jit
    def predict(meta_params, support, inputs):
        task_params, _ = learner.adapt(
            jax.random.key(recipe.seed), meta_params, support
        )
        outputs = learner.predict(task_params, inputs)[:, : len(labels)]
        return recipe.learner.probabilities(outputs)

    probabilities = predict(meta_params, support, _to_inputs(unlabelled))
    return [
        Prediction(path, labels[int(row.argmax())], float(row.max()))
        for path, row in zip(paths, probabilities, strict=True)
    ]


def _read_images(folder, size):
    """Returns labels, their images [N, H, W, 1], and unlabelled paths and images."""
    classes = tasks.load_folder(folder, size=size, invert=False)
    labelled = [
        images[:count]
        for images, count in zip(classes.images, classes.num_examples, strict=True)
    ]
    paths = _images.image_paths(folder)
    if not paths:
        raise ValueError(
            f"{folder} has no image to predict: put unlabelled images beside the "
            f"folders {', '.join(classes.names)}."
        )
    unlabelled = np.stack(
        [tasks.load_image(path, size=size, channels=1) for path in paths]
    )
    # In the training data ink is bright and paper dark; scans are the opposite.
    if np.concatenate([*labelled, unlabelled]).mean() > 127:
        labelled, unlabelled = [255 - x for x in labelled], 255 - unlabelled
    return classes.names, labelled, paths, unlabelled


def _to_inputs(images):
    return jnp.asarray(images, dtype=jnp.result_type(float)) / 255
