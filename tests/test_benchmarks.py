"""The benchmarks' common front: its table, and that it runs a part."""

import importlib
import json
import pathlib

import jax
import pytest

from benchmarks import inner_memory, networks, reproduce, run

RESULTS = pathlib.Path(run.__file__).parent / "results"
PAGES = RESULTS.parents[1] / "docs" / "benchmarks"


SCRIPTS = sorted(x.stem for x in RESULTS.parent.glob("*.py") if x.stem != "__init__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}")


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


@pytest.mark.slow
def test_memory_is_not_measured_of_contestants_that_disagree(monkeypatch):
    problem = inner_memory.problems()["transformer, Adam"]
    found = inner_memory.contestants(problem, 1)
    twice = lambda params: jax.tree.map(lambda g: 2 * g, found["by hand"](params))
    wrong = {"jaxmeta": found["jaxmeta"], "wrong": twice}
    monkeypatch.setattr(inner_memory, "contestants", lambda *args: wrong)
    with pytest.raises(RuntimeError, match="wrong disagrees with jaxmeta"):
        inner_memory.measure(problem, 1, 0.01)


@pytest.mark.slow
def test_contestants_of_a_network_agree_and_take_turns():
    row = "LSTM optimizer, 20 updates"
    found = networks.measure(row, ["jaxmeta", "jaxmeta, whole run"], 1, None)
    ours, whole = found.values()
    assert ours["norm"] == pytest.approx(whole["norm"], rel=1e-4)
    assert ours["temp_mib"] < whole["temp_mib"] / 4
    assert ours["median_s"] > 0 and ours["resident_mib"] > ours["temp_mib"]


def test_contestants_of_a_network_that_disagree_are_not_measured(monkeypatch):
    class Contestant:
        def __init__(self, row, name, *args):
            self.ready = {"loss": 1.0, "norm": 1.0 if name == "jaxmeta" else 1.1}

    monkeypatch.setattr(networks, "Contestant", Contestant)
    with pytest.raises(RuntimeError, match="jaxmeta, wide vectors"):
        networks.measure("row", networks.OURS, 1, None)
