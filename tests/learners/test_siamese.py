"""Siamese networks against loops over pairs."""

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


def _start(key, **shape):
    """A task, the learner, and meta-parameters with random weights."""
    task = vector_task(key, **shape)
    learner = learners.siamese(identity_embedding())
    meta_params = learner.init(key, task)
    weights = jax.random.normal(key, meta_params.head_params.weights.shape)
    head_params = learners.SiameseParams(weights, jnp.array(0.3))
    return task, learner, meta_params._replace(head_params=head_params)


def _pairs(head_params, task):
    """The logit of every pair, and whether it is of one class."""
    weights, bias = map(np.asarray, head_params)
    (x, y), (q, t) = (tuple(map(np.asarray, examples)) for examples in task)
    logits = [[np.sum(weights * np.abs(a - b)) + bias for b in x] for a in q]
    same = [[np.argmax(a) == np.argmax(b) for b in y] for a in t]
    return np.array(logits), np.array(same)


def test_logits_are_those_of_the_best_match(key):
    task, learner, meta_params = _start(key, ways=3, shots=3)
    pairs, _ = _pairs(meta_params.head_params, task)
    expected = pairs.reshape(-1, 3, 3).max(2)  # sorted by class
    got = logits_of(learner, task, meta_params)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_loss_and_accuracy_are_balanced_over_pairs(key):
    task, learner, meta_params = _start(key, ways=4)
    pairs, same = _pairs(meta_params.head_params, task)
    probability = 1 / (1 + np.exp(-pairs))
    loss = -(np.log(probability[same]).mean() + np.log(1 - probability[~same]).mean())
    right = ((pairs > 0)[same].mean() + (pairs <= 0)[~same].mean()) / 2
    _, info = jax.jit(learner.meta_grad)(key, meta_params, task)
    found = jax.jit(learner.evaluate)(key, meta_params, task)
    for got in (info, jax.tree.map(lambda x: x[0], found)):
        np.testing.assert_allclose(got.loss, loss / 2, rtol=1e-9)
        np.testing.assert_allclose(got.metrics["verification_accuracy"], right)
    best = logits_of(learner, task, meta_params)
    accuracy = np.mean(np.argmax(best, -1) == np.argmax(task.query.targets, -1))
    np.testing.assert_allclose(info.metrics["accuracy"], accuracy)


def test_verification_is_right_about_half_the_time_by_chance(key):
    """However many more pairs are of two classes than of one."""
    task, learner, meta_params = _start(key, ways=20, shots=1)
    for bias in (-1e3, 1e3):
        head_params = meta_params.head_params._replace(bias=jnp.array(bias))
        always = meta_params._replace(head_params=head_params)
        found = jax.jit(learner.evaluate)(key, always, task)
        np.testing.assert_allclose(found.metrics["verification_accuracy"], [0.5])


def test_one_class_alone_is_verified_by_pairs_of_one_class(key):
    task, learner, meta_params = _start(key, ways=1)
    pairs, _ = _pairs(meta_params.head_params, task)
    _, info = learner.meta_grad(key, meta_params, task)
    np.testing.assert_allclose(info.loss, np.mean(np.log1p(np.exp(-pairs))), rtol=1e-9)


def test_at_the_start_the_nearest_example_wins(key):
    task = vector_task(key)
    learner = learners.siamese(identity_embedding(), metrics={})
    x, q = np.asarray(task.support.inputs), np.asarray(task.query.inputs)
    nearest = [np.argmin(np.abs(x - one).sum(1)) // 2 for one in q]
    np.testing.assert_array_equal(np.argmax(logits_of(learner, task), -1), nearest)
    found = learner.evaluate(key, learner.init(key, task), task)
    assert set(found.metrics) == {"verification_accuracy"}


def test_given_metrics_are_of_class_logits(key):
    task = vector_task(key)
    metrics = {"entropy": jm.losses.cross_entropy}
    learner = learners.siamese(identity_embedding(), metrics=metrics)
    found = learner.evaluate(key, learner.init(key, task), task)
    expected = jm.losses.cross_entropy(
        jnp.asarray(logits_of(learner, task)), task.query.targets
    )
    np.testing.assert_allclose(found.metrics["entropy"][0], expected, rtol=1e-9)
