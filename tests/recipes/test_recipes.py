"""Every recipe can be built, written down and read again; metric learners have runs."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmeta import cli, recipes, runs, tasks
from jaxmeta.recipes import _learner_table, _metric_table

SMALL = {
    "num_tasks": 2,
    "steps": 2,
    "log_every": 1,
    "validate_every": 2,
    "validation_tasks": 2,
    "test_tasks": 3,
}


def _on_glyphs(recipe, ways=3):
    """The recipe at small size, on data that need no download."""
    if isinstance(recipe.tasks, recipes.OmniglotTasks):
        glyphs = recipes.GlyphTasks(ways=ways, queries=1, test_queries=2, size=16)
        model = dataclasses.replace(recipe.model, filters=2)
        recipe = dataclasses.replace(recipe, tasks=glyphs, model=model)
    return dataclasses.replace(recipe, **SMALL)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_come_back_from_json(name):
    recipe = recipes.RECIPES[name]
    written = json.loads(json.dumps(recipes.to_json(recipe)))
    assert recipes.from_json(written) == recipe


@pytest.mark.parametrize("name", [*_learner_table.RECIPES, *_metric_table.RECIPES])
def test_every_learner_of_a_recipe_makes_a_meta_step(name):
    parts = runs.build(_on_glyphs(recipes.RECIPES[name]))
    after, info = jax.eval_shape(parts.train_step.step, parts.like)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, parts.like)
    assert info.loss.shape == (2,)


@pytest.fixture(autouse=True)
def _own_devices(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # As the tests' own JAX has.


@pytest.fixture(scope="module", autouse=True)
def _omniglot():
    """Random characters of four alphabets in place of the data set."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 8, 16, 16, 1), dtype=np.uint8)
    classes = tasks.image_classes(images, [f"{'ABCD'[i % 4]}/{i}" for i in range(100)])
    splits = tasks.Splits(classes, classes, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "load_omniglot", lambda *args, **kwargs: splits)
        yield


def _in_small(name, **task_settings):
    """The recipe with hardly any filters, tasks or steps."""
    recipe = recipes.RECIPES[name]
    task_settings = {"ways": 3, "train_ways": 3, "queries": 1} | task_settings
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, filters=2),
        tasks=dataclasses.replace(recipe.tasks, **task_settings),
        **SMALL,
    )


