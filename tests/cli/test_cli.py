"""The command line: a tiny run from start to plot, and everything users get wrong."""

import dataclasses
import errno
import json
import os
import pathlib
import shlex
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import jaxmeta as jm
from jaxmeta import _lock, cli, recipes, runs
from jaxmeta.cli import _main

TINY = shlex.split(
    "--steps 4 --log-every 2 --validate-every 2 --num-tasks 4 --filters 4 --size 16 "
    "--validation-tasks 4 --test-tasks 6 --queries 1 --test-queries 2"
)


@pytest.fixture(autouse=True)
def _own_devices(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # As the tests' own JAX has.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "8")
        assert cli.main(["train", "--out", str(directory), *TINY]) == 0
    return directory


@pytest.fixture
def images(tmp_path):
    """A folder to adapt to: two labels of two images each, and one without."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name in ("bar/1.png", "bar/2.png", "foo/1.png", "foo/2.png", "new.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(path)
    return folder


def _said(capsys, argv):
    """The one line on standard error of a command that must fail with code 2."""
    capsys.readouterr()
    assert cli.main([str(x) for x in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxmeta: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


def test_train_leaves_a_run_folder(run):
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "summary.json",
        "plots",
    }
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["test"]["num_tasks"] == 6
    assert len(summary["test"]["accuracy"]["mean"]) == 4  # 0 ... 3 inner steps
    assert len(summary["test"]["inductive"]["accuracy"]["mean"]) == 4
    untrained = summary["untrained"]["accuracy"]["mean"]
    assert len(untrained) == 4 and untrained != summary["test"]["accuracy"]["mean"]
    assert (run / "plots" / "learning_curve.png").stat().st_size > 1000


def test_a_finished_run_is_printed_again_and_not_trained(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.main(["train", "--out", str(run), *TINY]) == 0
    assert "test over 6 tasks" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


def test_resume_knows_the_recipe_and_trains_further(run, tmp_path, capsys):
    longer, resumed = tmp_path / "longer", tmp_path / "resumed"
    assert cli.main(["train", "--out", str(longer), *TINY, "--steps", "6"]) == 0
    shutil.copytree(run, resumed)
    assert cli.main(["resume", str(resumed)]) == 0
    assert not (resumed / "summary-4.json").exists()
    said = capsys.readouterr().out
    assert "test over 6 tasks" in said and "finished already" in said
    assert cli.main(["resume", str(resumed), "--steps", "6"]) == 0
    said = capsys.readouterr().out
    assert "testing on held-out tasks" in said and "finished already" not in said
    assert json.loads((resumed / "summary-4.json").read_text())["steps"] == 4
    (summary, expected) = (
        json.loads((folder / "summary.json").read_text())
        for folder in (resumed, longer)
    )
    assert summary["steps"] == expected["steps"] == 6
    assert runs.read(resumed).recipe == runs.read(longer).recipe
    said = _said(capsys, ["resume", resumed, "--steps", "5"])
    assert "`steps` must be at least the 6" in said
    assert "not a run folder" in _said(capsys, ["resume", tmp_path])


def test_evaluate_repeats_the_test_of_the_run(run, capsys):
    summary = json.loads((run / "summary.json").read_text())
    result = runs.evaluate(run)
    np.testing.assert_allclose(
        result["loss"]["mean"], summary["test"]["loss"]["mean"], rtol=1e-5
    )
    assert cli.main(["evaluate", str(run), "--tasks", "3", "--inner-steps", "2"]) == 0
    heading, explained, *table = capsys.readouterr().out.splitlines()
    assert "test over 3 tasks" in heading and explained.startswith("inductive: ")
    assert [line.split()[0] for line in table] == ["inner", "0", "1", "2"]


@pytest.mark.slow
def test_evaluate_says_that_a_run_is_not_finished(run, capsys, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    for path, is_finished in ((run, True), (copy, False)):
        assert cli.main(["evaluate", str(path), "--tasks", "3"]) == 0
        assert ("unfinished" in capsys.readouterr().out) == (not is_finished)


def test_a_prediction_does_not_depend_on_the_other_images(run, images):
    rng = np.random.default_rng(1)
    alone = runs.adapt(run, images)
    for i in range(3):
        Image.fromarray(rng.integers(0, 99, (20, 20), dtype=np.uint8)).save(
            images / f"other{i}.png"
        )
    together = runs.adapt(run, images)
    assert (alone[0].path, alone[0].label) == (together[0].path, together[0].label)
    np.testing.assert_allclose(alone[0].probability, together[0].probability, rtol=1e-4)


def test_devices_share_whole_chunks():
    """With 8 devices, 6 tasks in chunks of 3 go to two of them."""
    recipe = dataclasses.replace(
        recipes.RECIPES["maml-sinusoid"], num_tasks=6, tasks_per_chunk=3
    )
    assert runs.build(recipe).mesh.devices.size == 2


@pytest.mark.slow
def test_a_test_of_one_task_leaves_strict_json(tmp_path, capsys):
    options = [*TINY, "--test-tasks", "1"]
    assert cli.main(["train", "--out", str(tmp_path), *options]) == 0
    assert "nan" in capsys.readouterr().out
    text = (tmp_path / "summary.json").read_text()
    assert "null" in text
    assert "NaN" not in text
    assert cli.main(["train", "--out", str(tmp_path), *options]) == 0  # Reads it.
    assert "nan" in capsys.readouterr().out
    assert cli.main(["plot", str(tmp_path)]) == 0


def test_adapt_predicts_the_unlabelled(run, images, capsys):
    shutil.copy(images / "foo" / "1.png", images / "same.png")
    predictions = runs.adapt(run, images, inner_steps=20)
    assert [p.path.name for p in predictions] == ["new.png", "same.png"]
    assert predictions[1].label == "foo"  # It has seen this very image.
    assert cli.main(["adapt", str(run), str(images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[1] in ("bar", "foo")


def test_plot_names_its_files(run, capsys):
    assert cli.main(["plot", str(run)]) == 0
    paths = capsys.readouterr().out.split()
    assert paths
    assert all(pathlib.Path(path).exists() for path in paths)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == jm.__version__


def test_list_names_every_recipe_and_the_default(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in recipes.RECIPES)
    assert f"{recipes.DEFAULT} (default)" in out
    assert len(out.splitlines()) == len(recipes.RECIPES)
    assert cli.main(["list", "Reptile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        name for name in recipes.RECIPES if name.startswith("reptile")
    ]


def test_help_lists_all_settings(capsys):
    assert cli.main(["--help"]) == 0
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "maml-omniglot-5w1s", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for option in ("--inner-learning-rate", "--ways", "--filters", "--out", "--seed"):
        assert option in out


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_come_back_from_their_json(name):
    recipe = recipes.RECIPES[name]
    assert recipes.from_json(json.loads(json.dumps(recipes.to_json(recipe)))) == recipe
    assert recipe.summary
    assert recipe.published or name == recipes.DEFAULT  # The tasks are ours.
    assert recipe.protocol


BAD_COMMANDS = {
    "no such command": (
        ["tarin"],
        "`command` 'tarin' is unknown: did you mean 'train'",
    ),
    "no such recipe": (
        ["train", "maml-omniglot-5w5s"],
        "`recipe` 'maml-omniglot-5w5s' is unknown: did you mean 'maml-omniglot-5w1s'",
    ),
    "no such field": (["train", "--stepss", "5"], "Did you mean --steps?"),
    "less than a field": (
        ["train", "maml-sinusoid", "--step", "5"],
        "Unrecognized option: --step. Did you mean --steps?",
    ),
    "nothing like a field": (
        ["train", "--foo", "5"],
        "Unrecognized option: --foo. See",
    ),
    "an option before the recipe": (
        ["train", "--steps", "5", "maml-sinusoid"],
        "The recipe comes first: `jaxmeta train maml-sinusoid",
    ),
    "a word for a number": (["train", "--steps", "many"], "--steps.*many"),
    "no value": (["train", "--steps"], "Missing value for argument '--steps'"),
    "no such choice": (
        ["train", "maml-omniglot-5w1s", "--split", "x"],
        "invalid choice 'x' for argument '--split'",
    ),
    "arguments to list": (["list", "a", "b"], "takes one filter, got a b"),
    "a filter that nothing matches": (["list", "xyz"], "No recipe matches 'xyz'"),
    "resume without a run": (["resume"], "resume --help"),
    "no run named": (["evaluate"], "evaluate --help"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands_are_named(case, capsys):
    argv, message = BAD_COMMANDS[case]
    said = _said(capsys, argv)
    assert pytest.RaisesExc(ValueError, match=message).matches(ValueError(said)), said


BAD_SETTINGS = {
    "--steps 0": "`num_steps` must be an int >= 1, got 0",
    "--steps -5": "`num_steps` must be an int >= 1, got -5",
    "--inner-steps 0": "`inner_steps` must be an int >= 1, got 0",
    "--test-inner-steps 0": "`test_inner_steps` must be an int >= 1, got 0",
    "--ways 0": "`ways` must be an int >= 1, got 0",
    "--shots -1": "`shots` must be an int >= 1, got -1",
    "--num-tasks 0": "`num_tasks` must be an int >= 1, got 0",
    "--validation-tasks 0": "`validation_tasks` must be an int >= 1, got 0",
    "--test-tasks 0": "`test_tasks` must be an int >= 1, got 0",
    "--validate-every 3": "`validate_every` must be a multiple of `log_every`",
    "--seed -1": "`seed` must be an int >= 0, got -1",
    "--seed 4294967297": "`seed` must be less than 2**32, got 4294967297",
    "--patience 0": "`patience` must be an int >= 1, got 0",
    "--inner-learning-rate -0.1": "`inner_learning_rate` must be positive and finite",
    "--inner-learning-rate nan": "`inner_learning_rate` must be positive and finite",
    "--outer-learning-rate 0": "`outer_learning_rate` must be positive and finite",
    "--tasks-per-chunk 3": "`tasks_per_chunk` must divide",
    "--size 0": "`size` must be an int >= 1, got 0",
    "--filters 0": "`filters` must be an int >= 1, got 0",
}


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_bad_settings_are_named_and_leave_no_folder(setting, capsys, tmp_path):
    out = tmp_path / "run"
    said = _said(capsys, ["train", "--out", out, *TINY, *setting.split()])
    assert BAD_SETTINGS[setting] in said
    assert not out.exists()


def test_out_that_is_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    said = _said(capsys, ["train", "--out", tmp_path / "file" / "run", *TINY])
    assert "`--out` cannot be written" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_run_that_cannot_be_written(code, run, capsys, monkeypatch):
    def fail(source, target):
        raise OSError(code, os.strerror(code), str(target))

    monkeypatch.setattr(os, "replace", fail)
    said = _said(capsys, ["plot", run])
    assert "learning_curve.png'. `evaluate` only reads a run" in said


def test_out_that_holds_another_run(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = _said(capsys, ["train", "--out", run, *TINY, "--inner-steps", "2"])
    assert "`learner.inner_steps` is 1, here 2. `jaxmeta resume" in said
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_other_settings_in_a_run_whose_checkpoints_are_gone(run, capsys, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    assert "holds another run" in _said(
        capsys, ["train", "--out", copy, *TINY, "--seed", "9"]
    )


def test_checkpoints_of_nobody_knows_what(run, capsys, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    said = _said(capsys, ["train", "--out", tmp_path, *TINY])
    assert "has checkpoints, but no config.json" in said


def test_warnings_are_a_line(monkeypatch, capsys):
    def warn(argv):
        warnings.warn("Two\nlines.", stacklevel=1)
        warnings.warn("Of another package.", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(_main, "_plot", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["plot"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("jaxmeta: Two lines.\n")
    assert "DeprecationWarning: Of another package." in said


def test_a_run_folder_in_use(capsys, tmp_path):
    with _lock.locked(tmp_path):
        said = _said(capsys, ["train", "--out", tmp_path, *TINY])
    assert "another process is training in" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_no_run_folder(command, capsys, tmp_path):
    assert "is not a run folder" in _said(capsys, [command, tmp_path])


def test_no_checkpoint_yet(run, capsys, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    assert "has no checkpoint yet" in _said(capsys, ["evaluate", tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"name": "x", "recipe": {"kind": "Foo"}}', "`kind` must be one of"),
        ('{"name": "x", "recipe": {"kind": "MlpModel", "depth": 1}}', "no field"),
    ],
)
def test_damaged_configuration(content, message, capsys, tmp_path):
    (tmp_path / "config.json").write_text(content)
    said = _said(capsys, ["evaluate", tmp_path])
    assert message in said
    assert "config.json" in said


def test_truncated_checkpoint(run, capsys, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:50])
    assert "cannot be restored" in _said(capsys, ["evaluate", copy])


@pytest.mark.parametrize(
    ("option", "name"), [("--tasks", "num_tasks"), ("--inner-steps", "inner_steps")]
)
def test_bad_counts_to_evaluate(option, name, run, capsys):
    said = _said(capsys, ["evaluate", run, option, "0"])
    assert f"`{name}` must be an int >= 1, got 0" in said


def test_omniglot_that_is_not_there(capsys, tmp_path, monkeypatch):
    from jaxmeta.tasks import _omniglot_builder

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("socket.create_connection", offline)
    monkeypatch.setattr("socket.getaddrinfo", offline)
    assert _omniglot_builder
    said = _said(
        capsys,
        [
            "train",
            "maml-omniglot-5w1s",
            "--data-dir",
            tmp_path,
            "--out",
            tmp_path / "r",
        ],
    )
    assert "python -m jaxmeta.tasks.download omniglot" in said
    assert not (tmp_path / "r").exists()


def test_adapt_to_no_folder(run, capsys, tmp_path):
    assert "There is no folder" in _said(capsys, ["adapt", run, tmp_path / "none"])


def test_adapt_without_labels(run, images, capsys):
    shutil.rmtree(images / "foo")
    shutil.rmtree(images / "bar")
    assert "sub-folder" in _said(capsys, ["adapt", run, images])


def test_adapt_with_nothing_to_predict(run, images, capsys):
    (images / "new.png").unlink()
    assert "has no image to predict" in _said(capsys, ["adapt", run, images])


def test_adapt_to_a_corrupt_image(run, images, capsys):
    (images / "foo" / "1.png").write_bytes(b"\x89PNG\r\n not really")
    assert "1.png" in _said(capsys, ["adapt", run, images])


def test_adapt_to_too_many_labels(run, images, capsys):
    for k in range(5):
        shutil.copytree(images / "foo", images / f"label{k}")
    assert "7 labels, but" in _said(capsys, ["adapt", run, images])


def test_adapt_of_a_sinusoid(capsys, images, tmp_path):
    config = {
        "name": "maml-sinusoid",
        "recipe": recipes.to_json(recipes.RECIPES["maml-sinusoid"]),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "not trained on images" in _said(capsys, ["adapt", tmp_path, images])
