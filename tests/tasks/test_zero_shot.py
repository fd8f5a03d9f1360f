"""Zero-shot tasks, the data behind them, and the closed form they are held against."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import io, ndimage

import jaxmeta as jm
from benchmarks import _eszsl
from jaxmeta.tasks import _datasets, _drawing_attributes

MANY = 500  # tasks
COUNTS = (5, 3, 4, 6, 3, 7)  # examples of each class

# These programs run once: compiling them is nearly all the time they take.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _data(held_out=()):
    """Features [class, example], attributes [10 * class, class]; rows are shuffled."""
    pairs = [(c, e) for c, count in enumerate(COUNTS) for e in range(count)]
    features = np.random.default_rng(0).permutation(np.array(pairs, np.float32))
    classes = np.arange(len(COUNTS), dtype=np.float32)
    return jm.tasks.AttributeData(
        features=features,
        labels=features[:, 0].astype(np.int32),
        attributes=np.stack([10 * classes, classes], 1),
        seen=np.array([0, 2, 3, 5], np.int32),
        unseen=np.array([1, 4], np.int32),
        names=tuple("abcdef"),
        held_out=np.array(held_out, np.int32),
    )


def _many(sample_task, key, count=MANY):
    """`count` tasks, as NumPy arrays with a task axis in front."""
    draw = jit(lambda sample_task, keys: jax.vmap(sample_task)(keys))
    return jax.tree.map(np.asarray, draw(sample_task, jax.random.split(key, count)))


def test_tasks_pair_descriptions_with_distinct_examples(key):
    support, query = _many(jm.tasks.zero_shot(_data(), ways=3, queries=4), key)
    assert support.inputs.shape == (MANY, 3, 2)
    assert query.inputs.shape == (MANY, 12, 2)
    assert query.targets.shape == (MANY, 12, 3)
    np.testing.assert_array_equal(support.targets, np.tile(np.eye(3), (MANY, 1, 1)))
    classes = support.inputs[..., 1]
    np.testing.assert_array_equal(support.inputs[..., 0], 10 * classes)
    assert (np.diff(np.sort(classes, -1)) > 0).all()
    assert set(np.unique(classes)) == {0, 2, 3, 5}  # The seen ones.
    # Every query's target points at its own description, and none is drawn twice.
    described = np.einsum("tqw,tw->tq", query.targets, classes)
    np.testing.assert_array_equal(query.inputs[..., 0], described)
    examples = np.sort(query.inputs[..., 1].reshape(MANY, 3, 4), -1)
    assert (np.diff(examples, axis=-1) > 0).all()


def test_every_class_gets_every_label_and_every_example_its_turn(key):
    support, query = _many(jm.tasks.zero_shot(_data(), ways=3, queries=2), key, 2000)
    for label in range(3):
        counts = np.unique(support.inputs[:, label, 1], return_counts=True)[1]
        assert np.abs(counts - 500).max() < 4 * np.sqrt(2000 * 3 / 16)
    for c in (0, 2, 3, 5):
        mine = query.inputs[query.inputs[..., 0] == c][:, 1]
        counts = np.bincount(mine.astype(int), minlength=COUNTS[c])
        assert len(counts) == COUNTS[c]
        expected = counts.sum() / COUNTS[c]
        assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_classes_may_be_chosen_and_held_out_examples_are_never_drawn(key):
    held_out = np.flatnonzero((_data().features == [[3, 0]]).all(1))
    data = _data(held_out)
    sample_task = jm.tasks.zero_shot(data, ways=2, queries=3, classes=[3, 1])
    support, query = _many(sample_task, key)
    assert set(np.unique(support.inputs[..., 1])) == {1, 3}
    of_three = query.inputs[query.inputs[..., 0] == 3][:, 1]
    assert set(np.unique(of_three)) == {1, 2, 3, 4, 5}
    task = jm.tasks.zero_shot_test(data, classes=[3])
    assert sorted(np.asarray(task.query.inputs[:, 1])) == [1, 2, 3, 4, 5]


def test_the_test_task_holds_all_examples_of_all_unseen_classes():
    support, query = jm.tasks.zero_shot_test(_data())
    np.testing.assert_array_equal(support.inputs, [[10, 1], [40, 4]])
    np.testing.assert_array_equal(support.targets, np.eye(2))
    assert len(query.inputs) == COUNTS[1] + COUNTS[4]
    assert len(np.unique(query.inputs, axis=0)) == len(query.inputs)
    np.testing.assert_array_equal(query.targets @ jnp.array([1, 4]), query.inputs[:, 0])


def test_classes_in_another_order_have_other_labels():
    task = jm.tasks.zero_shot_test(_data(), classes=[4, 1])
    np.testing.assert_array_equal(
        task.query.targets @ jnp.array([4, 1]), task.query.inputs[:, 0]
    )


def test_images_are_scaled_and_data_are_arguments(key):
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1) * 20
    data = _data()._replace(
        features=images,
        labels=np.repeat(np.arange(6, dtype=np.int32), 2),
    )
    sample_task = jm.tasks.zero_shot(data, ways=6, queries=2, classes=range(6))
    leaves = jax.tree.leaves(sample_task)
    assert [x.dtype for x in leaves] == [np.uint8, np.float32, np.int32, np.int32]
    binary = data._replace(attributes=(data.attributes > 0).astype(np.uint8))
    sample_binary = jm.tasks.zero_shot(binary, ways=6, queries=2, classes=range(6))
    described = sample_binary(key).support.inputs
    assert set(np.unique(described)) <= {0.0, 1.0} and described.dtype == jnp.float32
    jaxpr = jax.make_jaxpr(lambda sample_task, key: sample_task(key))(sample_task, key)
    assert not any(np.size(x) > 10 for x in jaxpr.consts)
    inputs = sample_task(key).query.inputs
    assert inputs.shape == (12, 1, 1, 1)
    np.testing.assert_allclose(np.sort(inputs.ravel()), images.ravel() / 255, rtol=1e-6)


@pytest.mark.parametrize("x64", [False, True])
def test_tasks_follow_the_default_float_type(x64, key):
    with jax.enable_x64(x64):
        tasks = (
            jax.eval_shape(jm.tasks.zero_shot(_data(), ways=2, queries=1), key),
            jm.tasks.zero_shot_test(_data()),
        )
        expected = {jnp.dtype("float64" if x64 else "float32")}
        assert {x.dtype for x in jax.tree.leaves(tasks)} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            ({name: bad}, f"`{name}` must be an int >= 1, got {bad}")
            for name in ("ways", "queries")
            for bad in (0, 2.0, True)
        ],
        ({"ways": 5}, "`ways` must be at most the 4 classes, got 5"),
        ({"queries": 5}, r"must be at most 4, .* smallest class \('c'\), got 5"),
        ({"classes": [0, 6]}, r"distinct integers from 0 to 5, got \[0 6\]"),
        ({"classes": [-1, 0]}, "distinct integers from 0 to 5"),
        ({"classes": [0, 0]}, "distinct integers from 0 to 5"),
        ({"classes": []}, "distinct integers from 0 to 5"),
        ({"classes": [0.0, 1.0]}, "distinct integers from 0 to 5"),
    ],
)
def test_zero_shot_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.zero_shot(_data(), **({"ways": 2, "queries": 2} | options))


def test_a_class_without_examples_is_named():
    data = _data(held_out=np.flatnonzero(_data().labels == 2))
    with pytest.raises(ValueError, match=r"classes \['c'\] have no examples to draw"):
        jm.tasks.zero_shot(data, ways=2, queries=1)


# The made world.


def test_a_world_without_noise_is_its_formula(key):
    """Linear maps are found by least squares; a saturated one has its own look."""
    options = {"noise": 0.0, "unexplained": 0.0, "examples": 2}
    data = jm.tasks.attribute_world(key, nonlinear=0.0, **options)
    prototypes = data.features[::2]
    np.testing.assert_array_equal(prototypes, data.features[1::2])
    fitted, *_ = np.linalg.lstsq(data.attributes, prototypes, rcond=None)
    np.testing.assert_allclose(data.attributes @ fitted, prototypes, atol=1e-4)
    assert fitted.std() == pytest.approx(20**-0.5, rel=0.1)
    bent = jm.tasks.attribute_world(key, nonlinear=1.0, **options).features[::2]
    assert np.abs(bent).max() < 1
    fitted, *_ = np.linalg.lstsq(data.attributes, np.arctanh(bent), rcond=None)
    np.testing.assert_allclose(data.attributes @ fitted, np.arctanh(bent), atol=1e-3)
    mixed = jm.tasks.attribute_world(key, nonlinear=0.25, **options).features[::2]
    np.testing.assert_allclose(mixed, 0.75 * prototypes + 0.25 * bent, atol=1e-5)


def test_noise_has_the_size_that_was_asked_for(key):
    options = {"num_classes": 200, "num_seen": 100, "nonlinear": 0.0}
    noisy = jm.tasks.attribute_world(key, noise=0.5, unexplained=0.3, **options)
    clean = jm.tasks.attribute_world(key, noise=0.0, unexplained=0.0, **options)
    gap = (noisy.features - clean.features).reshape(200, 40, 40)
    own = gap.mean(1)  # Of a class; 40 examples leave 0.5^2 / 40 of their noise in it.
    assert (gap - own[:, None]).std() == pytest.approx(0.5 * (39 / 40) ** 0.5, rel=0.01)
    assert own.std() == pytest.approx((0.3**2 + 0.5**2 / 40) ** 0.5, rel=0.03)


def test_seen_and_unseen_classes_are_disjoint_random_and_all(key):
    worlds = [
        jm.tasks.attribute_world(k, num_classes=9, num_seen=5, examples=2)
        for k in jax.random.split(key, 2)
    ]
    for data in worlds:
        assert len(data.seen) == 5
        assert sorted([*data.seen, *data.unseen]) == list(range(9))
        assert data.labels.tolist() == [c for c in range(9) for _ in range(2)]
        assert data.features.dtype == data.attributes.dtype == np.float32
    assert worlds[0].seen.tolist() != worlds[1].seen.tolist()
    again = jm.tasks.attribute_world(
        jax.random.split(key, 2)[0], num_classes=9, num_seen=5, examples=2
    )
    np.testing.assert_array_equal(again.features, worlds[0].features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "`examples` must be an int >= 1, got 0"),
        ({"num_seen": 60}, "leave some of the 60 classes unseen, got 60"),
        ({"noise": -1.0}, "`noise` must not be negative, got -1.0"),
        ({"unexplained": -0.1}, "`unexplained` must not be negative, got -0.1"),
        ({"nonlinear": 1.5}, r"`nonlinear` must be in \[0, 1\], got 1.5"),
    ],
)
def test_attribute_world_names_what_is_wrong(options, message, key):
    with pytest.raises(ValueError, match=message):
        jm.tasks.attribute_world(key, **options)


# Attributes of drawings.


def _classes(*drawings):
    """A class for each list of 0/1 drawings [9, 9], padded to the longest."""
    counts = np.array([len(mine) for mine in drawings], np.int32)
    images = np.zeros((len(drawings), counts.max(), 9, 9, 1), np.uint8)
    for padded, mine in zip(images, drawings, strict=True):
        padded[: len(mine), ..., 0] = 255 * np.asarray(mine, np.uint8)
    names = tuple(map(str, range(len(drawings))))
    return _datasets.ImageClasses(images, counts, names)


def _draw(*rows):
    """A drawing [9, 9] of strings, put into the middle."""
    ink = np.array([[mark == "#" for mark in row] for row in rows])
    top, left = ((9 - size) // 2 for size in ink.shape)
    drawing = np.zeros((9, 9), int)
    drawing[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return drawing


RING = _draw("#####", "#...#", "#...#", "#...#", "#####")
BAR = _draw("#", "#", "#", "#", "#")


def test_statistics_of_a_ring_and_a_bar_by_hand():
    ring, bar = _drawing_attributes._statistics(_classes([RING], [BAR]))
    assert ring[0] == pytest.approx(16 / 81)
    assert bar[0] == pytest.approx(5 / 81)
    # Rows 2 to 6 of 9: cells of rows 0-2, 3-5, 6-8.
    np.testing.assert_allclose(bar[1:10], [0, 0.2, 0, 0, 0.6, 0, 0, 0.2, 0], atol=1e-9)
    np.testing.assert_allclose(ring[1:10] * 16, [1, 3, 1, 3, 0, 3, 1, 3, 1], atol=1e-9)
    for statistics in (ring, bar):
        np.testing.assert_allclose(statistics[10:12], 0, atol=1e-9)
        np.testing.assert_allclose(statistics[14:17], 0, atol=1e-9)
        np.testing.assert_allclose(statistics[17:20], 1)
    # Rows -0.5, -0.25, 0, 0.25, 0.5.
    assert bar[12] == pytest.approx((2 * 0.25 + 2 * 0.0625) / 5)
    assert bar[13] == pytest.approx(0, abs=1e-9)
    assert ring[12] == ring[13] == pytest.approx((10 * 0.25 + 4 * 0.0625) / 16)
    np.testing.assert_allclose(bar[20:], [1, 1, 1])
    np.testing.assert_allclose(ring[20:], [(1 + 2 + 2 + 2 + 1) / 5] * 2 + [0])


def test_statistics_of_random_drawings_by_loops():
    drawings = np.random.default_rng(0).random((4, 9, 9)) < 0.35
    found = _drawing_attributes._statistics(_classes(*[[d] for d in drawings]))
    axis = np.linspace(-1, 1, 9)
    for statistics, drawing in zip(found, drawings, strict=True):
        points = [(axis[i], axis[j]) for i, j in np.argwhere(drawing)]
        rows, columns = (np.array(x) for x in zip(*points, strict=True))
        r, c = rows - rows.mean(), columns - columns.mean()
        moments = [rows.mean(), columns.mean(), (r**2).mean(), (c**2).mean()]
        moments += [(r * c).mean(), (r**3).mean(), (c**3).mean()]
        np.testing.assert_allclose(statistics[10:17], moments, atol=1e-9)
        turned = [np.fliplr(drawing), np.flipud(drawing), np.rot90(drawing, 2)]
        overlaps = [(drawing & other).sum() / drawing.sum() for other in turned]
        np.testing.assert_allclose(statistics[17:20], overlaps)
        for lines, crossed in ((drawing, 20), (drawing.T, 21)):
            runs = [ndimage.label(line)[1] for line in lines if line.any()]
            assert statistics[crossed] == pytest.approx(np.mean(runs))
        pieces = ndimage.label(drawing, np.ones((3, 3)))[1]
        paper = ndimage.label(np.pad(~drawing, 1, constant_values=True))[1]
        assert statistics[22] == pieces - (paper - 1)


def test_statistics_are_means_over_real_drawings_only():
    several = _drawing_attributes._statistics(_classes([RING, BAR, BAR], [BAR]))
    alone = _drawing_attributes._statistics(_classes([RING], [BAR]))
    np.testing.assert_allclose(several[0], (alone[0] + 2 * alone[1]) / 3)
    np.testing.assert_allclose(several[1], alone[1])


def test_attributes_are_standardised_and_constant_ones_are_zero():
    drawings = np.random.default_rng(0).random((5, 3, 9, 9)) < 0.3
    drawings[:, :, :3, :3] = False
    attributes = jm.tasks.omniglot_attributes(_classes(*drawings))
    assert attributes.shape == (5, 23)
    assert attributes.dtype == np.float32
    np.testing.assert_array_equal(attributes[:, 1], 0)  # The empty corner.
    others = np.delete(attributes, 1, axis=1)
    np.testing.assert_allclose(others.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(others.std(0), 1, rtol=1e-5)


def test_drawings_that_describe_are_no_examples():
    rng = np.random.default_rng(0)
    seen, unseen = (_classes(*(rng.random((c, 6, 9, 9)) < 0.3)) for c in (4, 3))
    data = jm.tasks.image_attributes(seen, unseen, described_by=2)
    assert data.features.shape == (7 * 4, 9, 9, 1)
    assert data.features.dtype == np.uint8
    np.testing.assert_array_equal(
        data.features[:16], seen.images[:, 2:].reshape(16, 9, 9, 1)
    )
    assert data.labels.tolist() == [c for c in range(7) for _ in range(4)]
    assert data.seen.tolist() == [0, 1, 2, 3]
    assert data.unseen.tolist() == [4, 5, 6]
    described = [
        c._replace(images=c.images[:, :2], num_examples=c.num_examples * 0 + 2)
        for c in (seen, unseen)
    ]
    np.testing.assert_allclose(
        data.attributes[:4], jm.tasks.omniglot_attributes(described[0]), atol=1e-5
    )
    raw = [_drawing_attributes._statistics(c) for c in described]
    expected = (raw[1] - raw[0].mean(0)) / raw[0].std(0)
    np.testing.assert_allclose(data.attributes[4:], expected, rtol=1e-4, atol=1e-4)
    task = jm.tasks.zero_shot(data, ways=4, queries=3)(jax.random.key(0))
    assert task.query.inputs.shape == (12, 9, 9, 1)


def test_padded_drawings_are_no_examples():
    rng = np.random.default_rng(0)
    drawings = [rng.random((n, 9, 9)) < 0.3 for n in (3, 5)]
    classes = _classes(*drawings)
    data = jm.tasks.image_attributes(classes, classes, described_by=2)
    assert np.bincount(data.labels).tolist() == [1, 3, 1, 3]
    assert (data.features.sum((1, 2, 3)) > 0).all()


def test_image_attributes_name_what_is_wrong():
    classes = _classes([RING, BAR], [BAR, BAR, BAR])
    with pytest.raises(ValueError, match="smallest has 2, got 2"):
        jm.tasks.image_attributes(classes, classes, described_by=2)
    other = _datasets.image_classes(np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(
        ValueError, match=r"images of the same shape, got \(9, 9, 1\) and"
    ):
        jm.tasks.image_attributes(classes, other, described_by=1)
    colour = _datasets.image_classes(np.zeros((2, 3, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="must have one channel, got 3"):
        jm.tasks.omniglot_attributes(colour)


# Files.

ARRAYS = {
    "features": np.arange(10.0).reshape(5, 2),
    "labels": np.array([0, 1, 2, 2, 0]),
    "attributes": np.array([[0.0, 1], [1, 0], [1, 1]]),
}
SPLIT = {"seen": np.array([0, 2]), "unseen": np.array([1]), "names": ["x", "y", "z"]}


def test_an_npz_file_is_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS, **SPLIT)
    data = jm.tasks.load_attributes(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.features, ARRAYS["features"])
    np.testing.assert_array_equal(data.labels, ARRAYS["labels"])
    np.testing.assert_array_equal(data.attributes, ARRAYS["attributes"])
    assert data.features.dtype == data.attributes.dtype == np.float32
    assert data.labels.dtype == data.seen.dtype == data.unseen.dtype == np.int32
    assert (data.seen.tolist(), data.unseen.tolist()) == ([0, 2], [1])
    assert data.names == ("x", "y", "z")
    assert not data.held_out.size


def test_splits_and_names_have_defaults_and_images_stay_bytes(tmp_path):
    images = np.zeros((5, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "a.npz", **ARRAYS | {"features": images})
    data = jm.tasks.load_attributes(str(tmp_path / "a.npz"))
    assert (data.seen.tolist(), data.unseen.tolist()) == ([0, 1, 2], [])
    assert data.names == ("0", "1", "2")
    assert data.features.dtype == np.uint8
    np.savez(tmp_path / "a.npz", **ARRAYS, unseen=np.array([1]))
    assert jm.tasks.load_attributes(tmp_path / "a.npz").seen.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": None},
            r"has no \['labels'\]; it holds \['attributes', 'features'\]",
        ),
        (
            {"features": np.zeros((2, 5))},
            r"must be \[5, \.\.\.\].* got shape \(2, 5\)",
        ),
        ({"features": np.zeros(5)}, r"must be \[5, \.\.\.\]"),
        (
            {"features": np.full((5, 2), np.nan)},
            "`features` has values that are not finite",
        ),
        ({"labels": np.array([1, 2, 3, 1, 2])}, "integers from 0 to 2.*from 1 to 3"),
        ({"labels": np.zeros(5)}, "`labels` .* dtype float64"),
        ({"labels": np.zeros((5, 1), int)}, r"`labels` .* got shape \(5, 1\)"),
        ({"attributes": np.zeros(3)}, r"must be \[classes, attributes\], got shape"),
        ({"seen": np.array([0, 1]), "unseen": np.array([1])}, r"classes \[1\] .* both"),
        ({"unseen": np.array([7])}, "`unseen` .* from 0 to 2"),
        ({"held_out": np.array([5])}, "`held_out` .* from 0 to 4"),
        ({"held_out": np.zeros(5, bool)}, "`held_out` .* dtype bool"),
        ({"names": np.array(["a"])}, "each of the 3 classes, got 1"),
        (
            {"names": np.array([None] * 3)},
            "damaged or not an .npz file of plain arrays",
        ),
    ],
)
def test_a_wrong_npz_file_is_explained(tmp_path, changes, message):
    found = {k: v for k, v in (ARRAYS | changes).items() if v is not None}
    np.savez(tmp_path / "a.npz", **found)
    with pytest.raises(ValueError, match=message):
        jm.tasks.load_attributes(tmp_path / "a.npz")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*gone"):
        jm.tasks.load_attributes(tmp_path / "gone")
    (tmp_path / "a.npz").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"a\.npz is damaged or not an \.npz file"):
        jm.tasks.load_attributes(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **ARRAYS)
    whole = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[:300])
    with pytest.raises(ValueError, match=r"b\.npz is damaged or not an \.npz file"):
        jm.tasks.load_attributes(tmp_path / "b.npz")


# Seven examples of three classes; indices count from 1, as in MATLAB.
RES101 = {
    "features": np.arange(14.0).reshape(7, 2).T,
    "labels": np.array([[1, 2, 3, 1, 2, 3, 1]]).T,
}
ATT_SPLITS = {
    "att": np.array([[0.0, 1], [1, 0], [1, 1]]).T,
    "allclasses_names": np.array([["ant"], ["bee+fly"], ["cat"]], object),
    "trainval_loc": np.array([[1, 3, 4, 6]]).T,
    "test_seen_loc": np.array([[7]]),
    "test_unseen_loc": np.array([[2, 5]]).T,
}


def _write_splits(folder, changes=None):
    changes = changes or {}
    for name, arrays in (("res101", RES101), ("att_splits", ATT_SPLITS)):
        arrays = {k: changes.get(k, v) for k, v in arrays.items()}
        arrays = {k: v for k, v in arrays.items() if v is not None}
        io.savemat(folder / f"{name}.mat", arrays)
    return folder


def test_the_proposed_splits_are_loaded(tmp_path, key):
    data = jm.tasks.load_attributes(_write_splits(tmp_path))
    np.testing.assert_array_equal(data.features, np.arange(14).reshape(7, 2))
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(data.attributes, [[0, 1], [1, 0], [1, 1]])
    assert (data.seen.tolist(), data.unseen.tolist()) == ([0, 2], [1])
    assert data.names == ("ant", "bee+fly", "cat")
    assert data.held_out.tolist() == [6]
    task = jm.tasks.zero_shot_test(data)
    np.testing.assert_array_equal(task.query.inputs, [[2, 3], [8, 9]])
    support, query = _many(jm.tasks.zero_shot(data, ways=2, queries=2), key, 20)
    assert 12 not in query.inputs  # The held-out example.
    assert support.inputs.shape == (20, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"att": None}, r"att_splits\.mat has no \['att'\]; it holds \['allclasses"),
        ({"labels": np.array([[0, 1, 2, 0, 1, 2, 0]]).T}, "`labels` .* indices from 1"),
        ({"features": RES101["features"].T}, r"must be \[7, .*Transpose them"),
        ({"trainval_loc": np.array([[8]])}, "`trainval_loc` .* from 1 to 7, got 8"),
        ({"att": ATT_SPLITS["att"][:, :2]}, "`labels` .* from 0 to 1"),
        ({"test_unseen_loc": np.array([[2, 3]])}, r"classes \[2\] .* both seen and"),
    ],
)
def test_wrong_splits_are_explained(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.load_attributes(_write_splits(tmp_path, changes))


def test_missing_and_damaged_mat_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*res101\.mat; a folder of"):
        jm.tasks.load_attributes(tmp_path)
    _write_splits(tmp_path)
    (tmp_path / "att_splits.mat").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"att_splits\.mat is damaged or not a MATLAB"):
        jm.tasks.load_attributes(tmp_path)


# ESZSL.


@pytest.mark.parametrize("other", _eszsl.OTHERS)
def test_eszsl_is_the_minimum_of_its_objective(other):
    """The gradient of the paper's regularised loss (its equations 2 to 4) is zero."""
    rng = np.random.default_rng(0)
    x, s = rng.normal(size=(30, 4)), rng.normal(size=(5, 3))
    labels, gamma, lam = rng.integers(0, 5, 30), 0.7, 1.3
    y = np.where(np.eye(5)[labels] > 0, 1.0, other)

    def objective(v):
        norm = lambda a: jnp.sum(jnp.square(a))
        penalty = gamma * norm(v @ s.T) + lam * norm(x @ v) + gamma * lam * norm(v)
        return norm(x @ v @ s.T - y) + penalty

    with jax.enable_x64(True):
        found = _eszsl.fit(
            _eszsl.moments(x, labels, s), gamma=gamma, lam=lam, other=other
        )
        assert found.shape == (4, 3)
        np.testing.assert_allclose(jax.grad(objective)(found), 0, atol=1e-10)


