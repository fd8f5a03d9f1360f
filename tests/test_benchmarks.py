"""The benchmarks' common front: its table, and that it runs a part."""

import json
import pathlib

import jax
import pytest

from benchmarks import inner_memory, reproduce, run

RESULTS = pathlib.Path(run.__file__).parent / "results"
PAGES = RESULTS.parents[1] / "docs" / "benchmarks"


def test_the_table_has_the_figures_of_all_parts():
    parts = {}
    for name in run.PARTS:
        if (RESULTS / f"{name}.json").exists():
            parts[name] = json.loads((RESULTS / f"{name}.json").read_text())
    assert {"meta_step", "learner_costs", "policy_step"} <= set(parts)
    table = run.table({"parts": parts})
    costs = parts["learner_costs"]["learners"]
    exact, first = (costs[f"maml, {order}5 steps"] for order in ("", "first order, "))
    ratio = f"time {exact['ms'] / first['ms']:.2f}"
    assert f"| exact MAML over first order, 5 steps | {ratio}" in table
    assert "2 cores against one" in table and "environment steps a second" in table


def test_reproduced_numbers_are_those_of_the_results():
    """If this fails: put in what `python -m benchmarks.reproduce --table` prints."""
    assert reproduce.table() in (PAGES / "reproduce.md").read_text()


def test_a_part_runs_in_a_process_of_its_own(tmp_path, monkeypatch, capfd):
    quick = run.PARTS["learner_costs"]._replace(quick="--seconds 0 --only prototypical")
    monkeypatch.setitem(run.PARTS, "learner_costs", quick)
    out = tmp_path / "run.json"
    run.main(["--quick", "--only", "learner_costs", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["quick"] and set(found["parts"]) == {"learner_costs"}
    assert "| prototypical, in gradients of a classifier |" in capfd.readouterr().out


def test_memory_is_not_measured_of_contestants_that_disagree(monkeypatch):
    problem = inner_memory.problems()["transformer, Adam"]
    found = inner_memory.contestants(problem, 1)
    twice = lambda params: jax.tree.map(lambda g: 2 * g, found["by hand"](params))
    wrong = {"jaxmeta": found["jaxmeta"], "wrong": twice}
    monkeypatch.setattr(inner_memory, "contestants", lambda *args: wrong)
    with pytest.raises(RuntimeError, match="wrong disagrees with jaxmeta"):
        inner_memory.measure(problem, 1, 0.01)