@pytest.fixture(scope="module")
def metric_run(_omniglot, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "prototypical"
    name = "prototypical-omniglot-1s"
    runs.train(name, _in_small(name), directory)
    return directory


def test_a_metric_learner_is_tested_without_inner_steps(metric_run, capsys):
    summary = json.loads((metric_run / "summary.json").read_text())
    assert len(summary["test"]["accuracy"]["mean"]) == 1
    assert len(summary["test"]["inductive"]["accuracy"]["mean"]) == 1
    assert cli.main(["evaluate", str(metric_run), "--tasks", "2"]) == 0
    assert "inner" not in capsys.readouterr().out
    assert cli.main(["evaluate", str(metric_run), "--inner-steps", "3"]) == 2
    assert "makes no inner steps" in capsys.readouterr().err


def test_a_metric_run_is_tested_on_other_ways(metric_run):
    recipe = runs.read(metric_run).recipe
    more = dataclasses.replace(recipe.tasks, ways=6, shots=2)
    found = runs.evaluate(metric_run, task_settings=more)
    assert len(found["accuracy"]["mean"]) == 1


def test_a_metric_run_adapts_to_a_folder(metric_run, tmp_path):
    rng = np.random.default_rng(0)
    labels = [f"label {i}" for i in range(7)]  # More than it was tested on.
    assert runs.read(metric_run).recipe.tasks.ways < len(labels)
    for path in (*(f"{label}/1.png" for label in labels), "new.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8))
        image.save(tmp_path / path)
    (prediction,) = runs.adapt(metric_run, tmp_path)
    assert prediction.label in labels
    assert 1 / 7 <= prediction.probability <= 1


def test_relations_are_told_as_shares():
    found = recipes.RelationLearner().probabilities(jnp.array([[0.9, 0.3], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.75, 0.25], [0.0, 0.0]])


def test_a_metric_run_has_no_adaptation_curve(metric_run):
    assert cli.main(["plot", str(metric_run)]) == 0
    drawn = {path.name for path in (metric_run / "plots").iterdir()}
    assert drawn == {"learning_curve.png", "tasks.png"}


@pytest.mark.slow
def test_reptile_keeps_its_state_in_a_run(tmp_path):
    name = "reptile-omniglot-5w1s"
    recipe = _in_small(name, train_shots=2)
    summary = runs.train(name, recipe, tmp_path)
    assert len(summary["test"]["loss"]["mean"]) == 51
    run = runs.read(tmp_path)
    meta_params = runs.best_meta_params(run, runs.build(run.recipe).like)
    # Two meta-steps of five inner steps.
    assert float(meta_params.inner_state[0].count) == 10


@pytest.mark.slow
def test_a_run_is_judged_by_lakes_runs(monkeypatch, tmp_path, capsys):
    name = "prototypical-omniglot-lake"
    runs.train(name, _in_small(name), tmp_path)
    made = tasks.few_shot(
        np.random.default_rng(1).integers(0, 256, (30, 2, 16, 16), dtype=np.uint8),
        ways=20,
        shots=1,
        queries=1,
    )
    lake = [made(key) for key in jax.random.split(jax.random.key(0), 3)]
    # The same drawings to learn from and to be judged by: errors where two filters
    # leave nothing of several.
    monkeypatch.setattr(
        tasks,
        "load_lake_runs",
        lambda path: [t._replace(query=t.support) for t in lake],
    )
    found = runs.lake(tmp_path, "all_runs.zip")
    assert found["error"] == pytest.approx(np.mean(found["error_per_run"]))
    assert found["error"] < 40
    monkeypatch.setattr(tasks, "load_lake_runs", lambda path: lake)
    assert runs.lake(tmp_path, "all_runs.zip")["error"] > 70
    assert cli.main(["lake", str(tmp_path), "--archive", "all_runs.zip"]) == 0
    said = capsys.readouterr().out
    assert "inductive error" in said and "people 4.5 %" in said


def test_lake_names_runs_that_do_not_fit(monkeypatch, tmp_path):
    made = tasks.few_shot(
        np.zeros((20, 2, 16, 16), np.uint8), ways=20, shots=1, queries=1
    )(jax.random.key(0))
    monkeypatch.setattr(tasks, "load_lake_runs", lambda path: [made])

    def start(name, recipe):
        """Leaves a run folder that was not trained."""
        (tmp_path / name).mkdir()
        config = {"name": name, "recipe": recipes.to_json(recipe)}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    other = start("maml-sinusoid", recipes.RECIPES["maml-sinusoid"])
    with pytest.raises(ValueError, match="was not trained on Omniglot"):
        runs.lake(other, "all_runs.zip")
    few = start("anil-omniglot-5w1s", _in_small("anil-omniglot-5w1s"))
    with pytest.raises(
        ValueError, match="distinguishes 3 classes, but Lake's runs have"
    ):
        runs.lake(few, "all_runs.zip")


def _numbers(part, prefix=""):
    """Yields the name of each numeric setting, and how a sentence would write it."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{prefix}{field.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + field.name, {f"{value:,}", f"{value:g}"}


def test_a_protocol_is_told_of_any_settings():
    """Of a replaced part, and of a setting that is switched off."""
    art = recipes.RECIPES["lstm-neural-art"]
    other = dataclasses.replace(art, optimizer=recipes.RnnpropOptimizer())
    assert "down to -{optimizer.p} (a pixel's" in other.describe_protocol()
    unclipped = dataclasses.replace(recipes.RECIPES["lstm-mnist"], clip=None)
    assert "clipped at norm None" in unclipped.describe_protocol()


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_protocols_take_their_numbers_from_the_settings(name):
    recipe = recipes.RECIPES[name]
    assert "{" not in recipe.describe_protocol()
    changed = dataclasses.replace(recipe, steps=1234, outer_learning_rate=0.0567)
    told = changed.describe_protocol()
    for setting, written in ("steps", "1,234"), ("outer_learning_rate", "0.0567"):
        assert ("{" + setting in recipe.protocol) == (written in told)
    for setting, written in _numbers(recipe):
        if setting in ("validation_tasks", "learner.num_context", "teacher_rate"):
            continue  # Numbers of something else.
        # Small counts mean many things; the pairs are a goal's range, a deviation.
        others = ("maml-navigation", "0.5"), ("lstm-mnist", "0.01")
        for number in written:
            if len(number) < 3 or (name, number) in others:
                continue
            alone = rf"(?<![\d.,]){re.escape(number)}(?!\d|[.,]\d)"
            assert not re.search(alone, recipe.protocol), (setting, number)