def test_eszsl_solves_its_normal_equations_directly():
    """vec(A V B) = (B^T kron A) vec(V), one linear system of all entries."""
    rng = np.random.default_rng(1)
    x, s, labels = rng.normal(size=(20, 3)), rng.normal(size=(4, 2)), np.arange(20) % 4
    y = 2.0 * np.eye(4)[labels] - 1
    a, b = x.T @ x + 2 * np.eye(3), s.T @ s + 3 * np.eye(2)
    system = np.kron(b.T, a)
    direct = np.linalg.solve(system, (x.T @ y @ s).ravel(order="F"))
    found = _eszsl.fit(_eszsl.moments(x, labels, s), gamma=2.0, lam=3.0)
    np.testing.assert_allclose(found, direct.reshape(3, 2, order="F"), rtol=1e-10)


def test_eszsl_accuracy_is_a_mean_over_classes():
    """Class 0: three of four right; class 1: none of one."""
    features = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0]])
    labels = np.array([0, 0, 0, 0, 1])
    found = _eszsl.accuracy(np.eye(2), features, labels, np.eye(2))
    assert found == pytest.approx((3 / 4 + 0) / 2)


def test_eszsl_finds_unseen_classes_of_a_linear_world(key):
    data = jm.tasks.attribute_world(key, nonlinear=0.0, noise=0.3, unexplained=0.0)
    parts = []
    for classes in (data.seen, data.unseen):
        support, query = jm.tasks.zero_shot_test(data, classes=classes)
        attributes = np.asarray(support.inputs, float)
        attributes /= np.linalg.norm(attributes, axis=1, keepdims=True)
        features = np.asarray(query.inputs, float)
        parts.append((features, np.asarray(query.targets).argmax(1), attributes))
    weights, chosen = _eszsl.choose(*parts[0])
    assert chosen.validation > 0.9
    assert _eszsl.accuracy(weights, *parts[1]) > 0.9  # Chance is 0.05.
