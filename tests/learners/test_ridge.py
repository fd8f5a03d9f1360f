"""Ridge regression against the normal equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import learners
from jaxmeta.learners._ridge import solve_ridge
from tests._metric_learners import identity_embedding, logits_of, vector_task


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _least_squares(x, y, regularizer):
    """Ridge regression as plain least squares of an enlarged system."""
    size = x.shape[1]
    rows = np.concatenate([x, np.sqrt(regularizer) * np.eye(size)])
    rights = np.concatenate([y, np.zeros((size, y.shape[1]))])
    return np.linalg.lstsq(rows, rights)[0]


@pytest.mark.parametrize("size", [3, 6, 20], ids=["N > D", "N = D", "N < D"])
def test_solution_is_that_of_least_squares(size, key):
    task = vector_task(key, size=size)
    x, y = map(np.asarray, task.support)
    for regularizer in (1e-3, 1.0, 100.0):
        got = solve_ridge(*task.support, jnp.asarray(regularizer))
        expected = _least_squares(x, y, regularizer)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("size", [3, 20])
def test_logits_by_the_normal_equations(intercept, size, key):
    task = vector_task(key, size=size)
    learner = learners.ridge(
        identity_embedding(), regularization=0.3, scale=2.0, intercept=intercept
    )
    meta_params = learner.init(key, task)
    head_params = meta_params.head_params._replace(bias=jnp.array(0.7))
    x, y, q = (np.asarray(v) for v in (*task.support, task.query.inputs))
    if intercept:
        x, q = (np.hstack([v, np.ones((len(v), 1))]) for v in (x, q))
    weights = np.linalg.solve(x.T @ x + len(x) * 0.3 * np.eye(x.shape[1]), x.T @ y)
    got = logits_of(learner, task, meta_params._replace(head_params=head_params))
    np.testing.assert_allclose(got, 2 * q @ weights + 0.7, rtol=1e-9)


def test_duplicated_examples_change_nothing(key):
    """The regularizer is per example."""
    task = vector_task(key, size=4)
    learner = learners.ridge(identity_embedding())
    twice = task.support._replace(
        inputs=jnp.tile(task.support.inputs, (3, 1)),
        targets=jnp.tile(task.support.targets, (3, 1)),
    )
    np.testing.assert_allclose(
        logits_of(learner, task),
        logits_of(learner, task._replace(support=twice)),
        rtol=1e-8,
    )


def test_float32_is_near_float64(key):
    task = vector_task(key, shots=5, size=40)
    learner = learners.ridge(identity_embedding(), regularization=1e-3)
    expected = logits_of(learner, task)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), task)
    np.testing.assert_allclose(logits_of(learner, single), expected, atol=1e-3)


def test_the_regularizer_and_the_scale_are_learned(key):
    task = vector_task(key)
    learner = learners.ridge(identity_embedding())
    grads, _ = jax.jit(learner.meta_grad)(key, learner.init(key, task), task)
    assert abs(grads.head_params.log_regularization) > 1e-6
    assert abs(grads.head_params.log_scale) > 1e-6
