"""Tests the plots: read back from the axes, from pixels, and from a run folder."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta import plots, recipes, runs
from jaxmeta.recipes import _config

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch):
    """Makes importing pyplot fail: it keeps figures and wants a display."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)


def curves(ax):
    return {line.get_label(): np.stack(line.get_data()) for line in ax.lines}


def band(ax, index=0):
    """Returns the x, lower and upper edges of the `index`-th band."""
    vertices = ax.collections[index].get_paths()[0].vertices
    xs = np.unique(vertices[:, 0])
    ys = [vertices[vertices[:, 0] == x, 1] for x in xs]
    return xs, [y.min() for y in ys], [y.max() for y in ys]


def legend_title(ax):
    return ax.get_legend().get_title().get_text()


# Learning curves.


def test_learning_curve_shows_records_and_validation_in_percent():
    records = [
        {"step": 10, "accuracy": 0.25},
        {"step": 20, "accuracy": 0.5, "validation_accuracy": 0.375},
    ]
    ax = plots.learning_curve(records, metric="accuracy")
    assert curves(ax).keys() == {"training", "validation"}
    np.testing.assert_array_equal(curves(ax)["training"], [[10, 20], [25, 50]])
    np.testing.assert_array_equal(curves(ax)["validation"], [[20], [37.5]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("meta-steps", "accuracy (%)")


def test_learning_curve_of_seeds_is_mean_and_range_at_shared_steps():
    losses = [[4.0, 2.0, 9.0], [1.0, 3.0], [1.0, 1.0]]
    runs = [
        [
            {"step": 10 * k + 10, "loss": x, "validation_loss": x + 1}
            for k, x in enumerate(run)
        ]
        for run in losses
    ]
    ax = plots.learning_curve(runs)
    of_runs = ", mean of 3 runs"
    found = curves(ax)
    np.testing.assert_array_equal(found["training" + of_runs], [[10, 20], [2, 2]])
    np.testing.assert_array_equal(found["validation" + of_runs], [[10, 20], [3, 3]])
    np.testing.assert_array_equal(band(ax), [[10, 20], [1, 1], [4, 3]])
    np.testing.assert_array_equal(band(ax, 1), [[10, 20], [2, 2], [5, 4]])
    assert legend_title(ax) == "bands from the lowest run to the highest"


def test_a_long_run_gets_a_centred_running_mean_beside_its_records():
    losses = np.arange(1.0, 101.0)
    losses[50] += 5  # Over 5 records: 1 more on each.
    records = [{"step": k, "loss": x} for k, x in enumerate(losses)]
    found = curves(plots.learning_curve(records))
    np.testing.assert_array_equal(found["training"][1], losses)
    smooth = found["training, running mean of 5 records"][1]
    expected = np.arange(1.0, 101.0)
    expected[48:53] += 1
    expected[-2:] = 98.5, 99.0  # Of the last four and the last three: no jump.
    np.testing.assert_allclose(smooth, expected)


@pytest.mark.parametrize(
    ("metric", "values", "scale"),
    [
        ("loss", [5.0, 0.4], "log"),
        ("loss", [5.0, 0.6], "linear"),
        ("loss", [5.0, -0.4], "linear"),
        ("loss", [float("nan"), 5.0, 0.4], "log"),
        ("accuracy", [0.9, 0.01], "linear"),
    ],
)
def test_only_losses_over_a_factor_of_ten_get_a_log_axis(metric, values, scale):
    records = [{"step": k, metric: x} for k, x in enumerate(values)]
    assert plots.learning_curve(records, metric=metric).get_yscale() == scale


@pytest.mark.parametrize("records", [[], [[]], [[{"step": 1, "loss": 1.0}], []]])
def test_learning_curve_without_records_says_so(records):
    with pytest.raises(ValueError, match="`records` is empty"):
        plots.learning_curve(records)


def test_learning_curve_names_the_metrics_there_are():
    with pytest.raises(ValueError, match=r"'acuracy'.*\['loss', 'step'\]"):
        plots.learning_curve([{"step": 1, "loss": 1.0}], metric="acuracy")


def test_learning_curve_takes_arrays_and_run_folders(tmp_path):
    stacked = jnp.arange(6.0).reshape(3, 2)  # [S, T]
    found = curves(plots.learning_curve(stacked))["training"]
    np.testing.assert_array_equal(found, [[1, 2, 3], [0.5, 2.5, 4.5]])
    both = curves(plots.learning_curve([stacked, stacked + 2]))
    np.testing.assert_array_equal(both["training, mean of 2 runs"][1], [1.5, 3.5, 5.5])
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 2.0}\n')
    found = curves(plots.learning_curve(tmp_path))["training"]
    np.testing.assert_array_equal(found, [[5], [2]])


# Adaptation curves.


def test_adaptation_curve_shows_mean_and_interval_of_an_evaluation():
    per_task = jnp.array([[4.0, 1.0], [8.0, 3.0]])  # [T, K + 1]
    loss = jm.training.mean_with_interval(per_task)
    accuracy = jm.training.mean_with_interval(per_task / 10)
    evaluation = jm.training.Evaluation(loss, {"accuracy": accuracy})
    ax = plots.adaptation_curve(evaluation, metric="accuracy")
    (label,) = curves(ax)
    assert label == "mean and 95 % interval over 2 tasks"
    np.testing.assert_allclose(curves(ax)[label], [[0, 1], [60, 20]], rtol=1e-6)
    # Of two numbers, the standard error is half their distance.
    edges = [[60 - 1.96 * 20, 20 - 1.96 * 10], [60 + 1.96 * 20, 20 + 1.96 * 10]]
    np.testing.assert_allclose(band(ax)[1:], edges, rtol=1e-5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("inner steps", "accuracy (%)")


def test_the_inductive_curve_stands_beside_the_transductive_one():
    test = {
        "num_tasks": 1000,
        "loss": {"mean": [3.0, 1.0], "half_width": [0.5, 0.25]},
        "inductive": {"loss": {"mean": [4.0, 2.0], "half_width": [1.0, 0.5]}},
    }
    ax = plots.adaptation_curve(test)
    assert curves(ax).keys() == {"transductive", "inductive"}
    np.testing.assert_array_equal(curves(ax)["inductive"], [[0, 1], [4, 2]])
    np.testing.assert_array_equal(band(ax, 0), [[0, 1], [2.5, 0.75], [3.5, 1.25]])
    np.testing.assert_array_equal(band(ax, 1), [[0, 1], [3, 1.5], [5, 2.5]])
    assert legend_title(ax) == "mean and 95 % interval over 1,000 tasks"
    styles = [(line.get_linestyle(), line.get_marker()) for line in ax.lines]
    assert styles == [("-", "o"), ("--", "s")]
    alone = plots.adaptation_curve(test["inductive"])
    assert curves(alone).keys() == {"mean and 95 % interval"}


def test_the_untrained_curve_stands_beside_the_trained_one():
    loss = lambda *mean: {"loss": {"mean": mean, "half_width": [0.5] * len(mean)}}
    test = {"num_tasks": 7, **loss(3.0, 1.0), "untrained": loss(4.0, 2.0)}
    ax = plots.adaptation_curve(test)
    assert curves(ax).keys() == {"meta-trained", "before meta-training"}
    np.testing.assert_array_equal(curves(ax)["before meta-training"], [[0, 1], [4, 2]])
    test["inductive"] = loss(5.0, 4.0)
    assert list(curves(plots.adaptation_curve(test))) == [
        "transductive",
        "inductive",
        "before meta-training",
    ]


def test_without_inner_steps_the_interval_is_a_bar():
    test = {"num_tasks": 9, "loss": {"mean": [3.0], "half_width": [0.5]}}
    ax = plots.adaptation_curve(test)
    (bar,) = ax.collections[0].get_segments()
    np.testing.assert_array_equal(bar, [[0, 2.5], [0, 3.5]])


def test_the_unknown_interval_of_one_task_is_not_drawn():
    evaluation = jm.training.Evaluation(
        jm.training.mean_with_interval(jnp.ones((1, 3))), {}
    )
    ax = plots.adaptation_curve(evaluation)
    ax.figure.canvas.draw()
    assert not ax.collections[0].get_paths()


def test_adaptation_curve_names_the_metrics_there_are():
    test = {
        "num_tasks": 1,
        "loss": {"mean": [1.0], "half_width": [1.0]},
        "inductive": {},
    }
    with pytest.raises(ValueError, match=r"'accuracy' was not .* only \['loss'\]"):
        plots.adaptation_curve(test, metric="accuracy")


# Tasks.


def image_task(channels=1, *, one_hot=True):
    """Returns a 2-way task of 5 x 4 images: 1 and 2 support images, 3 queries each."""
    rng = np.random.default_rng(0)
    support, query = rng.random((3, 5, 4, channels)), rng.random((6, 5, 4, channels))
    labels = np.array([1, 0, 1]), np.array([0, 0, 0, 1, 1, 1])
    if one_hot:
        labels = [np.eye(2)[label] for label in labels]
    return jm.Task(jm.Examples(support, labels[0]), jm.Examples(query, labels[1]))


def find(canvas, image):
    """Returns the corners at which the canvas has the image."""
    height, width = image.shape[:2]
    return [
        (y, x)
        for y in range(canvas.shape[0] - height + 1)
        for x in range(canvas.shape[1] - width + 1)
        if np.allclose(canvas[y : y + height, x : x + width], image)
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("one_hot", [True, False])
def test_a_sheet_has_a_row_a_class_and_the_support_set_in_a_frame(channels, one_hot):
    task = image_task(channels, one_hot=one_hot)
    ax = plots.task_sheet(task, queries_per_class=2)
    (frame,) = ax.patches
    (canvas,) = (np.asarray(image.get_array()) for image in ax.images)
    rows = {0: set(), 1: set()}
    for k, label in enumerate([1, 0, 1]):
        ((y, x),) = find(canvas, task.support.inputs[k])
        rows[label].add(y)
        assert x + 4 <= frame.get_width()
    for k, label in enumerate([0, 0, 0, 1, 1, 1]):
        corners = find(canvas, task.query.inputs[k])
        assert len(corners) == (0 if k % 3 == 2 else 1)  # Two a class.
        for y, x in corners:
            rows[label].add(y)
            assert x > frame.get_width()
    assert len(rows[0]) == len(rows[1]) == 1
    assert rows[0] < {*rows[0], *rows[1]} and max(rows[0]) < min(rows[1])
    # Everything else is white.
    ink = (task.support.inputs != 1).sum() + (
        task.query.inputs[[0, 1, 3, 4]] != 1
    ).sum()
    assert (canvas != 1).sum() == ink * 3 // channels
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["support", "query"]


def test_images_outside_the_unit_range_are_scaled_alike():
    inputs = np.array([-1.0, 3.0, 1.0, 0.0]).reshape(4, 1, 1, 1)
    labels = np.array([0, 1])
    task = jm.Task(jm.Examples(inputs[:2], labels), jm.Examples(inputs[2:], labels))
    canvas = plots.task_sheet(task).images[0].get_array()
    assert set(np.unique(canvas)) == {0.0, 0.25, 0.5, 1.0}


def test_a_regression_task_is_its_points():
    task = jm.Task(
        jm.Examples(jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [4.0]])),
        jm.Examples(jnp.array([[5.0]]), jnp.array([[6.0]])),
    )
    ax = Figure().subplots()
    assert plots.task_sheet(task, ax=ax) is ax
    np.testing.assert_array_equal(curves(ax)["support"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(curves(ax)["query"], [[5], [6]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("input x", "target y")


def test_other_tasks_are_explained_away():
    examples = jm.Examples(np.zeros((4, 2)), np.zeros((4, 1)))
    with pytest.raises(
        ValueError, match=r"image inputs .* \.\.\. = \[\(2,\), \(1,\)\]"
    ):
        plots.task_sheet(jm.Task(examples, examples))
    with pytest.raises(ValueError, match="`queries_per_class` must be an int >= 1"):
        plots.task_sheet(image_task(), queries_per_class=0)


# Runs.


IMAGES = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 6), np.uint8)


@pytest.fixture(autouse=True)
def glyphs_from_the_shelf(monkeypatch):
    """Makes the recipe's tasks of `IMAGES`: drawing glyphs takes seconds to compile."""
    sampler = jm.tasks.few_shot(IMAGES, ways=2, shots=1, queries=2)
    splits = recipes.TaskSplits(sampler, sampler, sampler)
    monkeypatch.setattr(recipes.GlyphTasks, "splits", lambda self: splits)


UNTRAINED = {"mean": [0.9, 0.8], "half_width": [0.1, 0.1]}


def make_run(directory, *, tested=True, tasks=None):
    recipe = recipes.RECIPES["maml-glyphs-5w1s"]
    recipe = dataclasses.replace(recipe, tasks=tasks or recipe.tasks)
    directory.mkdir()
    config = {"name": "a-recipe", "recipe": _config.to_json(recipe)}
    (directory / "config.json").write_text(json.dumps(config))
    metrics = {"loss": 1.5, "accuracy": 0.5}
    if isinstance(tasks, recipes.SinusoidTasks):
        metrics.pop("accuracy")
    validated = {f"validation_{name}": value for name, value in metrics.items()}
    records = [{"step": k, **metrics, "seconds": 1.0} for k in (10, 20)]
    records[1] |= validated
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(lines)
    if tested:
        table = {
            name: {"mean": [1.0, 0.5], "half_width": [0.1, 0.1]} for name in metrics
        }
        test = {"num_tasks": 7, **table, "inductive": table}
        summary = {"published": "98.7 % (the paper)", "test": test}
        summary["untrained"] = {name: UNTRAINED for name in metrics}
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


@pytest.fixture
def figures(monkeypatch):
    """Collects the figures that are saved."""
    saved = []
    savefig = Figure.savefig

    def collect(figure, *args, **kwargs):
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", collect)
    return saved


def test_plot_run_draws_what_the_folder_says(tmp_path, figures):
    from matplotlib.image import imread

    run = make_run(tmp_path / "run")
    paths = runs.plot(run)
    names = ["learning_curve.png", "adaptation_curve.png", "tasks.png"]
    assert paths == [run / "plots" / name for name in names]
    assert sorted(x.name for x in (run / "plots").iterdir()) == sorted(names)
    for path in paths:
        pixels = imread(path)
        assert pixels.ndim == 3 and pixels.std() > 0.01
    learning, adaptation, tasks = figures
    assert learning.get_suptitle() == "a-recipe"
    labels = [ax.get_ylabel() for ax in learning.axes]
    assert labels == ["loss (cross entropy)", "accuracy (%)"]
    np.testing.assert_array_equal(curves(learning.axes[1])["validation"], [[20], [50]])
    np.testing.assert_array_equal(
        curves(adaptation.axes[1])["inductive"], [[0, 1], [100, 50]]
    )
    np.testing.assert_array_equal(
        curves(adaptation.axes[1])["before meta-training"], [[0, 1], [90, 80]]
    )
    assert adaptation.get_supxlabel() == "published: 98.7 % (the paper)"
    sheets = [np.asarray(ax.images[0].get_array()) for ax in tasks.axes]
    assert len(sheets) == 3 and not np.array_equal(sheets[0], sheets[1])
    for sheet in sheets:  # Of each class, one support and two query images.
        for images in IMAGES[..., None] / 255:
            assert sum(len(find(sheet, image)) for image in images) == 3


def test_plot_run_of_an_untested_regression_has_one_panel(tmp_path, figures):
    run = make_run(tmp_path / "run", tested=False, tasks=recipes.SinusoidTasks())
    paths = runs.plot(run)
    assert [path.name for path in paths] == ["learning_curve.png", "tasks.png"]
    assert all(path.exists() for path in paths)
    assert [ax.get_ylabel() for ax in figures[0].axes] == ["loss (squared error)"]
    assert {ax.get_ylabel() for ax in figures[1].axes} == {"target y"}


def test_plot_run_explains_what_is_missing(tmp_path):
    with pytest.raises(
        ValueError, match=r"is not a run folder: .* `jaxmeta train` creates"
    ):
        runs.plot(tmp_path)
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"summary.json cannot be read: 'test'"):
        runs.plot(run)
    (run / "metrics.jsonl").write_text('{"step": 1')
    with pytest.raises(
        ValueError, match=r"no metrics yet: `jaxmeta train a-recipe --out"
    ):
        runs.plot(run)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="has no metrics yet"):
        runs.plot(run)


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", tasks=recipes.SinusoidTasks())
    path = runs.plot(run)[0]
    before = path.read_bytes()

    def fail(figure, new, **kwargs):
        new.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        runs.plot(run)
    assert path.read_bytes() == before


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda: plots.learning_curve([{"step": 1, "loss": 1.0}]),
        lambda: runs.plot(tmp_path),
    ):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            draw()


