"""Prototypical networks against loops, nearest neighbours and zero-shot worlds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import learners
from tests._metric_learners import identity_embedding, logits_of, vector_task


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _prototypes(support):
    x, y = map(np.asarray, support)
    return [x[y[:, c] == 1].mean(0) for c in range(y.shape[1])]


def _cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize(
    ("options", "similarity"),
    [
        ({}, lambda q, p: -np.sum((q - p) ** 2)),
        ({"temperature": 4.0}, lambda q, p: -np.sum((q - p) ** 2) / 4),
        ({"distance": "cosine"}, lambda q, p: (_cosine(q, p) - 1) / 0.1),
        (
            {"normalize_prototypes": True},
            lambda q, p: -np.sum((q - p / np.linalg.norm(p)) ** 2),
        ),
    ],
    ids=["euclidean", "temperature", "cosine", "unit prototypes"],
)
def test_logits_by_loops(options, similarity, key):
    task = vector_task(key, ways=4, shots=3)
    learner = learners.prototypical(identity_embedding(), **options)
    expected = [
        [similarity(q, p) for p in _prototypes(task.support)]
        for q in np.asarray(task.query.inputs)
    ]
    np.testing.assert_allclose(logits_of(learner, task), expected, rtol=1e-9)


def test_soft_targets_weigh_the_examples(key):
    task = vector_task(key)
    learner = learners.prototypical(identity_embedding())
    x, y = np.asarray(task.support.inputs), np.full((6, 3), 0.1)
    y[np.arange(6), [0, 1, 2, 0, 1, 2]] = 0.8
    prototypes = np.stack([np.average(x, axis=0, weights=w) for w in y.T])
    support = jm.Examples(task.support.inputs, jnp.asarray(y))
    task_params, _ = learner.adapt(key, jnp.ones(()), support)
    np.testing.assert_allclose(task_params.fitted, prototypes, rtol=1e-9)


def test_one_shot_is_the_nearest_neighbour(key):
    task = vector_task(key, ways=5, shots=1, queries=8)
    logits = logits_of(learners.prototypical(identity_embedding()), task)
    x, q = np.asarray(task.support.inputs), np.asarray(task.query.inputs)
    nearest = [np.argmin(np.linalg.norm(x - one, axis=1)) for one in q]
    np.testing.assert_array_equal(np.argmax(logits, -1), nearest)


def test_meta_params_are_the_models_own(key):
    model, task = jm.models.MLP([3]), vector_task(key)
    got = jax.eval_shape(learners.prototypical(model).init, key, task)
    expected = jax.eval_shape(model.init, key, task.query.inputs)
    assert jax.tree.structure(got) == jax.tree.structure(expected)


def test_zero_shot_takes_the_classes_from_their_descriptions(key):
    """Features are a linear map of attributes: the inverse map makes both agree."""
    ways, size, attributes = 4, 6, 3
    keys = jax.random.split(key, 3)
    described = jax.random.normal(keys[0], (ways, attributes))
    world = jax.random.normal(keys[1], (attributes, size))
    noise = 0.01 * jax.random.normal(keys[2], (3 * ways, size))
    queries = jnp.repeat(described, 3, 0) @ world + noise
    task = jm.Task(
        jm.Examples(described, jnp.eye(ways)),
        jm.Examples(queries, jnp.repeat(jnp.eye(ways), 3, 0)),
    )
    linear = lambda w: jm.Model(lambda key, x: w, lambda w, x: x @ w)
    learner = learners.prototypical(
        linear(jnp.eye(size)), support_model=linear(world), distance="cosine"
    )
    meta_params = learner.init(key, task)
    assert isinstance(meta_params, learners.MetricParams)
    result = jax.jit(learner.evaluate)(key, meta_params, task)
    np.testing.assert_array_equal(result.metrics["accuracy"], [1.0])
    grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
    assert jnp.linalg.norm(grads.support_params) > 0
