"""The recipe of policies: a run folder, its test, its plots."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from jaxmeta import cli, plots, recipes, runs

SMALL = {
    "num_tasks": 4,
    "steps": 2,
    "log_every": 1,
    "validate_every": 2,
    "validation_tasks": 2,
    "test_tasks": 3,
}


def _small(**learner):
    recipe = recipes.RECIPES["maml-navigation"]
    learner = {"num_episodes": 2, "test_episodes": 2, "test_inner_steps": 2} | learner
    return dataclasses.replace(
        recipe,
        tasks=dataclasses.replace(recipe.tasks, horizon=4),
        model=recipes.MlpModel(hidden=(4,)),
        learner=dataclasses.replace(recipe.learner, **learner),
        **SMALL,
    )


def test_a_run_of_a_policy_is_tested_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # As the tests' own JAX has.
    summary = runs.train("maml-navigation", _small(), tmp_path)
    test = summary["test"]
    assert len(test["return"]["mean"]) == 3
    np.testing.assert_allclose(test["return"]["mean"], -np.array(test["loss"]["mean"]))
    records = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert {"return", "return_before", "excluded"} <= set(json.loads(records[0]))
    drawn = {path.stem for path in runs.plot(tmp_path)}
    assert drawn == {"learning_curve", "adaptation_curve", "trajectories"}
    assert cli.main(["evaluate", str(tmp_path), "--tasks", "2"]) == 0
    assert "return" in capsys.readouterr().out


@pytest.mark.parametrize(
    "outer", [pytest.param("trpo", marks=pytest.mark.slow), "gradient"]
)
def test_other_outer_updates_are_settings(outer):
    parts = runs.build(_small(outer=outer))
    after, info = jax.eval_shape(parts.train_step.step, parts.like)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, parts.like)
    assert info.loss.shape == (4,)


def test_a_cosine_ends_with_the_last_epoch_of_the_last_step():
    recipe = dataclasses.replace(_small(num_epochs=3), cosine=True, steps=2)
    parts = runs.build(recipe)
    step, state = (
        jax.jit(parts.train_step.step),
        jax.jit(parts.train_step.init)(parts.train_key),
    )
    moved = []
    for _ in range(3):
        before, (state, _) = state, step(state)
        moved.append(any_moved(before.meta_params, state.meta_params))
    assert moved == [True, True, False]


def any_moved(before, after):
    return bool(optax.tree.norm(optax.tree.sub(before, after)) > 0)


def test_policies_are_for_environments():
    recipe = dataclasses.replace(_small(), learner=recipes.MamlLearner())
    with pytest.raises(ValueError, match=r"`learner` must suit.*MamlLearner for Nav"):
        runs.build(recipe)


def test_trajectories_name_what_they_cannot_draw():
    with pytest.raises(ValueError, match="`labels` must name each of the 3"):
        plots.trajectories([None, None, None])


def test_a_policy_is_not_adapted_to_images(tmp_path):
    config = {"name": "n", "recipe": recipes.to_json(_small())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="n was not trained on images"):
        runs.adapt(tmp_path, tmp_path)
