"""Leaves of any tree have names of their own in files."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import jaxmeta as jm
from jaxmeta._names import named_leaves
from jaxmeta.training import _checkpoint


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


def _distinct(tree):
    """The tree, each leaf another number."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([jnp.full(2, float(i)) for i, _ in enumerate(leaves)])


COLLIDING = {
    "dict": {"layer.0": 0, "layer": {"0": 1}},
    "list": {"layer.0": 0, "layer": [1, 2]},
    "attribute": {"x.a": 0, "x": Pair(1, 2)},
    "int": {"a": {0: 0}, "a.0": 1},
    "empty": {"": 0, "a": {"": 1}, "a.": 2},
    "backslash": {"a\\.b": 0, "a.b": 1, "a": {"b": 2}, "a\\": {"b": 3}},
    "escaped": {".a.b": 0, "": {"a.b": 1, "a": {"b": 2}}},
    "reserved": {"__metadata__": 0, "w": 1},
}
OTHERS = {
    "slash": {"a/b": 0, "a": {"b": 1}, "a%2Fb": 2},
    "dots": {".": 0, "..": 1, "a.b": 2},
    "tuple": {(0, 1): 0, (0,): 1},
    "hollow": {"a": None, "b": {}, "c": [3, ()]},
    "bare": 0,
}


@pytest.mark.parametrize("tree", [*COLLIDING, *OTHERS])
def test_every_leaf_comes_back_as_itself(tree, tmp_path):
    tree = _distinct((COLLIDING | OTHERS)[tree])
    jm.training.save(tmp_path / "mine.safetensors", tree)
    loaded = jm.training.load(tmp_path / "mine.safetensors", like=tree)
    chex.assert_trees_all_equal(loaded, tree)
    jm.training.save(tmp_path / "mine", tree)
    loaded = jm.training.load(tmp_path / "mine", like=tree)
    chex.assert_trees_all_equal(loaded, tree)


def test_a_run_resumes_with_names_that_collide(key, tmp_path):
    params = _distinct(COLLIDING["dict"])
    init, _ = jm.training.make_train_step(
        jm.GradientEstimator(lambda key: (params, None), lambda *_: None),
        optax.adam(0.1),
    )
    state = init(key)
    checkpoints = _checkpoint.open_checkpoints(tmp_path)
    checkpoints.save(state)
    restored = checkpoints.restore(0, jax.eval_shape(init, key))
    checkpoints.close()
    chex.assert_trees_all_equal(restored, state)


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_before_are_read(name, tmp_path):
    """Names that do not collide are what they were."""
    tree = _distinct(OTHERS[name])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "mine", {"meta_params": tree})
    loaded = jm.training.load(tmp_path / "mine", like=tree)
    chex.assert_trees_all_equal(loaded, tree)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    path = tmp_path / "mine.safetensors"
    path.write_bytes(safetensors.numpy.save(jax.tree.map(jax.device_get, arrays)))
    loaded = jm.training.load(path, like=tree)
    chex.assert_trees_all_equal(loaded, tree)


def test_keys_that_differ_by_type_alone_are_refused(tmp_path):
    import collections

    both = collections.OrderedDict([(0, jnp.zeros(1)), ("0", jnp.ones(1))])
    for name in ("mine", "mine.safetensors"):
        with pytest.raises(ValueError, match="must differ by more than their types"):
            jm.training.save(tmp_path / name, {"a": both})
        with pytest.raises(ValueError, match="Keys of a dict must have one type"):
            jm.training.save(tmp_path / name, dict(both))
    assert not list(tmp_path.iterdir())


def test_names_stay_readable():
    tree = {"layers": [Pair(1, 2)], "head": 3}
    assert [name for name, _ in named_leaves(tree)] == [
        "head",
        "layers.0.a",
        "layers.0.b",
    ]
