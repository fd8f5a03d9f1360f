"""Episodes of varying ways and shots, and of other examples than images."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from tests._metric_learners import identity_embedding
from tests.tasks.test_tasks import MANY, _assert_equally_often, _many

CLASSES, EXAMPLES = 7, 9
# Example e of class c: its numbers, from 1, so that zeros are padding alone.
IDS = np.stack(np.meshgrid(np.arange(7), np.arange(9), indexing="ij"), -1) + 1
WAYS, SHOTS, QUERIES = (2, 4), (1, 3), 2


def _episodes(key, dataset=IDS, **options):
    """Which examples are there [T, W, n], their ids [T, W, n, 2], of both sets."""
    options = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES} | options
    task = _many(jm.tasks.few_shot(dataset, **options), key)
    parts = []
    for inputs, targets in task:
        ids = inputs.reshape(MANY, WAYS[1], -1, 2)
        targets = targets.reshape(*ids.shape[:3], -1)
        is_there = targets.any(-1)
        # Targets are those of the row's class, or zeros, and so are the inputs.
        expected = np.eye(WAYS[1])[None, :, None] * is_there[..., None]
        np.testing.assert_array_equal(targets, expected)
        assert ((ids > 0).all(-1) == is_there).all()
        assert ((ids > 0).any(-1) == is_there).all()
        parts.append((is_there, ids))
    return parts


def _sizes(parts):
    """Ways [T] and shots [T, W] of tasks."""
    (is_support, _), (is_query, _) = parts
    num_shots = is_support.sum(-1)
    num_ways = (num_shots > 0).sum(-1)
    # The classes and the shots that are there come first; each class has its queries.
    has_class = np.arange(WAYS[1])[None] < num_ways[:, None]
    assert ((num_shots > 0) == has_class).all()
    places = np.arange(SHOTS[1])[None, None]
    assert (is_support == (places < num_shots[..., None])).all()
    assert (is_query == has_class[..., None]).all()
    return num_ways, num_shots


@pytest.mark.parametrize("balanced", [True, False])
def test_ways_and_shots_are_uniform(balanced, key):
    parts = _episodes(key, balanced=balanced)
    num_ways, num_shots = _sizes(parts)
    ids = np.concatenate([ids for _, ids in parts], 2)
    is_there = np.concatenate([is_there for is_there, _ in parts], 2)
    classes = ids[:, :, 3:4, 0]  # Of the first query.
    assert (ids[..., 0] == classes * is_there).all()
    for t in range(20):
        mine = classes[t][: num_ways[t], 0]
        assert len(set(mine)) == num_ways[t]
        for way in range(num_ways[t]):
            examples = ids[t, way][is_there[t, way]][:, 1]
            assert len(set(examples)) == len(examples)
    _assert_equally_often(np.bincount(num_ways)[2:])
    _assert_equally_often(np.bincount(num_shots[:, 0])[1:])
    pairs = np.zeros((5, 4))
    np.add.at(pairs, (num_ways, num_shots[:, 0]), 1)
    _assert_equally_often(pairs[2:, 1:])
    _assert_equally_often(np.bincount(classes[:, 0].ravel())[1:])
    same = num_shots[:, 0] == num_shots[:, 1]
    if balanced:
        assert same.all()
    else:
        assert abs(same.mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / MANY)


def test_small_groups_have_tasks_of_what_they_have(key):
    """Groups of 4, 2 and 1 classes: the last one is too small."""
    names = ["a/0", "b/0", "a/1", "a/2", "c/0", "b/1", "a/3"]
    groups = np.array([-1, 0, 1, 0, 0, 2, 1, 0])
    dataset = jm.tasks.image_classes(IDS, names)
    parts = _episodes(key, dataset, within_groups=True)
    num_ways, _ = _sizes(parts)
    of_row = groups[parts[1][1][:, :, 0, 0]]
    mine = of_row[:, 0]
    assert ((of_row == mine[:, None]) | (of_row == -1)).all()
    assert set(mine) == {0, 1}
    assert (num_ways[mine == 1] == 2).all()
    _assert_equally_often(np.bincount(num_ways[mine == 0])[2:])


def test_all_sizes_are_one_program(key):
    sample_task = jm.tasks.few_shot(IDS, ways=WAYS, shots=SHOTS, queries=1)
    learner = jm.prototypical(identity_embedding())

    @jax.jit
    @chex.assert_max_traces(n=1)
    def accuracy(key):
        return learner.evaluate(key, jnp.ones(()), sample_task(key)).metrics["accuracy"]

    found = [float(accuracy(key)[0]) for key in jax.random.split(key, 10)]
    # Shares of 2, 3 and 4 queries: those of padding do not count.
    assert all(min((x * n) % 1 for n in (2, 3, 4)) < 1e-5 for x in found), found
    assert len(set(found)) > 2


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (np.float32, (3,), jnp.float32),
        (np.float16, (4, 4, 1), jnp.float32),
        (jnp.bfloat16, (2, 3), jnp.float32),
        (np.int32, (5,), jnp.int32),
        (np.uint8, (5,), jnp.uint8),
        (np.bool_, (5,), jnp.bool_),
    ],
)
def test_features_and_ids_stay_what_they_are(dtype, shape, expected, key):
    data = np.random.default_rng(0).integers(0, 9, (4, 5, *shape)).astype(dtype)
    sample_task = jm.tasks.few_shot(data, ways=2, shots=1, queries=4)
    assert jax.tree.leaves(sample_task)[0].dtype == dtype
    task = sample_task(key)
    assert task.support.inputs.dtype == task.query.inputs.dtype == expected
    classes = {frozenset(x.tobytes() for x in rows) for rows in data.astype(expected)}
    found = np.concatenate([part.inputs.reshape(2, -1, *shape) for part in task], 1)
    assert {frozenset(x.tobytes() for x in rows) for rows in found} <= classes


def test_float_images_are_turned(key):
    data = np.random.default_rng(0).normal(size=(2, 2, 3, 3, 1)).astype(np.float32)
    task = jm.tasks.few_shot(data, ways=8, shots=1, queries=1, rotations=True)(key)
    both = jnp.concatenate([part.inputs for part in task])
    middles = np.unique(both[:, 1, 1])  # Stay in place.
    np.testing.assert_array_equal(middles, np.unique(data[:, :, 1, 1]))
    assert len(np.unique(both[:, 0, 0])) > 4
