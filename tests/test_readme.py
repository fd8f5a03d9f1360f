"""What README shows runs, and names what exists."""

import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_adaptation_helps(tmp_path, monkeypatch):
    example, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 15
    names = {}
    exec(example.replace("length=20_000", "length=2000"), names)
    losses = names["result"].loss.mean
    assert losses[1] < losses[0]
    assert isinstance(names["state"].meta_params, dict)
    assert jax.tree.leaves(names["infos"])[0].shape[0] == 2000

    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    adapt, learners, own_data, streamed, zero_shot, policies, learned = others
    exec(adapt, names)
    assert names["outputs"].shape == (10, 1)
    assert (tmp_path / "adaptation.png").stat().st_size > 0
    exec(learners, names)
    task = names["sample_task"](names["key"])
    assert names["learner"].init(names["key"], task)
    exec(own_data.partition("def sample_task")[0], names)
    assert names["sample_task"](names["key"]).query.targets.shape == (25, 5)
    exec(own_data, names)
    chex.assert_shape(names["sample_task"](names["key"]).support.inputs, (10, 1))
    exec(streamed, names)
    chex.assert_shape(next(names["stream"].read(0)).query.targets, (4, 25, 5))
    exec(zero_shot, names)
    learner, unseen = names["learner"], names["unseen"]
    params = learner.init(names["key"], names["sample_task"](names["key"]))
    assert learner.evaluate(names["key"], params, unseen).loss.shape == (1,)
    exec(policies, names)
    state = jax.eval_shape(names["init"], names["key"])
    assert jax.eval_shape(names["step"], state)[1].loss.shape == (20,)
    exec(learned, names)
    assert names["info"].loss.shape == (16,)
    updates, _ = names["tx"].update(jnp.ones(3), names["tx"].init(jnp.ones(3)))
    assert (updates != 0).all()


def test_the_table_names_files_and_recipes_that_exist():
    files = re.findall(r"\]\((jaxmeta/[^)]+)\)", README)
    assert files
    assert all((ROOT / path).exists() for path in files)


def test_ci_runs_the_command_that_users_are_given():
    commands = [line for line in README.splitlines() if line.endswith("pytest -n 2")]
    assert len(commands) == 1
    assert "grep -m1 'pytest -n 2$' README.md" in (ROOT / ".ci" / "run").read_text()