def test_optimizer_curves_are_what_was_evaluated():
    family = jm.optimizers.learned_rate(optax.sgd)
    curves = jm.training.evaluate_optimizer(
        family,
        0.01,
        jm.problems.quadratics(dim=2),
        num_steps=3,
        num_problems=4,
        key=jax.random.key(0),
    )
    ax = plots.optimizer_curves({"ours": curves, "theirs": curves})
    assert [line.get_label() for line in ax.lines] == ["ours", "ours, median", "theirs"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), curves.at_step.mean)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), curves.median)
    with pytest.raises(ValueError, match="at least one optimizer"):
        plots.optimizer_curves({})


def test_an_optimizer_that_diverges_does_not_squeeze_the_others():
    def told(values):
        return {"loss": {"mean": values, "half_width": [0] * 3, "median": values}}

    ax = plots.optimizer_curves(
        {"ours": told([3.0, 1.0, 0.5]), "theirs": told([3.0, 1e9, np.nan])}
    )
    assert ax.get_ylim()[1] < 10


def test_a_horizon_sweep_is_a_smoothed_curve_on_logarithmic_axes():
    mean = np.r_[5.0, np.linspace(2, 1, 100), np.ones(900)]
    told = {"loss": {"mean": mean, "half_width": 0 * mean, "median": mean}}
    ax = plots.horizon_sweep({"ours": told}, horizon=100)
    ends, losses = ax.lines[0].get_data()
    assert (ends[0], ends[-1]) == (1, 1000)
    np.testing.assert_allclose(losses[0], mean[1])
    np.testing.assert_allclose(losses[-1], mean[900:].mean())
    assert ax.lines[1].get_xdata()[0] == 100
    assert ax.get_xscale() == "log"
    with pytest.raises(ValueError, match="at least one optimizer"):
        plots.horizon_sweep({})


