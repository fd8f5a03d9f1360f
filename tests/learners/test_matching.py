"""Matching networks against loops, full context embeddings among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import learners
from tests._metric_learners import identity_embedding, logits_of, vector_task

SIMILARITIES = {
    "cosine": lambda a, b: a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) / 0.1,
    "l2": lambda a, b: -np.sum((a - b) ** 2),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def _match(queries, support, targets, similarity):
    """Equation 1: the mean of the labels by attention."""
    rows = []
    for f in queries:
        attention = _softmax(np.array([similarity(f, g) for g in support]))
        rows.append(sum(a * y for a, y in zip(attention, targets, strict=True)))
    return np.log(rows)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_logits_by_loops(similarity, key):
    task = vector_task(key, ways=4, shots=3)
    learner = learners.matching(identity_embedding(), similarity=similarity)
    (x, y), (q, _) = (tuple(map(np.asarray, examples)) for examples in task)
    expected = _match(q, x, y, SIMILARITIES[similarity])
    np.testing.assert_allclose(logits_of(learner, task), expected, rtol=1e-9)


def _lstm(params, x, h, c):
    """One example through one cell, gate by gate."""
    gates = x @ params.inputs + h @ params.hidden + params.bias
    i, f, g, o = np.split(np.asarray(gates), 4)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def _context(head_params, queries, support, steps):
    """Appendix A: equations 3 to 6, and the bidirectional LSTM."""
    size = support.shape[1]
    g = support.copy()
    for params, order in (
        (head_params.forward, range(len(support))),
        (head_params.backward, reversed(range(len(support)))),
    ):
        h = c = np.zeros(size)
        for i in order:
            h, c = _lstm(params, support[i], h, c)
            g[i] += h
    embedded = []
    for f in queries:
        h = c = np.zeros(size)
        for _ in range(steps):
            r = sum(a * x for a, x in zip(_softmax(g @ h), g, strict=True))
            h, c = _lstm(head_params.attention, f, np.concatenate([h, r]), c)
            h = h + f
        embedded.append(h)
    return np.array(embedded), g


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("steps", [1, 4])
def test_full_context_by_loops(similarity, steps, key):
    task = vector_task(key)
    learner = learners.matching(
        identity_embedding(),
        similarity=similarity,
        full_context=True,
        context_steps=steps,
    )
    meta_params = learner.init(key, task)
    (x, y), (q, _) = (tuple(map(np.asarray, examples)) for examples in task)
    queries, support = _context(meta_params.head_params, q, x, steps)
    expected = _match(queries, support, y, SIMILARITIES[similarity])
    got = logits_of(learner, task, meta_params)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_full_context_takes_embeddings_of_less_precision(key):
    with jax.enable_x64(True):
        learner = learners.matching(identity_embedding(), full_context=True)
        task = vector_task(key)
        task = jax.tree.map(lambda x: x.astype(jnp.float32), task)
        meta_params = learner.init(key, task)
        grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_queries_do_not_see_each_other(key):
    task = vector_task(key)
    learner = learners.matching(identity_embedding(), full_context=True)
    meta_params = learner.init(key, task)
    first = task._replace(query=jax.tree.map(lambda x: x[:1], task.query))
    np.testing.assert_allclose(
        logits_of(learner, first, meta_params),
        logits_of(learner, task, meta_params)[:1],
        rtol=1e-9,
    )


def test_far_queries_keep_finite_logits(key):
    """Probabilities would underflow: exp(-1e4) is zero even in float64."""
    task = vector_task(key)
    far = task.query._replace(inputs=100 * task.query.inputs)
    learner = learners.matching(identity_embedding(), similarity="l2")
    logits = logits_of(learner, task._replace(query=far))
    assert np.all(np.isfinite(logits)) and logits.min() < -1e3
    x, q = np.asarray(task.support.inputs), np.asarray(far.inputs)
    best = [np.argmin(((x - one) ** 2).sum(1)) // 2 for one in q]
    np.testing.assert_array_equal(np.argmax(logits, -1), best)


def test_one_example_alone_is_certain():
    support = jm.Examples(jnp.array([[1.0, 0.0]]), jnp.ones((1, 1)))
    learner = learners.matching(identity_embedding())
    logits = logits_of(learner, jm.Task(support, support))
    np.testing.assert_allclose(logits, [[0.0]], atol=1e-12)
