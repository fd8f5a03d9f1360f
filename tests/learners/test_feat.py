"""FEAT against NumPy, and against what it must not depend on."""

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


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def _transform(params, x):
    """One layer of self-attention over the rows of x, head by head, row by row."""
    p = jax.tree.map(np.asarray, params)
    out = np.zeros_like(x)
    for i, row in enumerate(x):
        total = row + p.output_bias
        for h in range(len(p.query)):
            scores = (x @ p.key[h]) @ (row @ p.query[h]) / np.sqrt(x.shape[1])
            total = total + _softmax(scores) @ (x @ p.value[h]) @ p.output[h]
        normal = (total - total.mean()) / np.sqrt(total.var() + 1e-5)
        out[i] = normal * p.norm_scale + p.norm_bias
    return out


def _start(key, model, **options):
    """A task, the learner, and meta-parameters without a trivial one."""
    task = vector_task(key)
    learner = learners.feat(model, **options)
    meta_params = learner.init(key, task)
    size = meta_params.head_params.output_bias.size
    keys = jax.random.split(key, 3)
    names = ("output_bias", "norm_scale", "norm_bias")
    draws = {n: jax.random.normal(k, (size,)) for n, k in zip(names, keys, strict=True)}
    head_params = meta_params.head_params._replace(**draws)
    return task, learner, meta_params._replace(head_params=head_params)


def _means(x, y):
    return np.stack([x[w == 1].mean(0) for w in np.asarray(y).T])


@pytest.mark.parametrize("num_heads", [1, 3])
def test_logits_by_numpy(num_heads, key):
    task, learner, meta_params = _start(
        key, identity_embedding(), num_heads=num_heads, temperature=5.0
    )
    x, y, q = (np.asarray(v) for v in (*task.support, task.query.inputs))
    prototypes = _transform(meta_params.head_params, _means(x, y))
    expected = -np.sum((q[:, None] - prototypes[None]) ** 2, -1) / 5
    got = logits_of(learner, task, meta_params)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_permuting_the_classes_permutes_the_logits(key):
    task, learner, meta_params = _start(key, identity_embedding())
    order = jnp.array([2, 0, 1])
    turned = jm.Task(*(e._replace(targets=e.targets[:, order]) for e in task))
    np.testing.assert_allclose(
        logits_of(learner, turned, meta_params),
        logits_of(learner, task, meta_params)[:, order],
        rtol=1e-9,
    )


def test_the_order_of_the_support_does_not_matter(key):
    task, learner, meta_params = _start(key, identity_embedding())
    backwards = jax.tree.map(lambda x: x[::-1], task.support)
    np.testing.assert_allclose(
        logits_of(learner, task._replace(support=backwards), meta_params),
        logits_of(learner, task, meta_params),
        rtol=1e-9,
    )


def test_classes_see_each_other(key):
    """What a set-to-set function adds to prototypes."""
    task, learner, meta_params = _start(key, identity_embedding())
    moved = task.support.inputs.at[-1].add(3.0)  # of the last class
    changed = task._replace(support=task.support._replace(inputs=moved))
    before, after = (logits_of(learner, t, meta_params) for t in (task, changed))
    assert np.abs(after[:, 0] - before[:, 0]).min() > 0


def _term(meta_params, task, temperature):
    """The contrastive term: each class is a set of its own, support and query."""
    embed = tanh_embedding().apply
    x = np.concatenate([embed(meta_params.params, e.inputs) for e in task])
    labels = np.argmax(np.concatenate([e.targets for e in task]), -1)
    centres = np.stack(
        [
            _transform(meta_params.head_params, x[labels == c]).mean(0)
            for c in range(labels.max() + 1)
        ]
    )
    logits = -np.sum((x[:, None] - centres[None]) ** 2, -1) / temperature
    return -np.mean(
        [np.log(_softmax(z)[c]) for z, c in zip(logits, labels, strict=True)]
    )


def test_the_contrastive_term_by_differences(key):
    grads = []
    for weight in (0.0, 0.5):
        task, learner, meta_params = _start(
            key, tanh_embedding(), contrastive=weight, contrastive_temperature=3.0
        )
        grads.append(jax.jit(learner.meta_grad)(key, meta_params, task)[0])
    exact, unravel = jax.flatten_util.ravel_pytree(
        jax.tree.map(lambda a, b: (b - a) / 0.5, *grads)
    )
    flat, _ = jax.flatten_util.ravel_pytree(meta_params)
    steps = 1e-5 * np.eye(flat.size)
    numeric = [
        (_term(unravel(flat + s), task, 3.0) - _term(unravel(flat - s), task, 3.0))
        / 2e-5
        for s in steps
    ]
    np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-7)
