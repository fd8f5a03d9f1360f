"""Random affine maps against SciPy, and the statistics of the maps drawn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import jaxmeta as jm
from jaxmeta.tasks import _augment

# These programs run once: compiling them is all the time they take.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SIZE = (9, 8)
NOTHING = {"rotation": 0.0, "shear": 0.0, "scale": (1.0, 1.0), "shift": 0.0}


# One map.


def _rotation(degrees):
    angle = np.deg2rad(degrees)
    return [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]


MAPS = {
    "rotation": (_rotation(25), (0.0, 0.0)),
    "shears": ([[1.0, 0.3], [-0.2, 1.0]], (0.0, 0.0)),
    "scales": ([[1.3, 0.0], [0.0, 0.6]], (0.0, 0.0)),
    "shift": (np.eye(2), (0.7, -1.4)),
    "all": (np.array(_rotation(-40)) @ [[1.1, 0.2], [0.1, 0.7]], (1.2, 0.3)),
    "far out": (np.eye(2), (8.5, 0.0)),
}


@pytest.mark.parametrize("name", MAPS)
def test_images_are_warped_as_by_scipy(name, x64):
    matrix, shift = (np.asarray(x, float) for x in MAPS[name])
    images = np.random.default_rng(0).uniform(size=(1, *SIZE, 3))
    args = (images, matrix[None], shift[None])
    got = jit(_augment.warp)(*map(jnp.asarray, args))
    # SciPy takes the map from the new image to the old, and the top left as origin.
    back, centre = np.linalg.inv(matrix), (np.array(SIZE) - 1) / 2
    offset = centre - back @ (centre + shift)
    for channel in range(3):
        expected = ndimage.affine_transform(
            images[0, ..., channel], back, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(got[0, ..., channel], expected, atol=1e-12)


def test_every_image_has_its_own_map(x64):
    images = np.random.default_rng(1).uniform(size=(len(MAPS), *SIZE, 2))
    maps = [np.array(x) for x in zip(*MAPS.values(), strict=True)]
    args = [jnp.asarray(x) for x in (images, *maps)]
    warp = jit(_augment.warp)
    together = warp(*args)
    for n in range(0, len(MAPS), 2):
        alone = warp(*(x[n : n + 1] for x in args))
        np.testing.assert_allclose(together[n : n + 1], alone, atol=1e-12)


@pytest.mark.parametrize("shift", [(2, 0), (-1, 3), (0, -2)], ids=str)
def test_a_shift_by_whole_pixels_moves_them_and_leaves_zeros(shift):
    images = np.random.default_rng(2).uniform(1, 2, size=(1, *SIZE, 2))
    images = images.astype(np.float32)
    expected = np.roll(images, shift, (1, 2))
    for axis, by in enumerate(shift, 1):
        gone = np.arange(SIZE[axis - 1])
        gone = gone < by if by > 0 else gone >= SIZE[axis - 1] + by
        expected[(slice(None),) * axis + (gone,)] = 0
    got = _augment.warp(
        jnp.asarray(images), jnp.eye(2)[None], jnp.array([shift], jnp.float32)
    )
    np.testing.assert_array_equal(got, expected)


# Random maps of a task.


def _sampler(key):
    """One task of noise, whatever the key, as a `Partial` with its data as leaves."""
    images = jax.random.uniform(key, (8, *SIZE, 2))
    labels = jnp.repeat(jnp.eye(2), 2, 0)
    task = jm.Task(jm.Examples(images[:4], labels), jm.Examples(images[4:], labels))
    return jax.tree_util.Partial(lambda task, key: task, task), task


def _drawn(key, count, monkeypatch, **options):
    """The maps drawn for `count` images: matrices [count, 2, 2], shifts [count, 2]."""
    maps = []

    def record(images, matrices, shifts):
        maps.append((matrices, shifts))
        return images

    monkeypatch.setattr(_augment, "warp", record)
    task = jm.Task(*[jm.Examples(jnp.ones((count // 2, 2, 2, 1)), None)] * 2)
    sample_task = jm.tasks.random_affine(lambda key: task, **options)

    def draw(key):
        sample_task(key)
        return maps

    pairs = jit(draw)(key)
    return [np.concatenate(parts) for parts in zip(*pairs, strict=True)]


def test_without_strength_nothing_changes(key):
    sample_task, task = _sampler(key)
    for options in (NOTHING | {"probability": 1.0}, {"probability": 0.0}):
        warped = jit(jm.tasks.random_affine(sample_task, **options))(key)
        chex.assert_trees_all_equal(warped, task)


def _assert_uniform(values, low, high):
    share = (values - low) / (high - low)
    assert -1e-4 < share.min() < 0.01
    assert 0.99 < share.max() < 1 + 1e-4
    assert abs(share.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / share.size)
    assert abs(share.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / share.size)


def test_each_strength_gives_its_map(key, monkeypatch):
    """One part at a time, always there, read off the matrices."""
    draw = functools.partial(_drawn, key, 2000, monkeypatch, probability=1.0)
    matrices, shifts = draw(**(NOTHING | {"rotation": 30.0}))
    assert not shifts.any()
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    _assert_uniform(np.rad2deg(angles), -30, 30)
    expected = np.moveaxis(_rotation(np.rad2deg(angles)), -1, 0)
    np.testing.assert_allclose(matrices, expected, atol=1e-6)
    matrices, _ = draw(**(NOTHING | {"shear": 0.4}))
    np.testing.assert_allclose(matrices[:, [0, 1], [0, 1]], 1)
    for values in (matrices[:, 0, 1], matrices[:, 1, 0]):
        _assert_uniform(values, -0.4, 0.4)
    assert abs(np.corrcoef(matrices[:, 0, 1], matrices[:, 1, 0])[0, 1]) < 0.1
    matrices, _ = draw(**(NOTHING | {"scale": (0.5, 1.1)}))
    assert not matrices[:, [0, 1], [1, 0]].any()
    for values in (matrices[:, 0, 0], matrices[:, 1, 1]):
        _assert_uniform(values, 0.5, 1.1)
    matrices, shifts = draw(**(NOTHING | {"shift": 3.0}))
    np.testing.assert_array_equal(matrices, np.tile(np.eye(2), (2000, 1, 1)))
    for values in shifts.T:
        _assert_uniform(values, -3, 3)


def test_the_parts_are_composed_as_documented(key, monkeypatch):
    """R (1 + shears) S, solved for its parts: they are within their ranges again."""
    matrices, _ = _drawn(key, 1000, monkeypatch, probability=1.0, scale=(0.9, 1.2))
    # Of M = R [[1, b], [a, 1]] diag(s, t): with column norms s sqrt(1 + a^2), ... the
    # equations have a solution for every angle; the one drawn is in the range.
    angles = np.deg2rad(np.linspace(-10, 10, 401)).reshape(-1, 1, 1, 1)
    turns = np.moveaxis(np.array(_rotation(np.rad2deg(angles[:, 0, 0, 0]))), -1, 0)
    slanted = np.einsum("aji,njk->anik", turns, matrices)  # R^T M
    s, t = slanted[..., 0, 0], slanted[..., 1, 1]
    a, b = slanted[..., 1, 0] / s, slanted[..., 0, 1] / t
    possible = (np.abs(a) < 0.3) & (np.abs(b) < 0.3) & (s > 0.9) & (s < 1.2)
    possible &= (t > 0.9) & (t < 1.2)
    assert possible.any(0).mean() > 0.99  # All but those between two angles tried.


def test_each_part_is_there_with_its_probability(key, monkeypatch):
    """Each has its own coin; rotations apart, which would mix the others."""
    options = {"rotation": 0.0, "probability": 0.3}
    matrices, shifts = _drawn(key, 4000, monkeypatch, **options)
    parts = np.stack(
        [
            *(matrices[:, 0, 0] != 1, matrices[:, 1, 1] != 1),
            *(matrices[:, 0, 1] != 0, matrices[:, 1, 0] != 0),
            *(shifts.T != 0),
        ]
    )
    assert (np.abs(parts.mean(1) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)).all()
    correlations = np.corrcoef(parts) - np.eye(6)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(4000)
    options = NOTHING | {"rotation": 10.0, "probability": 0.3}
    matrices, _ = _drawn(key, 4000, monkeypatch, **options)
    turned = matrices[:, 1, 0] != 0
    assert abs(turned.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def test_support_and_query_are_warped_and_their_targets_kept(key):
    sample_task, task = _sampler(key)
    warped = jit(jm.tasks.random_affine(sample_task, probability=1.0))
    got = warped(key)
    chex.assert_trees_all_equal(warped(key), got)
    others = warped(jax.random.key(1))
    for mine, other, plain in zip(got, others, task, strict=True):
        np.testing.assert_array_equal(mine.targets, plain.targets)
        change = np.abs(mine.inputs - plain.inputs).max((1, 2, 3))
        assert (change > 0.1).all()
        assert (np.abs(mine.inputs - other.inputs).max((1, 2, 3)) > 0.1).all()
    # The same image in support and query, and twice in one set, is warped differently.
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), task.support)
    partial = jax.tree_util.Partial(lambda task, key: task, jm.Task(same, same))
    got = jit(jm.tasks.random_affine(partial, probability=1.0))(key)
    images = np.concatenate([got.support.inputs, got.query.inputs])
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8


def test_the_samplers_data_are_leaves_and_tasks_follow_the_key(key):
    images = np.zeros((4, 3, 8, 8), np.uint8)
    inner = jm.tasks.few_shot(images, ways=2, shots=1, queries=1)
    sample_task = jm.tasks.random_affine(inner)
    chex.assert_trees_all_equal(jax.tree.leaves(sample_task), jax.tree.leaves(inner))
    tasks = jax.eval_shape(jax.vmap(sample_task), jax.random.split(key, 3))
    assert tasks.query.inputs.shape == (3, 2, 8, 8, 1)
    glyphs = jm.tasks.glyphs(ways=2, queries=1, size=8)  # A plain function.
    assert not jax.tree.leaves(jm.tasks.random_affine(glyphs))
    # Without strength the tasks are those of the sampler, one for every key.
    plain = jit(jm.tasks.random_affine(glyphs, probability=0.0))
    a, b = (plain(k).query.inputs for k in jax.random.split(key))
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -1.0}, "`rotation` must be finite and >= 0, got -1.0"),
        ({"shift": float("inf")}, "`shift` must be finite and >= 0, got inf"),
        ({"shear": 1.0}, r"`shear` must be in \[0, 1\), got 1.0"),
        ({"scale": (1.2, 0.8)}, r"`scale` must be \(low, high\).*got \(1.2, 0.8\)"),
        ({"scale": (0.0, 1.0)}, r"`scale` must be \(low, high\) with 0 < low"),
        ({"scale": (0.8, 1.0, 1.2)}, r"`scale` must be \(low, high\)"),
        ({"probability": 1.5}, r"`probability` must be in \[0, 1\], got 1.5"),
    ],
)
def test_strengths_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.random_affine(jm.tasks.glyphs(), **options)


def test_inputs_that_are_no_images_are_named(key):
    with pytest.raises(ValueError, match=r"must return images.*got inputs of shape"):
        jm.tasks.random_affine(jm.tasks.sinusoid())(key)
