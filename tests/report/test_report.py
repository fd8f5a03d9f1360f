"""Reports: what a page says is what the run folders say."""

import base64
import dataclasses
import html
import json
import re
import shutil

import pytest

from jaxmeta import cli, recipes, report, runs

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


@pytest.fixture(autouse=True)
def _own_devices(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # As the tests' own JAX has.


def _train(directory, name="maml-sinusoid", **changes):
    recipe = recipes.RECIPES[name]
    small = {"steps": 4, "log_every": 2, "validate_every": 2}
    if isinstance(recipe, recipes.Recipe):
        small |= {"num_tasks": 2, "validation_tasks": 4, "test_tasks": 6}
    recipe = dataclasses.replace(recipe, **small | changes)
    runs.train(name, recipe, directory)
    return directory


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [_train(root / str(seed), seed=seed) for seed in (3, 4)]


def _pictures(page):
    return [
        base64.b64decode(data)
        for data in re.findall(r"data:image/[a-z+]+;base64,([^\"]+)", page)
    ]


def test_a_page_needs_nothing_else_and_tells_what_was_found(two_runs, tmp_path):
    path = report.write_report(two_runs, tmp_path / "page.html")
    page = path.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page
    test = json.loads((two_runs[0] / "summary.json").read_text())["test"]
    for mean, interval in zip(*test["loss"].values(), strict=True):
        assert f"{mean:.4g} ± {interval:.2g}" in page
    # Side by side 2; of each run 2 curves and its hardest tasks.
    assert len(_pictures(page)) == 2 + 2 * 3
    assert page.count("The 3 of 100 test tasks with the highest loss") == 2
    text = html.unescape(page)
    assert all(f"maml-sinusoid ({run})" in text for run in two_runs)


def test_settings_that_differ_come_first_and_are_marked(two_runs):
    page = report.write_report(two_runs).read_text()
    assert (two_runs[0] / "report.html").exists()
    rows = re.findall(
        r'<tr class="differs"><td>(.*?)</td><td>(.*?)</td><td>(.*?)<', page
    )
    assert rows == [("seed", "3", "4")]


@pytest.mark.slow
def test_hardest_tasks_of_images_and_a_run_alone(tmp_path, capsys):
    run = _train(
        tmp_path / "run",
        "maml-glyphs-5w1s",
        model=recipes.Conv4Model(filters=4),
        tasks=recipes.GlyphTasks(ways=2, test_queries=2),
    )
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert "Side by side" not in page and "confusion matrix of the queries" in page
    # accuracy and loss, over meta-training and inner steps, and the tasks.
    assert len(_pictures(page)) == 5
    assert any(picture.startswith(b"\x89PNG") for picture in _pictures(page))


def test_a_run_that_still_trains_has_a_page(two_runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(two_runs[0], copy)
    (copy / "summary.json").unlink()
    page = report.write_report([copy]).read_text()
    assert "Still training" in page and "Test, mean" not in page
    assert "Hardest tasks" in page
    shutil.rmtree(copy / "checkpoints")
    assert "Hardest tasks" not in report.write_report([copy]).read_text()


def test_text_of_settings_cannot_become_code(two_runs, tmp_path):
    copy = tmp_path / "<b>run"
    shutil.copytree(two_runs[0], copy)
    page = report.write_report([copy]).read_text()
    assert "<b>run" not in page and "&lt;b&gt;run" in page


@pytest.mark.slow
def test_a_learned_optimizer_has_a_page(tmp_path):
    run = _train(
        tmp_path / "run",
        "lstm-quadratic",
        **{"validation_problems": 2, "test_problems": 2, "test_steps": 20},
        optimizer=recipes.LstmOptimizer(hidden_size=4, num_layers=1),
    )
    page = report.write_report([run]).read_text()
    assert "summed loss" in page and "update against gradient" in page


def test_what_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="at least one run folder"):
        report.write_report([])
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
