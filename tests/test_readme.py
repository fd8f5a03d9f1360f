"""What README shows runs, and names what exists."""

import pathlib
import re

import jax
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
    for block in others:
        exec(block, names)
    assert names["outputs"].shape == (10, 1)
    assert (tmp_path / "adaptation.png").stat().st_size > 0


def test_the_table_names_files_and_recipes_that_exist():
    files = re.findall(r"\]\(((?:jaxmeta|docs|notebooks|benchmarks)[^)#]*)\)", README)
    assert files
    assert all((ROOT / path).exists() for path in files)


def test_ci_runs_the_command_that_users_are_given():
    commands = [line for line in README.splitlines() if line.endswith("pytest -n 2")]
    assert len(commands) == 1
    assert "grep -m1 'pytest -n 2$' README.md" in (ROOT / ".ci" / "run").read_text()
