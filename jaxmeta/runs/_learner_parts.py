"""Builds recipes of learners over tasks: training, validation and test."""

import jax

from jaxmeta import recipes, training
from jaxmeta.runs import _parts


def build(recipe: recipes.Recipe) -> _parts.Parts:
    """Builds a recipe; raises ValueError for invalid settings."""
    recipe.check()
    learner = recipe.make_learner()
    splits = recipe.tasks.splits()
    mesh = _parts.mesh_for(recipe.num_tasks, recipe.tasks_per_chunk)
    train_step = recipe.make_train_step(learner, splits.train, mesh)
    train_key, validation_key, test_key = jax.random.split(
        jax.random.key(recipe.seed), 3
    )

    def evaluate(learner, meta_params, sample_task, num_tasks, key, inner_steps):
        return training.evaluate(
            learner,
            meta_params,
            sample_task,
            num_tasks=num_tasks,
            key=key,
            inner_steps=inner_steps,
            tasks_per_chunk=recipe.tasks_per_chunk,
            mesh=mesh,
        )

    def validate(meta_params):
        found = evaluate(
            learner,
            meta_params,
            splits.validation,
            recipe.validation_tasks,
            validation_key,
            recipe.learner.test_inner_steps,
        )
        last = {name: float(x.mean[-1]) for name, x in found.metrics.items()}
        return {"loss": float(found.loss.mean[-1]), **last}

    def test(
        meta_params, *, num_tasks=None, inner_steps=None, seed=None, inductive=True
    ):
        num_tasks = recipe.test_tasks if num_tasks is None else num_tasks
        if inner_steps is None:
            inner_steps = recipe.learner.test_inner_steps
        key = test_key if seed is None else jax.random.key(seed)

        def table(learner):
            found = evaluate(
                learner, meta_params, splits.test, num_tasks, key, inner_steps
            )
            return {
                name: {"mean": x.mean.tolist(), "half_width": x.half_width.tolist()}
                for name, x in {"loss": found.loss, **found.metrics}.items()
            }

        result = {"num_tasks": num_tasks, **table(learner)}
        if inductive and recipe.model.norm is not None:
            result["inductive"] = table(recipe.make_learner("support"))
        return result

    # Traces the model and the tasks, so that invalid settings raise here.
    like = jax.eval_shape(train_step.init, train_key)
    return _parts.Parts(train_step, like, mesh, train_key, validate, test)
