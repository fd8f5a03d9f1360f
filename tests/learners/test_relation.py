"""Relation networks against loops over pairs of a query and a class."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import learners
from jaxmeta.models._relation_net import RelationEmbedding, RelationModule
from tests._metric_learners import identity_embedding, logits_of, vector_task


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_relations_by_loops(key):
    with jax.enable_x64(True):
        task = vector_task(key, ways=4, shots=3)
        learner = learners.relation(identity_embedding())
        meta_params = learner.init(key, task)
        kernels = [
            (np.asarray(layer["kernel"]), np.asarray(layer["bias"]))
            for _, layer in sorted(meta_params.head_params["params"].items())
        ]
        (x, y), (q, t) = (tuple(map(np.asarray, examples)) for examples in task)
        expected = np.zeros((len(q), 4))
        for i, query in enumerate(q):
            for c in range(4):
                h = np.concatenate([x[y[:, c] == 1].mean(0), query])
                for layer, (kernel, bias) in enumerate(kernels):
                    h = h @ kernel + bias
                    h = np.maximum(h, 0) if layer < 2 else h
                expected[i, c] = _sigmoid(h[0])
        got = logits_of(learner, task, meta_params)
        np.testing.assert_allclose(got, expected, rtol=1e-9)
        _, info = jax.jit(learner.meta_grad)(key, meta_params, task)
        np.testing.assert_allclose(info.loss, np.mean((expected - t) ** 2), rtol=1e-9)
        accuracy = np.mean(np.argmax(expected, -1) == np.argmax(t, -1))
        np.testing.assert_allclose(info.metrics["accuracy"], accuracy)


def _images(key, ways, shots, queries, size=9):
    task = vector_task(key, ways, shots, queries, size * size)
    as_images = lambda e: e._replace(inputs=e.inputs.reshape(-1, size, size, 1))
    return jm.Task(*map(as_images, task))


def _map_learner(statistics="batch"):
    return learners.relation(
        RelationEmbedding(filters=3, statistics=statistics),
        relation_model=RelationModule(filters=2, hidden=4, statistics=statistics),
    )


def test_maps_are_compared_place_by_place(key):
    """The pairs go through the module as one batch, normalised together."""
    task, learner = _images(key, 3, 2, 2), _map_learner()
    meta_params = jax.jit(learner.init)(key, task)
    embed = jax.jit(lambda x: RelationEmbedding(filters=3).apply(meta_params.params, x))
    maps = [np.asarray(embed(e.inputs)) for e in task]
    assert maps[0].shape == (6, 2, 2, 3)
    features = maps[0].reshape(3, 2, 2, 2, 3).mean(1)  # sorted by class
    pairs = [np.concatenate([c, q], -1) for q in maps[1] for c in features]
    module = RelationModule(filters=2, hidden=4)
    scores = jax.jit(module.apply)(meta_params.head_params, np.stack(pairs))
    expected = _sigmoid(np.asarray(scores).reshape(6, 3))
    got = logits_of(learner, task, meta_params)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("module", ["given", "default", "default, in bfloat16"])
def test_support_statistics_make_predictions_independent_of_each_other(module, key):
    task, learner = _images(key, 3, 2, 2), _map_learner("support")
    if module != "given":
        embedding = RelationEmbedding(filters=3, statistics="support")
        if "bfloat16" in module:
            embedding = jm.models.with_compute_dtype(embedding)
        learner = learners.relation(embedding)
    meta_params = jax.jit(learner.init)(key, task)
    first = task._replace(query=jax.tree.map(lambda x: x[:1], task.query))
    together = logits_of(learner, task, meta_params)
    alone = logits_of(learner, first, meta_params)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-4)
    assert np.ptp(together) > 0


def test_the_default_module_is_normalised_as_the_embedding_is(key):
    task = _images(key, 3, 2, 2)
    for norm in ("batch", None):
        learner = learners.relation(RelationEmbedding(filters=3, norm=norm))
        params = jax.eval_shape(learner.init, key, task)
        paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params)]
        assert any("BatchNorm" in path for path in paths) == (norm == "batch")


def test_half_precision_scores_keep_their_order(key):
    """In bfloat16 relations of 6, 7 and 8 would all be 1."""
    module = jm.Model(
        lambda key, x: jnp.ones(()), lambda w, x: (w * x[:, :1]).astype(jnp.bfloat16)
    )
    learner = learners.relation(identity_embedding(), relation_model=module)
    support = jm.Examples(jnp.array([[6.0], [8.0], [7.0]]), jnp.eye(3))
    task = jm.Task(support, support)
    task_params, _ = learner.adapt(key, learner.init(key, task), support)
    assert learner.predict(task_params, jnp.zeros((1, 1))).argmax() == 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 7)])
def test_the_relation_module_takes_maps_of_any_size(shape, key):
    pairs = jax.random.normal(key, (4, *shape, 6))
    scores, _ = jax.jit(RelationModule(filters=3).init_with_output)(key, pairs)
    chex.assert_shape(scores, (4, 1))
    assert np.ptp(scores) > 0


def test_zero_shot_gradients_reach_all_three_networks(key):
    task = vector_task(key, size=4)
    described = jax.random.normal(key, (3, 2))
    task = task._replace(support=jm.Examples(described, jnp.eye(3)))
    learner = learners.relation(
        jm.models.MLP([6]), support_model=jm.models.MLP([7, 6], norm="batch")
    )
    meta_params = learner.init(key, task)
    grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
    for part in grads:
        assert sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(part)) > 0


def test_a_module_with_its_own_key_and_mode_is_given_them(key):
    seen = []

    def apply(params, pairs, *, key=None, train=False):
        seen.append((key is not None, train))
        return params * pairs[:, :1]

    module = jm.Model(lambda key, x: jnp.ones(()), apply)
    learner = learners.relation(identity_embedding(), relation_model=module)
    task = vector_task(key)
    meta_params = learner.init(key, task)
    learner.meta_grad(key, meta_params, task)
    learner.evaluate(key, meta_params, task)
    assert seen == [(True, True), (False, False)]


def test_a_module_of_more_than_one_output_is_named(key):
    module = jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x)
    learner = learners.relation(identity_embedding(), relation_model=module)
    task = vector_task(key)
    with pytest.raises(ValueError, match=r"must map 18 pairs to \(18, 1\), got.*10"):
        learner.meta_grad(key, learner.init(key, task), task)


def test_embeddings_of_two_shapes_are_named(key):
    task = vector_task(key)
    learner = learners.relation(jm.models.MLP([4]), support_model=jm.models.MLP([3]))
    with pytest.raises(ValueError, match=r"the shape of `model`'s, \(4,\), got \(3,\)"):
        learner.meta_grad(key, learner.init(key, task), task)


def test_vectors_are_no_images_for_the_embedding(key):
    with pytest.raises(ValueError, match=r"takes images .* got shape \(5, 3, 3, 1\)"):
        RelationEmbedding().init(key, jnp.ones((5, 3, 3, 1)))
    with pytest.raises(
        ValueError, match=r"takes pairs of maps .* got shape \(5, 3, 3\)"
    ):
        RelationModule().init(key, jnp.ones((5, 3, 3)))
