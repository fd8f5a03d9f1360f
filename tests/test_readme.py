"""What README shows runs, and names what exists."""

import pathlib
import re

import jax
import pytest

from benchmarks import results_page

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


def test_it_is_a_front_page():
    lines = README.splitlines()
    assert len(lines) <= 130
    assert next(i for i, line in enumerate(lines) if "pip install" in line) < 25


def test_pages_show_what_was_measured():
    """If this fails: `python -m benchmarks.results_page`."""
    assert (ROOT / "docs" / "results.md").read_text() == results_page.page()
    assert results_page.readme(README) == README


def test_links_lead_to_files_that_exist():
    files = re.findall(r"\]\(((?:jaxmeta|docs|notebooks|benchmarks)[^)#]*)\)", README)
    assert files
    assert all((ROOT / path).exists() for path in files)


def test_ci_runs_the_command_that_users_are_given():
    commands = [line for line in README.splitlines() if line.endswith("pytest -n 2")]
    assert len(commands) == 1
    assert "grep -m1 'pytest -n 2$' README.md" in (ROOT / ".ci" / "run").read_text()
