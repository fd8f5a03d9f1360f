"""Synthetic tasks and few-shot episodes, decoded into what they were drawn from."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta.tasks import _datasets, _glyphs

MANY = 2000  # tasks

# These programs run once: compiling them is nearly all the time they take.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _many(sample_task, key, count=MANY):
    """`count` tasks, as NumPy arrays with a task axis in front."""
    draw = jit(lambda sample_task, keys: jax.vmap(sample_task)(keys))
    partial = jax.tree_util.Partial(sample_task)
    return jax.tree.map(np.asarray, draw(partial, jax.random.split(key, count)))


def _assert_uniform(values, low, high):
    """Mean and variance within 4 standard errors; both ends are reached, not passed."""
    values, width = np.ravel(values), high - low
    assert low <= values.min() < low + 0.02 * width
    assert high >= values.max() > high - 0.02 * width
    share = (values - low) / width
    assert abs(share.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / share.size)
    squares = np.square(share - 1 / 2)
    assert abs(squares.mean() - 1 / 12) < 4 * np.sqrt(1 / 180 / share.size)


def _assert_equally_often(counts):
    """Chi-square: within 5 standard deviations of its mean."""
    counts = np.ravel(counts)
    expected = counts.sum() / counts.size
    chi_square = np.sum(np.square(counts - expected)) / expected
    freedom = counts.size - 1
    assert expected > 20
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


BAD_COUNTS = [0, -1, 2.0, True, None]


# Sinusoids.


def _waves(examples, omega=1.0):
    """Fits p sin(omega x) + q cos(omega x): returns [T, 2] and the largest residual."""
    x, y = examples.inputs[..., 0], examples.targets[..., 0]
    basis = np.stack([np.sin(omega * x), np.cos(omega * x)], -1)  # [T, N, 2]
    fitted = np.stack([np.linalg.lstsq(a, b)[0] for a, b in zip(basis, y, strict=True)])
    return fitted, np.abs(np.einsum("tnd,td->tn", basis, fitted) - y).max()


def test_sinusoids_are_what_the_paper_says(key, x64):
    """A sin(x - b) is A cos(b) sin(x) - A sin(b) cos(x), which fits without error."""
    support, query = _many(jm.tasks.sinusoid(shots=10, queries=7), key)
    chex.assert_shape([support.inputs, support.targets], (MANY, 10, 1))
    chex.assert_shape([query.inputs, query.targets], (MANY, 7, 1))
    assert support.inputs.dtype == support.targets.dtype == np.float64
    fitted, residual = _waves(support)
    assert residual < 1e-9
    again, residual = _waves(query)
    assert residual < 1e-9
    np.testing.assert_allclose(again, fitted, rtol=1e-6, atol=1e-6)
    amplitude = np.hypot(*fitted.T)
    phase = np.arctan2(-fitted[:, 1], fitted[:, 0])
    _assert_uniform(amplitude, 0.1, 5.0)
    _assert_uniform(phase, 0.0, np.pi)
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 4 / np.sqrt(MANY)
    for inputs in (support.inputs, query.inputs):
        _assert_uniform(inputs, -5.0, 5.0)


def test_the_points_of_a_sinusoid_are_all_different(key):
    support, query = _many(jm.tasks.sinusoid(shots=10, queries=10), key, 50)
    points = np.concatenate([support.inputs, query.inputs], 1).reshape(50, -1)
    assert all(len(set(row)) == 20 for row in points)


def test_sinusoids_take_their_ranges(key, x64):
    sample_task = functools.partial(jm.tasks.sinusoid, shots=20, queries=1)
    support, _ = _many(
        sample_task(amplitude=(2, 3), frequency=(2, 2), phase=(-1, 0)), key
    )
    fitted, residual = _waves(support, omega=2)
    assert residual < 1e-9
    _assert_uniform(np.hypot(*fitted.T), 2, 3)
    _assert_uniform(np.arctan2(-fitted[:, 1], fitted[:, 0]), -1, 0)
    support, _ = _many(
        sample_task(amplitude=(1, 1), frequency=(0.8, 1.2), phase=(0, 0)), key
    )
    x, y = support.inputs[..., 0], support.targets[..., 0]
    omega = np.where(np.abs(x) < 1, np.arcsin(y) / x, np.nan)  # y = sin(omega x)
    _assert_uniform(np.nanmean(omega[~np.isnan(omega).all(1)], 1), 0.8, 1.2)
    assert np.nanmax(np.nanstd(omega[~np.isnan(omega).all(1)], 1)) < 1e-9


@pytest.mark.parametrize(
    "sample_task",
    [jm.tasks.sinusoid(), jm.tasks.glyphs(size=6, queries=1)],
    ids=["sinusoid", "glyphs"],
)
def test_tasks_are_functions_of_their_key(sample_task, key):
    a, b = jax.random.split(key)
    sample_task = jit(sample_task)
    chex.assert_trees_all_equal(sample_task(a), sample_task(a))
    inputs, others = (sample_task(k).support.inputs for k in (a, b))
    assert (inputs != others).mean() > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            ({name: bad}, f"`{name}` must be an int >= 1, got {bad}")
            for name in ("shots", "queries")
            for bad in BAD_COUNTS
        ],
        ({"amplitude": (5, 0.1)}, r"`amplitude` must be \(low, high\), got \(5, 0.1\)"),
        ({"phase": (0, 1, 2)}, r"`phase` must be \(low, high\)"),
        ({"frequency": (float("nan"), 1)}, r"`frequency` must be \(low, high\)"),
    ],
)
def test_sinusoids_name_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.sinusoid(**options)


# Few-shot episodes. The image of class c, example e is noise with 255 at the top left,
# where no other pixel is: orientation, class and example can be read off every image.

CLASSES, EXAMPLES = 6, 7


def _images(channels=1, seed=0):
    noise = np.random.default_rng(seed).integers(
        0, 255, (CLASSES, EXAMPLES, 3, 3, channels), np.uint8
    )
    noise[:, :, 0, 0] = 255
    noise[:, :, 0, 1] = np.arange(CLASSES)[:, None, None]
    noise[:, :, 0, 2] = np.arange(EXAMPLES)[:, None]
    return noise


def _decode(inputs, images=None):
    """Reads classes, examples and quarter turns [...] off pixels [..., 3, 3, c]."""
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    pixels = np.rint(inputs * 255).astype(np.uint8)
    np.testing.assert_allclose(inputs, pixels / 255, rtol=1e-6)
    # The top left comes to be at these corners after 0, 1, 2, 3 turns.
    corners = [pixels[..., i, j, 0] for i, j in [(0, 0), (2, 0), (2, 2), (0, 2)]]
    turns = np.argmax(corners, 0)
    upright = np.select(
        [turns[..., None, None, None] == k for k in range(4)],
        [np.rot90(pixels, -k, axes=(-3, -2)) for k in range(4)],
    )
    classes, examples = upright[..., 0, 1, 0], upright[..., 0, 2, 0]
    images = _images(inputs.shape[-1]) if images is None else images
    np.testing.assert_array_equal(upright, images[classes, examples])
    return classes, examples, turns


def _by_label(values, targets):
    """Values [T, W, n] of [T, W * n] examples, label by label."""
    chex.assert_equal_shape_prefix([values, targets], 2)
    assert set(np.unique(targets)) == {0, 1}
    assert (targets.sum(-1) == 1).all()
    order = np.argsort(targets.argmax(-1), -1, kind="stable")
    counts = targets.sum(1)
    assert (counts == counts[0, 0]).all()
    ordered = np.take_along_axis(values, order, 1)
    return ordered.reshape(len(values), targets.shape[-1], -1)


def _episodes(key, dataset=None, count=MANY, **options):
    """(classes, examples, turns) of support and query, each [T, W, n]."""
    options = {"ways": 3, "shots": 2, "queries": 4} | options
    dataset = _images() if dataset is None else dataset
    task = _many(jm.tasks.few_shot(dataset, **options), key, count)
    images = getattr(dataset, "images", dataset)
    return tuple(
        [
            _by_label(value, examples.targets)
            for value in _decode(examples.inputs, images)
        ]
        for examples in task
    )


@pytest.mark.parametrize("rotations", [False, True])
def test_episodes_hold_what_they_should(rotations, key):
    """Shapes, classes alike in support and query, distinct classes and examples."""
    support, query = _episodes(key, rotations=rotations)
    chex.assert_shape(support, (MANY, 3, 2))
    chex.assert_shape(query, (MANY, 3, 4))
    classes, examples, turns = (
        np.concatenate(pair, -1) for pair in zip(support, query, strict=True)
    )
    classes = classes * 4 + turns  # A class of its own for every rotation.
    assert (classes == classes[..., :1]).all()
    in_order = np.sort(classes[..., 0], -1)
    assert (np.diff(in_order) > 0).all()
    assert (np.diff(np.sort(examples, -1)) > 0).all()
    assert (turns > 0).any() == rotations


def test_every_class_gets_every_label_and_every_example_its_turn(key):
    (classes, examples, _), (_, queries, _) = _episodes(key)
    counts = np.zeros((CLASSES, 3))
    labels = np.broadcast_to(np.arange(3), classes.shape[:2])
    np.add.at(counts, (classes[..., 0], labels), 1)
    _assert_equally_often(counts)
    for drawn in (examples, queries):
        for c in range(CLASSES):
            mine = drawn[classes[..., 0] == c]
            _assert_equally_often(np.bincount(mine.ravel(), minlength=EXAMPLES))


def test_all_rotated_classes_come_equally_often(key):
    (classes, _, turns), _ = _episodes(key, rotations=True)
    counts = np.zeros((CLASSES, 4))
    np.add.at(counts, (classes[..., 0], turns[..., 0]), 1)
    _assert_equally_often(counts)


def test_the_classes_of_one_task_are_turned_differently(key):
    """Not all alike, which would be no more classes within a task."""
    (classes, _, turns), _ = _episodes(key, rotations=True, ways=2)
    same_turn = (turns[:, 0, 0] == turns[:, 1, 0]).mean()
    same_class = (classes[:, 0, 0] == classes[:, 1, 0]).mean()
    # Of the other 23 classes 5 have the same rotation, and 3 the same images.
    for share, expected in [(same_turn, 5 / 23), (same_class, 3 / 23)]:
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / MANY)


def test_padding_is_never_drawn(key):
    images = _images()
    num_examples = np.array([7, 3, 4, 5, 3, 6], np.int32)
    dataset = _datasets.ImageClasses(images, num_examples, tuple("abcdef"))
    support, query = _episodes(key, dataset, shots=1, queries=2)
    for classes, examples, _ in (support, query):
        assert (examples < num_examples[classes]).all()
        for c, count in enumerate(num_examples):
            mine = examples[classes == c]
            _assert_equally_often(np.bincount(mine.ravel(), minlength=count))


def test_all_classes_and_all_examples_can_be_used(key):
    support, query = _episodes(key, count=20, ways=CLASSES, shots=3, queries=4)
    classes, examples = (
        np.concatenate(pair, -1) for pair in zip(support[:2], query[:2], strict=True)
    )
    assert (np.sort(classes[..., 0]) == np.arange(CLASSES)).all()
    assert (np.sort(examples) == np.arange(EXAMPLES)).all()


def test_images_keep_their_channels(key):
    task = _many(
        jm.tasks.few_shot(_images(3), ways=2, shots=1, queries=1, rotations=True),
        key,
        count=20,
    )
    chex.assert_shape(task.support.inputs, (20, 2, 3, 3, 3))
    _decode(task.support.inputs)
    flat = _images()[..., 0]  # Without an axis for channels.
    task = jm.tasks.few_shot(flat, ways=2, shots=1, queries=1)(key)
    chex.assert_shape(task.support.inputs, (2, 3, 3, 1))


@pytest.mark.parametrize("x64", [False, True])
def test_episodes_follow_the_default_float_type(x64, key):
    with jax.enable_x64(x64):
        sample_task = jm.tasks.few_shot(_images(), ways=2, shots=1, queries=1)
        task = jax.eval_shape(sample_task, key)
        expected = {jnp.dtype("float64" if x64 else "float32")}
        assert {x.dtype for x in jax.tree.leaves(task)} == expected


def test_jit_and_vmap_change_no_episode(key):
    sample_task = jm.tasks.few_shot(
        _images(), ways=3, shots=1, queries=2, rotations=True
    )
    keys = jax.random.split(key, 2)
    eager = [sample_task(k) for k in keys]
    compiled = jit(sample_task)
    together = _many(sample_task, key, 2)
    for t in range(2):
        # Division by 255 may become a product inside a compiled program.
        chex.assert_trees_all_close(compiled(keys[t]), eager[t], rtol=1e-6)
        mine = jax.tree.map(lambda x: x[t], together)
        chex.assert_trees_all_close(mine, eager[t], rtol=1e-6)


def test_the_data_are_arguments_not_constants(key):
    images = _images()
    sample_task = jm.tasks.few_shot(images, ways=2, shots=1, queries=1)
    leaves = jax.tree.leaves(sample_task)
    assert [x.dtype for x in leaves] == [np.uint8, np.int32]
    np.testing.assert_array_equal(leaves[0], images)
    np.testing.assert_array_equal(leaves[1], [EXAMPLES] * CLASSES)
    draw = lambda sample_task, key: sample_task(key)
    jaxpr = jax.make_jaxpr(draw)(sample_task, key)
    assert not any(np.size(x) > 10 for x in jaxpr.consts)
    # The same compiled program then serves other data of the same shape.
    draw = jit(chex.assert_max_traces(draw, n=1))
    draw(sample_task, key)
    other = jm.tasks.few_shot(_images(seed=1), ways=2, shots=1, queries=1)
    others = jax.tree.unflatten(jax.tree.structure(sample_task), jax.tree.leaves(other))
    inputs = np.asarray(draw(others, key).support.inputs)
    _decode(inputs, _images(seed=1))


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        *[
            (_images(), {name: bad}, f"`{name}` must be an int >= 1, got {bad}")
            for name in ("ways", "shots", "queries")
            for bad in BAD_COUNTS
        ],
        (_images(), {"ways": 7}, "`ways` must be at most the data's 6 classes, got 7"),
        (
            _images(),
            {"ways": 25, "rotations": True},
            "`ways` must be at most the data's 24 classes, got 25",
        ),
        (
            _images(),
            {"queries": 7},
            r"must be at most 7, .* smallest class, got 1 \+ 7",
        ),
        (
            _datasets.ImageClasses(_images(), np.arange(2, 8, dtype=np.int32), ()),
            {"queries": 2},
            r"must be at most 2, .* smallest class, got 1 \+ 2",
        ),
        (
            _images()[0, 0, 0],
            {},
            r"must be numbers \[cl.*shape \(3, 1\) and dtype uint8",
        ),
        (np.full((3, 4, 5), "a"), {}, "must be numbers.*dtype <U1"),
        ("omniglot", {}, "must be numbers.*got <class 'str'>.*load_folder"),
        (_images()[:0], {}, r"`dataset` must not be empty, got shape \(0, 7"),
        (_images()[:, :0], {}, r"`dataset` must not be empty, got shape \(6, 0"),
        (_images(), {"ways": (3, 2)}, r"`ways` must be an int or \(lowest, highest\)"),
        (_images(), {"shots": (1, 2, 3)}, r"`shots` must be an int or \(lowest,"),
        (_images(), {"shots": (0, 2)}, r"`shots\[0\]` must be an int >= 1, got 0"),
        (_images(), {"ways": (2, 7)}, "at most the data's 6 classes, got 7"),
        (_images(), {"shots": (1, 7)}, r"must be at most 7, .* got 7 \+ 1"),
        (
            _images(),
            {"queries": (1, 2)},
            r"`queries` must be an int >= 1, got \(1, 2\)",
        ),
        (
            np.zeros((6, 7, 5), np.float32),
            {"rotations": True},
            r"`rotations` requires images .*got float32 of shape \(6, 7, 5\)",
        ),
        (
            _images()[..., :2, :],
            {"rotations": True},
            r"`rotations` requires square images, got \(3, 2\)",
        ),
    ],
)
def test_few_shot_names_what_is_wrong(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.few_shot(dataset, **({"ways": 2, "shots": 1, "queries": 1} | options))


# Glyphs.


def _nearest_neighbour_accuracy(key, count, **options):
    """Of 5-way 1-shot classification by the distance of pixels."""
    support, query = _many(jm.tasks.glyphs(queries=2, **options), key, count)
    for images in (support.inputs, query.inputs):
        assert images.min() >= 0
        assert images.max() <= 1
    a, b = (x.reshape(*x.shape[:2], -1) for x in (support.inputs, query.inputs))
    distances = np.square(a[:, None] - b[:, :, None]).sum(-1)  # [T, 10, 5]
    nearest = distances.argmin(-1)
    labels = np.take_along_axis(support.targets.argmax(-1), nearest, 1)
    return np.mean(labels == query.targets.argmax(-1))


def test_glyphs_are_neither_trivial_nor_hopeless(key):
    accuracy = _nearest_neighbour_accuracy(key, 200)
    assert 0.35 < accuracy < 0.8, accuracy  # Chance is 0.2, give or take 0.01.


def test_undistorted_glyphs_are_trivial(key):
    """Only the width of the pen then differs between drawings of a class."""
    assert _nearest_neighbour_accuracy(key, 50, size=14, jitter=0.0, warp=0.0) > 0.98


def test_glyphs_have_their_shapes(key):
    sample_task = jm.tasks.glyphs(ways=3, shots=2, queries=4, size=9, strokes=1)
    support, query = jit(sample_task)(key)
    chex.assert_shape([support.inputs, query.inputs], [(6, 9, 9, 1), (12, 9, 9, 1)])
    np.testing.assert_array_equal(support.targets, np.repeat(np.eye(3), 2, 0))
    np.testing.assert_array_equal(query.targets, np.repeat(np.eye(3), 4, 0))
    pixels = np.concatenate([support.inputs, query.inputs]).reshape(18, -1)
    assert len(np.unique(pixels, axis=0)) == 18  # No drawing twice.
    assert 0.02 < pixels.mean() < 0.5  # There is ink, and paper.


STROKES = {
    "straight": [[[-0.5, -0.8], [0.0, 0.05], [0.5, 0.9]]],
    "a point": [[[0.1, -0.3]] * 3],
    "two": [
        [[-0.9, 0.1], [0.0, 0.1], [0.9, 0.1]],
        [[0.1, -0.5], [0.1, 0.0], [0.1, 0.5]],
    ],
}


@pytest.mark.parametrize("strokes", STROKES)
def test_ink_is_where_the_stroke_is_near(strokes, key, x64):
    """Against the distance to ten thousand points along straight strokes."""
    size, width = 12, 0.07
    points = np.array(STROKES[strokes], float)
    t = np.linspace(0, 1, 10_001)[:, None]
    line = np.concatenate([(1 - t) * p[0] + t * p[2] for p in points])  # (row, column)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    pixels = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    nearest = np.linalg.norm(pixels[:, :, None] - line, axis=-1).min(-1)
    expected = 1 / (1 + np.exp(-(width - nearest) * 2 * size))
    got = jit(_glyphs._render, static_argnums=1)(points, size, width)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert expected.max() > 0.5


def test_curves_are_quadratic_beziers(key, x64):
    """Six straight pieces are near enough to the curve for a pen of this width."""
    points = np.array([[[-0.6, -0.6], [0.9, 0.0], [-0.6, 0.6]]])
    t = np.linspace(0, 1, 10_001)[:, None]
    p = points[0]
    curve = (1 - t) ** 2 * p[0] + 2 * t * (1 - t) * p[1] + t**2 * p[2]
    axis = (np.arange(14) + 0.5) / 7 - 1
    pixels = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    nearest = np.linalg.norm(pixels[:, :, None] - curve, axis=-1).min(-1)
    expected = 1 / (1 + np.exp(-(0.1 - nearest) * 28))
    got = jit(_glyphs._render, static_argnums=1)(points, 14, 0.1)
    # The chords of six pieces are at most |p0 - 2 p1 + p2| / (4 * 36) off, 0.021.
    assert np.abs(got - expected).max() < 0.021 * 28 / 4 + 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            ({name: bad}, f"`{name}` must be an int >= 1, got {bad}")
            for name in ("ways", "shots", "queries", "size", "strokes")
            for bad in BAD_COUNTS
        ],
        ({"jitter": -0.1}, "`jitter` must not be negative, got -0.1"),
        ({"warp": -0.1}, "`warp` must not be negative, got -0.1"),
    ],
)
def test_glyphs_name_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.glyphs(**options)