def test_a_width_depth_grid_names_what_does_not_fit():
    losses = np.array([[0.4, 0.3, 0.2], [0.6, 0.5, 0.1]])
    ax = plots.width_depth_grid(
        {"ours": losses, "adam": 2 * losses}, [5, 9, 20], [1, 2]
    )
    np.testing.assert_allclose(ax.lines[3].get_ydata(), 2 * losses[1])
    assert [line.get_marker() for line in ax.lines] == ["o", "s", "o", "s"]
    with pytest.raises(ValueError, match=r"'ours' must have shape.*\(2, 2\)"):
        plots.width_depth_grid({"ours": losses}, [5, 9], [1, 2])
    with pytest.raises(ValueError, match="at least one optimizer"):
        plots.width_depth_grid({}, [5], [1])


def test_an_update_is_drawn_against_its_gradient():
    """Adam's first update is its rate against the gradient's sign."""
    found = jm.training.update_responses(
        jm.optimizers.learned_rate(optax.adam),
        0.1,
        jm.problems.quadratics(dim=2),
        gradients=[2.0, -1.0, 0.5],
        steps=[0, 4],
        num_problems=3,
        key=jax.random.key(0),
    )
    ax = plots.update_against_gradient(found)
    assert [line.get_label() for line in ax.lines[:2]] == [
        "after 0 updates",
        "after 4 updates",
    ]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [-1, 0.5, 2])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.1, -0.1, -0.1], rtol=1e-5)


