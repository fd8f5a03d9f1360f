"""Problems to optimize: data, synthetic ones, and what is made of others."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

INPUTS = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1) * 10
LABELS = np.array([0, 1, 2, 2, 1, 0])


def _classification(**options):
    options = {"batch_size": 4} | options
    return jm.tasks.classification(INPUTS, LABELS, jm.models.MLP([3]), **options)


def test_classification_is_the_mean_loss_of_a_batch(key):
    problem = _classification()
    params = problem.init(key, None)
    chosen = np.asarray(jax.random.randint(key, (4,), 0, 6))
    logits = jm.models.MLP([3]).apply(params, jnp.asarray(INPUTS[chosen] / 255))
    expected = jm.losses.cross_entropy(logits, jnp.asarray(LABELS[chosen]))
    np.testing.assert_allclose(problem.loss(params, None, key), expected, rtol=1e-6)


def test_classification_draws_all_examples(key):
    """The mean loss over many batches is that over the data."""
    problem = _classification(batch_size=50)
    params = problem.init(key, None)
    logits = jm.models.MLP([3]).apply(params, jnp.asarray(INPUTS / 255))
    expected = jm.losses.cross_entropy(logits, jnp.asarray(LABELS))
    keys = jax.random.split(key, 2000)
    draws = jax.vmap(problem.loss, (None, None, 0))(params, None, keys)
    assert abs(draws.mean() - expected) < 4 * draws.std() / np.sqrt(2000)


def test_classification_starts_as_it_is_told(key):
    own = _classification().init(key, None)
    assert jnp.abs(own["params"]["Dense_0"]["kernel"]).max() > 0.1
    normal = jax.vmap(_classification(init_scale=0.01).init, (0, None))
    params = normal(jax.random.split(key, 500), None)
    for leaf in jax.tree.leaves(params):
        np.testing.assert_allclose(leaf.std(), 0.01, rtol=0.1)


def test_data_of_a_problem_are_leaves_of_the_step(key):
    """Closed over, they would be constants of the program."""
    estimator = jm.estimators.truncated_bptt(
        jm.optimizers.lstm(3), _classification(), unroll=2, horizon=4, num_problems=2
    )
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    assert any(x.shape == INPUTS.shape for x in jax.tree.leaves(step))
    state, info = jax.jit(lambda step, state: step(state))(step, init(key))
    assert jnp.isfinite(info.loss).all()
    program = jax.jit(lambda step, s: step(s)).lower(step, state).as_text()
    assert not re.search(r"constant .*tensor<6x2x2x1xui8>", program)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (INPUTS[:0], LABELS[:0], "at least one"),
        (INPUTS, LABELS[:3], r"got shapes \(6, 2, 2, 1\) and \(3,\)"),
    ],
)
def test_data_that_do_not_fit_are_named(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        jm.tasks.classification(inputs, labels, jm.models.MLP([3]))


def test_random_scaling_is_the_same_problem_in_other_units(key):
    plain = jm.tasks.quadratics(dim=3)
    scaled = jm.tasks.random_scaling(plain, reach=2.0)
    instance = scaled.sample(key)
    inner, scales = instance
    params = scaled.init(key, instance)
    np.testing.assert_allclose(params * scales, plain.init(key, inner), rtol=1e-6)
    np.testing.assert_allclose(
        scaled.loss(params, instance, key),
        plain.loss(params * scales, inner, key),
        rtol=1e-6,
    )
    _, many = jax.vmap(scaled.sample)(jax.random.split(key, 5000))
    logs = np.log(many)
    assert -2 <= logs.min() < -1.9
    assert 1.9 < logs.max() <= 2
    np.testing.assert_allclose(logs.std(), 4 / np.sqrt(12), rtol=0.05)
    assert len(np.unique(many[0])) == 3  # Each coordinate has its own.


def test_random_scaling_of_data_keeps_them_leaves(key):
    problem = jm.tasks.random_scaling(_classification())
    instance = problem.sample(key)
    assert jnp.isfinite(problem.loss(problem.init(key, instance), instance, key))
    assert any(x.shape == INPUTS.shape for x in jax.tree.leaves(problem.loss))


def test_classes_are_taken_and_renumbered():
    data = jm.tasks.LabelledImages(INPUTS, LABELS)
    taken = data.take_classes((2, 0))
    assert taken.labels.tolist() == [1, 0, 0, 1]
    np.testing.assert_array_equal(taken.images, INPUTS[[0, 2, 3, 5]])
    with pytest.raises(ValueError, match=r"`classes` must be some of \[0, 1, 2\]"):
        data.take_classes((7,))
