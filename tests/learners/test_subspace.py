"""Adaptive subspaces against NumPy's singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import learners
from tests._metric_learners import (
    identity_embedding,
    logits_of,
    tanh_embedding,
    vector_task,
)


def _projectors(x, y, shots):
    """By singular vectors, the K - 1 largest, as in the paper."""
    means, projectors = [], []
    for c in range(y.shape[1]):
        own = x[y[:, c] == 1]
        means.append(own.mean(0))
        u, _, _ = np.linalg.svd((own - own.mean(0)).T, full_matrices=False)
        u = u[:, : shots - 1]
        projectors.append(u @ u.T)
    return means, projectors


def _logits(task, shots, scale=1.0):
    (x, y), (q, _) = (tuple(map(np.asarray, examples)) for examples in task)
    means, projectors = _projectors(x, y, shots)
    outside = np.eye(x.shape[1]) - projectors
    return np.array(
        [
            [
                -scale * np.sum((p @ (one - m)) ** 2)
                for m, p in zip(means, outside, strict=True)
            ]
            for one in q
        ]
    )


@pytest.mark.parametrize(("shots", "size"), [(1, 5), (2, 5), (4, 9), (4, 3)])
def test_logits_by_singular_vectors(shots, size, key):
    with jax.enable_x64(True):
        task = vector_task(key, ways=4, shots=shots, size=size)
        learner = learners.subspace(identity_embedding(), scale=0.7)
        got = logits_of(learner, task)
        expected = _logits(task, shots, 0.7)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-9)


def test_bases_are_orthonormal_and_in_float32_nearly(key):
    for x64, tolerance in ((True, 1e-9), (False, 2e-3)):
        with jax.enable_x64(x64):
            task = vector_task(key, ways=3, shots=5, size=40)
            learner = learners.subspace(identity_embedding())
            task_params, _ = learner.adapt(key, learner.init(key, task), task.support)
            _, projectors = _projectors(*map(np.asarray, task.support), 5)
            for basis, projector in zip(
                np.asarray(task_params.fitted.bases), projectors, strict=True
            ):
                got = basis.T @ basis
                np.testing.assert_allclose(got, projector, atol=tolerance)
            expected = _logits(task, 5)
            np.testing.assert_allclose(
                logits_of(learner, task), expected, rtol=tolerance
            )


def test_gradients_in_float32_are_near_those_in_float64(key):
    learner, grads = learners.subspace(tanh_embedding(size=12)), []
    with jax.enable_x64(True):
        task = vector_task(key, shots=4)
        meta_params = learner.init(key, task)
    for dtype in (jnp.float64, jnp.float32):
        with jax.enable_x64(dtype == jnp.float64):
            cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
            got, _ = jax.jit(learner.meta_grad)(key, cast(meta_params), cast(task))
            grads.append(np.asarray(jax.flatten_util.ravel_pytree(got)[0]))
    error = np.linalg.norm(grads[1] - grads[0]) / np.linalg.norm(grads[0])
    assert error < 1e-2, error


def test_one_shot_is_the_prototypical_network(key):
    with jax.enable_x64(True):
        task = vector_task(key, shots=1)
        got = logits_of(learners.subspace(identity_embedding()), task)
        expected = logits_of(learners.prototypical(identity_embedding()), task)
        np.testing.assert_allclose(got, expected, rtol=1e-8)


def _term(params, task):
    """The discriminative term by singular vectors, of `tanh_embedding`."""
    embed = tanh_embedding().apply
    x, y = np.asarray(embed(params, task.support.inputs)), task.support.targets
    _, projectors = _projectors(x, np.asarray(y), 3)
    return sum(
        np.sum((projectors[i].T @ projectors[j]) ** 2)
        for i in range(3)
        for j in range(3)
        if i != j
    )


def test_the_discriminative_term_by_differences_of_singular_vectors(key):
    with jax.enable_x64(True):
        task = vector_task(key, shots=3)
        grads = []
        for weight in (0.0, 2.0):
            learner = learners.subspace(tanh_embedding(), discriminative=weight)
            meta_params = learner.init(key, task)
            grads.append(jax.jit(learner.meta_grad)(key, meta_params, task)[0].params)
        exact, unravel = jax.flatten_util.ravel_pytree(
            jax.tree.map(lambda a, b: (b - a) / 2, *grads)
        )
        flat, _ = jax.flatten_util.ravel_pytree(meta_params.params)
        steps = 1e-5 * np.eye(flat.size)
        numeric = [
            (_term(unravel(flat + s), task) - _term(unravel(flat - s), task)) / 2e-5
            for s in steps
        ]
        np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-6)


def test_flipping_adds_the_mirror_images(key):
    with jax.enable_x64(True):
        as_images = lambda e: e._replace(inputs=e.inputs.reshape(-1, 2, 3, 1))
        task = jm.Task(*map(as_images, vector_task(key, shots=1, size=6)))
        learner = learners.subspace(tanh_embedding(), flip=True)
        both = jnp.concatenate([task.support.inputs, task.support.inputs[:, :, ::-1]])
        doubled = jm.Examples(both, jnp.tile(task.support.targets, (2, 1)))
        expected = logits_of(
            learners.subspace(tanh_embedding()), task._replace(support=doubled)
        )
        np.testing.assert_allclose(logits_of(learner, task), expected, rtol=1e-9)


def test_flipping_vectors_is_named(key):
    task = vector_task(key)
    learner = learners.subspace(identity_embedding(), flip=True)
    with pytest.raises(
        ValueError, match=r"`flip` requires images .* got shape \(6, 5\)"
    ):
        learner.init(key, task)
