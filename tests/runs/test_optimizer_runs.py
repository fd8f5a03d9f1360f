"""Recipes of learned optimizers, from the command line to plots."""

import dataclasses
import json
import shlex
import shutil

import chex
import jax
import numpy as np
import optax
import pytest
from PIL import Image

import jaxmeta as jm
from jaxmeta import cli, recipes, runs
from jaxmeta.runs import _optimizer_parts

TINY = shlex.split(
    "--steps 8 --log-every 2 --validate-every 4 --dim 2 --hidden-size 3 --unroll 2 "
    "--horizon 4 --num-problems 4 --validation-problems 6 --test-problems 8 "
    "--test-steps 5"
)


@pytest.fixture(autouse=True)
def _own_devices(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # As the tests' own JAX has.


@pytest.fixture
def one_baseline(monkeypatch):
    """Each baseline compiles two programs."""
    momentum = {"momentum": _optimizer_parts.BASELINES["momentum"]}
    monkeypatch.setattr(_optimizer_parts, "BASELINES", momentum)


class _Families(recipes.QuadraticProblem):
    """Several families of problems."""

    def splits(self):
        found = {f"of {dim}": jm.problems.quadratics(dim) for dim in (2, 3)}
        return type(super().splits())(found, found, found)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "8")
        assert (
            cli.main(["train", "lstm-quadratic", "--out", str(directory), *TINY]) == 0
        )
    return directory


def test_train_leaves_a_run_folder(run):
    names = {path.relative_to(run).as_posix() for path in run.rglob("*.*")}
    assert {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "plots/learning_curve.png",
        "plots/optimizer_curves.png",
        "plots/update_against_gradient.png",
    } <= names
    found = json.loads((run / "summary.json").read_text())["test"]
    assert (found["num_problems"], found["num_steps"]) == (8, 5)
    assert list(found["optimizers"]) == ["learned", *_optimizer_parts.BASELINES]
    for name, curves in found["optimizers"].items():
        assert len(curves["loss"]["mean"]) == 6
        assert ("rate" in curves) == (name != "learned")
        np.testing.assert_allclose(curves["final"]["mean"], curves["loss"]["mean"][-1])


def test_the_summary_is_the_evaluation_of_the_best_checkpoint(run):
    """By hand, through the public API."""
    opened = runs.read(run)
    theta = runs.best_meta_params(opened, runs.build(opened.recipe).like)
    key = jax.random.split(jax.random.key(0), 3)[2]
    curves = jm.training.evaluate_optimizer(
        opened.recipe.optimizer.make(),
        theta,
        jm.problems.quadratics(dim=2),
        num_steps=5,
        num_problems=8,
        key=key,
    )
    found = json.loads((run / "summary.json").read_text())["test"]["optimizers"]
    np.testing.assert_allclose(
        found["learned"]["loss"]["mean"], curves.at_step.mean, rtol=1e-4
    )
    rate = found["nag"]["rate"]
    nag = jm.optimizers.learned_rate(lambda r: optax.sgd(r, 0.9, nesterov=True))
    curves = jm.training.evaluate_optimizer(
        nag, rate, jm.problems.quadratics(dim=2), num_steps=5, num_problems=8, key=key
    )
    np.testing.assert_allclose(found["nag"]["final"]["mean"], curves.final.mean, 1e-4)


def test_the_summary_says_what_a_gradient_becomes(run):
    found = json.loads((run / "summary.json").read_text())["test"]["responses"]
    assert found["steps"] == [0, 2]  # Shares of five updates.
    assert np.shape(found["updates"]) == (8, 2, len(found["gradients"]))
    # A state of zeros and a gradient of either sign: this LSTM is not far from odd.
    first = np.array(found["updates"])[:, 0]
    assert np.isfinite(first).all() and first.std() > 0


def test_evaluate_prints_a_row_for_each_optimizer(run, capsys):
    options = ["--tasks", "3", "--inner-steps", "2", "--seed", "5"]
    assert cli.main(["evaluate", str(run), *options]) == 0
    out = capsys.readouterr().out
    assert "test over 3 problems, 2 updates each" in out
    assert all(name in out for name in ("learned", "adam", "rmsprop", "nag"))


def test_an_interrupted_run_is_gone_on_with(run, tmp_path):
    name, recipe = "lstm-quadratic", runs.read(run).recipe

    class Killed(Exception):
        pass

    def kill(record):
        if record["step"] == 6:
            raise Killed

    with pytest.raises(Killed):
        runs.train(name, recipe, tmp_path / "parts", kill)
    summary = runs.train(name, recipe, tmp_path / "parts")
    assert summary["test"] == json.loads((run / "summary.json").read_text())["test"]


