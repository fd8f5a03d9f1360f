"""Builds recipes of learned optimizers: training, validation and test."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import estimators, optimizers, problems, recipes, training
from jaxmeta.runs import _parts

# Baselines of the test, each with its learning rate tuned.
BASELINES = {
    "adam": optax.adam,
    "rmsprop": functools.partial(optax.rmsprop, decay=0.99),
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "nag": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
}
# The summary reports updates after these shares of the steps, for these gradients.
SHARES = (0, 0.1, 0.5)
GRADIENTS = tuple(
    float(f"{sign * size:.3g}")
    for sign in (-1, 1)
    for size in 10 ** np.arange(-4, 1.01, 0.25)
)
RATES = tuple(float(f"{rate:.2g}") for rate in 10 ** np.arange(-4, 1.01, 0.25))


def build(recipe: recipes.OptimizerRecipe) -> _parts.Parts:
    """Builds a recipe; raises ValueError for invalid settings."""
    recipe.check()
    lopt = recipe.optimizer.make()
    splits = recipe.problem.splits()
    mesh = _parts.mesh_for(recipe.estimator.num_problems)
    train_step = _make_train_step(recipe, lopt, splits.train, mesh)
    train_key, validation_key, test_key = jax.random.split(
        jax.random.key(recipe.seed), 3
    )
    side_by_side = {
        "problems_per_chunk": recipe.problems_per_chunk,
        "mesh": training.task_mesh(),
    }

    def evaluate(lopt, theta_of, problem, **options):
        """Runs on all families; of several, losses over their first, relative ones."""
        losses = [
            training.evaluate_optimizer(
                lopt, theta_of(name), family, **options, **side_by_side
            ).per_problem
            for name, family in _families(problem).items()
        ]
        if len(losses) > 1:
            losses = [x / jnp.mean(x[:, :1], 0, keepdims=True) for x in losses]
        return training.LossCurves(jnp.concatenate(losses))

    def validate(theta):
        found = evaluate(
            lopt,
            lambda _: theta,
            splits.validation,
            num_steps=recipe.test_steps,
            num_problems=recipe.validation_problems,
            key=validation_key,
        )
        final, summed = (float(x.mean) for x in (found.final, found.summed))
        return {"loss": summed / recipe.test_steps, "final": final}

    def test(theta, *, num_tasks=None, inner_steps=None, seed=None):
        num_problems = recipe.test_problems if num_tasks is None else num_tasks
        num_steps = recipe.test_steps if inner_steps is None else inner_steps
        options = {
            "num_steps": num_steps,
            "num_problems": num_problems,
            "key": test_key if seed is None else jax.random.key(seed),
        }
        tuning = {"num_problems": recipe.validation_problems, "key": validation_key}
        learned = evaluate(lopt, lambda _: theta, splits.test, **options)
        found = {"learned": summarize(learned)}
        responses = training.update_responses(
            lopt,
            theta,
            next(iter(_families(splits.test).values())),
            gradients=GRADIENTS,
            steps=sorted({int(share * num_steps) for share in SHARES}),
            num_problems=min(8, num_problems),
            key=options["key"],
        )
        for name, make_tx in BASELINES.items():
            rule = optimizers.learned_rate(make_tx)
            rates = {
                family: training.tune(
                    rule, RATES, problem, **options | tuning | side_by_side
                ).rate
                for family, problem in _families(splits.validation).items()
            }
            curves = summarize(evaluate(rule, rates.get, splits.test, **options))
            told = {"rates": rates} if len(rates) > 1 else {"rate": rates[""]}
            found[name] = told | curves
        return {
            "num_problems": num_problems,
            "num_steps": num_steps,
            "optimizers": found,
            "responses": {k: x.tolist() for k, x in responses._asdict().items()},
        }

    # Traces the optimizer and the problem, so that invalid settings raise here.
    like = jax.eval_shape(train_step.init, train_key)
    return _parts.Parts(train_step, like, mesh, train_key, validate, test)


def _families(problem):
    """Name -> family of problems; one alone has no name."""
    return problem if isinstance(problem, Mapping) else {"": problem}


def _make_train_step(recipe, lopt, problem, mesh):
    """Builds the meta-step; with `imitation`, a share of the steps imitates Adam."""
    families = _families(problem)
    if recipe.scaling is not None:
        scale = lambda problem: problems.random_scaling(problem, recipe.scaling)
        families = {name: scale(family) for name, family in families.items()}
    curriculum = recipe.horizon()

    def over_families(make):
        parts = {name: make(family) for name, family in families.items()}
        return estimators.mixture(parts) if len(parts) > 1 else parts[""]

    estimator = over_families(
        lambda family: recipe.estimator.make(lopt, family, mesh, curriculum)
    )
    if not recipe.imitation:
        return training.make_train_step(estimator, recipe.make_outer_tx())
    imitate = functools.partial(
        estimators.imitation,
        lopt,
        teacher=optax.adam(recipe.teacher_rate),
        unroll=recipe.estimator.unroll,
        horizon=recipe.estimator.horizon if curriculum is None else curriculum,
        num_problems=recipe.estimator.num_problems,
        mesh=mesh,
    )
    shares = [1 - recipe.imitation, recipe.imitation]
    # Each source counts its own meta-steps.
    outer_txs = [recipe.make_outer_tx(share) for share in shares]
    parts = estimator, over_families(imitate)
    return training.alternate(list(zip(parts, outer_txs, strict=True)), shares)


def summarize(curves: training.LossCurves) -> dict:
    """Summarises the runs of one optimizer."""
    of = lambda x: {"mean": x.mean.tolist(), "half_width": x.half_width.tolist()}
    return {
        "final": of(curves.final) | {"median": float(curves.median[-1])},
        "summed": of(curves.summed),
        "loss": of(curves.at_step) | {"median": curves.median.tolist()},
    }
