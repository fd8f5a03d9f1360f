"""Episodes within one group of classes, such as an alphabet."""

import chex
import jax
import numpy as np
import pytest

import jaxmeta as jm
from tests.tasks.test_tasks import (
    CLASSES,
    EXAMPLES,
    MANY,
    _assert_equally_often,
    _episodes as _some_episodes,
    _images,
    jit,
)

# Groups of 3, 2 and 1 classes, not side by side; a second "/" means nothing.
NAMES = ("b/x/1", "a/1", "b/x/2", "c", "b/y/1", "a/2")
GROUPS = np.array([1, 0, 1, 2, 1, 0])


def _dataset():
    return jm.tasks.image_classes(_images(), NAMES)


def _episodes(key, **options):
    """Classes [T, W] and turns [T, W] of the support set; the query's are the same."""
    options = {"shots": 1, "queries": 2, "within_groups": True} | options
    support, query = _some_episodes(key, _dataset(), **options)
    for mine, others in ((support[0], query[0]), (support[2], query[2])):
        assert (mine[..., :1] == others).all()
    return support[0][..., 0], support[2][..., 0]


@pytest.mark.parametrize("rotations", [False, True])
def test_all_classes_of_a_task_are_of_one_group(rotations, key):
    classes, turns = _episodes(key, ways=2, rotations=rotations)
    groups = GROUPS[classes]
    assert (groups == groups[:, :1]).all()
    assert (np.diff(np.sort(4 * classes + turns)) > 0).all()
    assert (turns > 0).any() == rotations


def test_large_enough_groups_come_equally_often(key):
    classes, _ = _episodes(key, ways=2)
    assert set(GROUPS[classes[:, 0]]) == {0, 1}  # The group of one is too small.
    _assert_equally_often(np.bincount(GROUPS[classes[:, 0]]))
    classes, _ = _episodes(key, ways=3)
    assert set(GROUPS[classes[:, 0]]) == {1}


def test_the_classes_of_a_group_come_equally_often_and_in_every_order(key):
    classes, _ = _episodes(key, ways=2)
    pairs = classes[GROUPS[classes[:, 0]] == 1]
    counts = np.zeros((CLASSES, CLASSES))
    np.add.at(counts, tuple(pairs.T), 1)
    members = np.flatnonzero(GROUPS == 1)
    _assert_equally_often([counts[a, b] for a in members for b in members if a != b])


def test_rotated_classes_count_in_their_group(key):
    """The single class of group c is four then, all of which make a task."""
    classes, turns = _episodes(key, ways=4, rotations=True)
    groups = GROUPS[classes]
    assert (groups == groups[:, :1]).all()
    _assert_equally_often(np.bincount(groups[:, 0]))
    alone = groups[:, 0] == 2
    assert (np.sort(turns[alone]) == np.arange(4)).all()
    counts = np.zeros((CLASSES, 4))
    np.add.at(counts, (classes[~alone], turns[~alone]), 1)
    for group in (0, 1):
        _assert_equally_often(counts[group == GROUPS])


def test_groups_are_leaves_and_the_program_serves_other_ones(key):
    options = {"ways": 1, "shots": 1, "queries": 1, "within_groups": True}
    sample_task = jm.tasks.few_shot(_dataset(), **options)
    leaves = jax.tree.leaves(sample_task)
    assert [x.dtype for x in leaves] == [np.uint8, np.int32, np.int32]
    assert all(isinstance(x, jax.Array) for x in leaves)
    one = jm.tasks.image_classes(_images(), [f"only/{i}" for i in range(CLASSES)])
    other = jax.tree.leaves(jm.tasks.few_shot(one, **options))
    others = jax.tree.unflatten(jax.tree.structure(sample_task), other)
    draw = jit(chex.assert_max_traces(lambda s, keys: jax.vmap(s)(keys), n=1))
    keys = jax.random.split(key, MANY)
    draw(sample_task, keys)
    inputs = np.asarray(draw(others, keys).support.inputs)
    classes = np.rint(255 * inputs).astype(int)[:, 0, 0, 1, 0]
    _assert_equally_often(np.bincount(classes, minlength=CLASSES))


def test_without_groups_nothing_changes(key):
    """The same tasks as before there were groups: here, drawn by hand."""
    sample_task = jm.tasks.few_shot(_dataset(), ways=3, shots=1, queries=1)
    task = sample_task(key)
    scores = jax.random.uniform(jax.random.split(key)[0], (CLASSES,))
    classes = np.rint(255 * task.support.inputs[:, 0, 1, 0]).astype(int)
    np.testing.assert_array_equal(classes, np.argsort(-np.asarray(scores))[:3])


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (_images(), {}, r"requires names of all classes.*got 0 for 6 classes"),
        (
            jm.tasks.ImageClasses(
                _images(), np.full(6, EXAMPLES, np.int32), ("a", "b")
            ),
            {},
            r"got 2 for 6 classes\. Pass them: `jaxmeta.tasks.image_classes",
        ),
        (_dataset(), {"ways": 4}, r"at most 3, .* largest group \('b'\), got 4"),
        (
            _dataset(),
            {"ways": 13, "rotations": True},
            r"at most 12, .* largest group \('b'\), got 13",
        ),
        (
            jm.tasks.image_classes(_images()),
            {},
            r"at most 1, .* got 2\. The group is the part of a class name",
        ),
    ],
)
def test_what_is_wrong_with_groups_is_named(dataset, options, message):
    options = {"ways": 2, "shots": 1, "queries": 1, "within_groups": True} | options
    with pytest.raises(ValueError, match=message):
        jm.tasks.few_shot(dataset, **options)