def test_adapt_says_that_it_needs_images(run, capsys, tmp_path):
    assert cli.main(["adapt", str(run), str(tmp_path)]) == 2
    assert "was not trained on images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--horizon", "5"], "`horizon` must be a multiple of `unroll`, 2, got 5"),
        (["--test-steps", "0"], "`test_steps` must be an int >= 1, got 0"),
        (["--clip", "-1"], "`clip` must be positive"),
        (["--imitation", "1.5"], "`imitation` must be a share in [0, 1], got 1.5"),
        (["--scaling", "0"], "`reach` must be positive"),
        (["--curriculum", "5"], "`curriculum` must be multiples of `unroll`, 2, got 5"),
        (["--problems-per-chunk", "0"], "`problems_per_chunk` must be an int >= 1"),
        (["--curriculum", "4", "0"], "`curriculum` must be an int >= 1, got 0"),
        (["--hidden-size", "0"], "`hidden_size` must be an int >= 1, got 0"),
        (["--num-averaged", "9"], "`num_averaged` must be at most `hidden_size`, 3"),
        (["--num-problems", "0"], "`num_problems` must be an int >= 1, got 0"),
        (["--p", "0", "--preprocess", "log"], "`p` must be positive"),
    ],
)
def test_wrong_settings_are_named(options, message, capsys, tmp_path):
    out = tmp_path / "run"
    command = ["train", "lstm-quadratic", "--out", str(out), *TINY, *options]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_weights_of_another_optimizer_in_a_run(run, capsys, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["recipe"]["optimizer"]["hidden_size"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    assert cli.main(["evaluate", str(copy)]) == 2
    assert "from another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part",
    [
        {"optimizer": recipes.LstmOptimizer(4, preprocess="log", num_averaged=1)},
        {"optimizer": recipes.NtmBfgsOptimizer(4)},
        {"optimizer": recipes.NtmBfgsOptimizer(4, window=2)},
        {"optimizer": recipes.RnnpropOptimizer(4)},
        {"optimizer": recipes.ConvFcLstmOptimizer(4)},
        {"estimator": recipes.Pes(unroll=2, horizon=4, num_problems=4)},
        {"estimator": recipes.TruncatedBptt(2, 4, 4, second_order=False)},
        {"clip": 1.0},
        {"curriculum": (4, 8), "imitation": 0.5, "scaling": 1.0},
        {"problem": _Families(), "imitation": 0.5, "scaling": 1.0},
        {"estimator": recipes.WholeRuns(shortest=2, longest=5, num_problems=4)},
    ],
)
def test_every_setting_makes_a_step(part, key):
    recipe = dataclasses.replace(
        recipes.RECIPES["lstm-quadratic"],
        estimator=recipes.TruncatedBptt(unroll=2, horizon=4, num_problems=4),
        problem=recipes.QuadraticProblem(dim=2),
    )
    parts = runs.build(dataclasses.replace(recipe, **part))
    init, step = parts.train_step
    state, info = jax.jit(step)(init(key))
    assert np.isfinite(info.loss).all()
    assert state.step == 1


def test_a_run_over_families_compares_relative_losses(
    one_baseline, tmp_path, monkeypatch
):
    """Each family has its own tuned rates; its losses are over their first."""
    families = lambda: {
        "small": jm.problems.quadratics(2),
        "large": jm.problems.quadratics(4),
    }
    for name in ("small_networks", "larger_networks"):
        monkeypatch.setattr(jm.problems, name, families)
    options = shlex.split(
        "--steps 4 --log-every 2 --validate-every 2 --validation-problems 3 "
        "--test-problems 5 --test-steps 6 --shortest 3 --longest 6 --num-problems 2"
    )
    run = tmp_path / "run"
    assert cli.main(["train", "general-optimizer", "--out", str(run), *options]) == 0
    test = json.loads((run / "summary.json").read_text())["test"]
    for name, found in test["optimizers"].items():
        assert found["loss"]["mean"][0] == pytest.approx(1)
        assert list(found.get("rates", ())) == (
            [] if name == "learned" else ["small", "large"]
        )
    assert test["optimizers"]["momentum"]["final"]["mean"] < 0.5
    records = (run / "metrics.jsonl").read_text().splitlines()
    assert "loss_large" in json.loads(records[0])


def test_thetas_of_partitions_are_no_rates_of_families():
    """Both are dicts."""
    recipe = dataclasses.replace(
        recipes.RECIPES["lstm-quadratic"],
        problem=recipes.QuadraticProblem(dim=2),
        optimizer=recipes.ConvFcLstmOptimizer(3),
        validation_problems=2,
        test_steps=3,
    )
    parts = runs.build(recipe)
    theta = recipe.optimizer.make().init(jax.random.key(0))
    assert np.isfinite(parts.validate(theta)["loss"])


def test_neural_art_from_the_command_line(one_baseline, tmp_path, capsys):
    """On noise, with a network of two filters; tested at twice the size."""
    rng = np.random.default_rng(0)
    weights, size = {}, 3
    for name in ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3"):
        kernel = rng.normal(size=(3, 3, size, 2)).astype(np.float32) / 2
        weights |= {f"conv{name}/kernel": kernel, f"conv{name}/bias": np.zeros(2, "f")}
        size = 2
    np.savez(tmp_path / "vgg.npz", **weights)
    for folder in ("contents", "styles"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / folder / f"{i}.png")
    given = ["--weights", str(tmp_path / "vgg.npz")]
    options = shlex.split(
        "--steps 2 --log-every 1 --validate-every 2 --hidden-size 3 --unroll 2 "
        "--horizon 4 --test-problems 2 --test-steps 3 --size 8"
    )
    command = ["train", "lstm-neural-art", "--out", str(tmp_path / "run"), *options]
    assert cli.main([*command, *given]) != 0
    assert "`pictures` must be given" in capsys.readouterr().err
    given += ["--pictures", str(tmp_path / "pictures")]
    assert cli.main([*command, *given]) == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    assert np.isfinite(found["optimizers"]["learned"]["final"]["mean"])
    # What is read again has the paths, and problems of both sizes.
    splits = runs.read(tmp_path / "run").recipe.problem.splits()
    sizes = [
        jax.eval_shape(problem.sample, jax.random.key(0)).content.shape
        for problem in (splits.train, splits.test)
    ]
    assert sizes == [(8, 8, 3), (16, 16, 3)]


def test_a_run_starts_from_saved_meta_parameters(run, one_baseline, tmp_path, capsys):
    """And keeps them: the file may go."""
    recipe = runs.read(run).recipe
    lopt = recipe.optimizer.make()
    saved, other = tmp_path / "saved.safetensors", tmp_path / "run"
    theta = jax.tree.map(lambda x: x + 0.5, lopt.init(jax.random.key(7)))
    jm.training.save(saved, theta)
    options = [*TINY, "--start", str(saved), "--outer-learning-rate", "1e-12"]
    assert cli.main(["train", "lstm-quadratic", "--out", str(other), *options]) == 0
    saved.unlink()
    like = jax.eval_shape(lopt.init, jax.random.key(0))
    opened = runs.read(other)
    found = runs.best_meta_params(opened, runs.build(opened.recipe).like)
    chex.assert_trees_all_close(found, theta, atol=1e-9)
    kept = jm.training.load(other / "start.safetensors", like=like)
    chex.assert_trees_all_equal(kept, theta)
    # Or from the best of a run, here with other truncations.
    second = tmp_path / "second"
    options[options.index(str(saved))] = str(other)
    options += ["--unroll", "4"]
    assert cli.main(["train", "lstm-quadratic", "--out", str(second), *options]) == 0
    kept = jm.training.load(second / "start.safetensors", like=like)
    chex.assert_trees_all_equal(kept, found)
    command = ["train", "lstm-quadratic", "--out", str(tmp_path / "new"), *options]
    capsys.readouterr()
    assert cli.main([*command, "--hidden-size", "5"]) != 0
    assert "of another model or optimizer" in capsys.readouterr().err
    options[options.index(str(other))] = str(saved)
    lost = ["train", "lstm-quadratic", "--out", str(tmp_path / "new"), *options]
    capsys.readouterr()
    assert cli.main(lost) != 0
    assert "there is no" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_runs_without_truncations_have_no_curriculum():
    recipe = recipes.RECIPES["general-optimizer"]
    for change in ({"curriculum": (100,)}, {"imitation": 0.5}):
        with pytest.raises(ValueError, match="`curriculum` and `imitation` must"):
            dataclasses.replace(recipe, **change).check()


def test_a_share_of_the_steps_ends_its_cosine_at_zero():
    """Imitation makes three of ten meta-steps, and its outer rate ends with them."""
    recipe = recipes.RECIPES["lstm-mnist-enhanced"]
    recipe = dataclasses.replace(recipe, steps=100, clip=None)
    for share in (0.3, 0.7, 1.0):
        tx = recipe.make_outer_tx(share)
        state, sizes = tx.init(0.0), []
        for _ in range(round(100 * share) + 1):
            updates, state = tx.update(1.0, state)
            sizes.append(abs(float(updates)))
        assert sizes[0] == pytest.approx(recipe.outer_learning_rate, rel=1e-3)
        assert sizes[-2] > 0
        assert sizes[-1] == 0