# Several learners in one picture; embeddings; paths.


def test_adaptation_curves_of_several_learners_and_of_a_run_folder(tmp_path):
    loss = lambda *mean: {"mean": mean, "half_width": [0.5] * len(mean)}
    of_run = {"num_tasks": 7, "loss": loss(3.0, 2.0), "inductive": {"loss": loss(9.0)}}
    (tmp_path / "summary.json").write_text(json.dumps({"test": of_run}))
    ax = plots.adaptation_curve({"a": tmp_path, "b": {"loss": loss(1.0, 0.0)}})
    found = curves(ax)
    np.testing.assert_array_equal(found["a"], [[0, 1], [3, 2]])
    np.testing.assert_array_equal(found["b"], [[0, 1], [1, 0]])
    assert legend_title(ax) == "mean and 95 % interval over 7 tasks"
    assert set(curves(plots.adaptation_curve(tmp_path))) == {
        "transductive",
        "inductive",
    }
    with pytest.raises(ValueError, match="'accuracy' was not evaluated"):
        plots.adaptation_curve({"a": tmp_path}, metric="accuracy")


def test_embedding_map_keeps_the_distances_of_prototypes():
    """Three prototypes lie in a plane: nothing of them is lost in the picture."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 2, 5)) * 9
    labels = np.arange(30) % 3
    points = centers[labels] + rng.normal(size=(30, 2, 5))
    ax = plots.embedding_map(points, np.eye(3)[labels], prototypes=centers, names="xyz")
    drawn = np.array([text.xy for text in ax.texts])
    between = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
    flat = centers.reshape(3, -1)
    np.testing.assert_allclose(between(drawn), between(flat), rtol=1e-6)
    assert [text.get_text() for text in ax.texts] == ["x", "y", "z"]
    sizes = [len(collection.get_offsets()) for collection in ax.collections]
    assert sizes == [10, 1] * 3
    means = plots.embedding_map(points, labels)  # Classes' means for prototypes.
    expected = np.stack([points[labels == k].mean(0).ravel() for k in range(3)])
    drawn = np.array([text.xy for text in means.texts])
    np.testing.assert_allclose(between(drawn), between(expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": [0, 1]},
            "`labels` must have one label for each of the 3 embeddings",
        ),
        ({"prototypes": np.ones((1, 2))}, "`prototypes` must cover all 2 classes"),
        ({"prototypes": np.ones((2, 3))}, "with the embeddings' 2 features"),
        ({"names": ["a"]}, "`names` must have 2"),
    ],
)
def test_embedding_map_names_what_does_not_fit(change, message):
    options = {"embeddings": np.eye(3)[:, :2], "labels": [0, 1, 1]} | change
    with pytest.raises(ValueError, match=message):
        plots.embedding_map(**options)


def test_optimizer_paths_lie_on_the_loss_and_name_bad_shapes():
    path = np.array([[4.0, -3.0], [2.0, 1.0], [0.5, 0.0]])
    ax = plots.optimizer_paths(lambda x: x[0] ** 2 + x[1], {"sgd": path})
    np.testing.assert_array_equal(curves(ax)["sgd"], path.T)
    for level, lines in zip(
        ax.collections[0].levels, ax.collections[0].get_paths(), strict=True
    ):
        x, y = lines.vertices.T
        np.testing.assert_allclose(x**2 + y, level, atol=0.02)
    for paths in ({}, {"sgd": path[:, :1]}):
        with pytest.raises(ValueError, match="`paths` must have at least one"):
            plots.optimizer_paths(lambda x: x.sum(), paths)


def test_optimizers_are_drawn_from_arrays_and_run_folders(tmp_path):
    losses = np.array([[4.0, 2.0, 1.0], [2.0, 2.0, 3.0]])  # [N, T + 1]
    found = curves(plots.optimizer_curves({"sgd": losses}))
    np.testing.assert_allclose(found["sgd"][1], [3, 2, 2])
    loss = {"mean": [2.0, 1.0], "half_width": [0.5, 0.25], "median": [2.0, 0.5]}
    responses = {"steps": [0], "gradients": [-1.0, 1.0], "updates": [[[0.1, -0.1]]]}
    test = {"optimizers": {"learned": {"loss": loss}}, "responses": responses}
    (tmp_path / "summary.json").write_text(json.dumps({"test": test}))
    found = curves(plots.optimizer_curves(tmp_path))
    np.testing.assert_array_equal(found["learned"][1], [2, 1])
    line = plots.update_against_gradient(tmp_path).lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.1, -0.1])
