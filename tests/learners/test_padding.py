"""Rows of zeros in one-hot targets are padding: a padded task is the task itself.

In float64 by every learner: tasks of 3 ways and 2 shots, and the same ones among
padding, which a class in the middle has too, of 5 ways for the learners whose meta-
parameters do not know the number of ways.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta.learners import _adaptation
from tests._metric_learners import METRIC_LEARNERS, tanh_embedding, vector_task

WAYS = 3
# Where the 6 support and the 6 query rows, and the 3 classes, come to be.
ROWS = (np.array([0, 2, 3, 4, 7, 8]), np.array([1, 2, 5, 6, 7, 9]))
NUM_ROWS = (10, 11)
COLUMNS, MORE_WAYS = np.array([0, 1, 3]), 5


def _classifier(width=4, ways=WAYS):
    """A smooth network whose output layer is called `head`."""
    body = tanh_embedding(3, size=width)

    def init(key, inputs):
        body_key, head_key = jax.random.split(key)
        head = jax.random.normal(head_key, (width, ways))
        return {"body": body.init(body_key, inputs), "head": head}

    def apply(params, inputs):
        return body.apply(params["body"], inputs) @ params["head"]

    return jm.Model(init, apply)


def _inner(factory, **options):
    options = {"inner_tx": optax.sgd(0.1), "inner_steps": 2} | options
    return factory(_classifier(), jm.losses.cross_entropy, **options)


def _own_rule(factory, **options):
    return factory(_classifier(), jm.losses.cross_entropy, inner_steps=2, **options)


GRADIENT_LEARNERS = {
    "maml": lambda: _inner(jm.maml),
    "reptile": lambda: _inner(jm.reptile),
    "anil": lambda: _inner(jm.anil),
    "boil": lambda: _inner(jm.boil),
    "cavia": lambda: _inner(jm.cavia, num_context=2),
    "imaml": lambda: _inner(jm.imaml),
    "meta_sgd": lambda: _own_rule(jm.meta_sgd, learning_rate=0.1),
    "maml_plus_plus": lambda: _own_rule(jm.maml_plus_plus, learning_rate=0.1),
    "meta_curvature": lambda: _own_rule(jm.meta_curvature, learning_rate=0.1),
    "meta_lstm": lambda: _own_rule(jm.meta_lstm, hidden_size=2),
}
LEARNERS = GRADIENT_LEARNERS | METRIC_LEARNERS


def _pad(task, more_ways, filling=0.0):
    """The task among rows of `filling`, and columns of zeros if `more_ways`."""
    ways = MORE_WAYS if more_ways else WAYS
    columns = COLUMNS if more_ways else np.arange(WAYS)

    def pad(examples, rows, num_rows):
        size = examples.inputs.shape[1]
        inputs = jnp.full((num_rows, size), filling).at[rows].set(examples.inputs)
        targets = jnp.zeros((num_rows, ways))
        return jm.Examples(
            inputs, targets.at[np.ix_(rows, columns)].set(examples.targets)
        )

    return jm.Task(*map(pad, task, ROWS, NUM_ROWS))


def _everything(learner, is_metric):
    """What a learner makes of a task, compiled at once.

    The others evaluate by the loss and the metrics that `meta_grad` reports too.
    """

    @jax.jit
    def run(key, meta_params, task):
        grads, info = learner.meta_grad(key, meta_params, task)
        if not is_metric:
            return None, (info.loss, grads, info.metrics)
        task_params, _ = learner.adapt(key, meta_params, task.support)
        outputs = learner.predict(task_params, task.query.inputs)
        found = learner.evaluate(key, meta_params, task)
        return outputs, (info.loss, grads, info.metrics, found)

    return run


@pytest.mark.parametrize("name", LEARNERS)
def test_a_padded_task_gives_what_the_task_gives(name, key, x64):
    learner, is_metric = LEARNERS[name](), name in METRIC_LEARNERS
    run, task = _everything(learner, is_metric), vector_task(key, WAYS)
    meta_params = learner.init(key, task)
    outputs, expected = run(key, meta_params, task)
    # The SVM's kernel is singular but for 1e-8, which costs digits.
    tolerance = {"rtol": 1e-7, "atol": 1e-7 if name == "svm" else 1e-10}
    for filling in (0.0, 3.0):  # What padded inputs are does not matter.
        padded = _pad(task, is_metric, filling)
        got, results = run(key, meta_params, padded)
        chex.assert_trees_all_close(results, expected, **tolerance)
        if is_metric:
            got = np.asarray(got)[ROWS[1]]
            np.testing.assert_allclose(got[:, COLUMNS], outputs, **tolerance)
            assert np.isin(np.argmax(got, -1), COLUMNS).all()
    nothing = jax.tree.map(jnp.zeros_like, padded)
    outputs, results = run(key, meta_params, nothing)
    chex.assert_tree_all_finite((outputs, results))
    assert results[0] == 0


def test_losses_are_means_over_the_real_rows():
    outputs = jnp.array([[0.0, 9.0], [9.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    targets = jnp.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert jm.losses.accuracy(outputs, targets) == 0.5
    for loss in (jm.losses.cross_entropy, jm.losses.accuracy):
        np.testing.assert_allclose(
            loss(outputs, targets), loss(outputs[:2], targets[:2]), rtol=1e-6
        )
        assert loss(outputs, jnp.zeros_like(targets)) == 0
    grads = jax.grad(jm.losses.cross_entropy)(outputs, targets)
    expected = jax.grad(jm.losses.cross_entropy)(outputs[:2], targets[:2])
    np.testing.assert_allclose(grads[:2], expected, rtol=1e-6)
    assert not grads[2:].any()
    # What is NaN is no padding.
    assert jnp.isnan(jm.losses.cross_entropy(outputs, targets.at[3].set(jnp.nan)))


def test_minibatches_are_drawn_of_examples(key):
    """Reptile's, as long as there are enough."""
    rows = np.array([1, 4, 5])
    targets = jnp.zeros((8, 2)).at[rows, 0].set(1)
    support = jm.Examples(jnp.arange(8), targets)
    draw = lambda key: _adaptation._draw(key, support, 3, jm.losses.cross_entropy)
    drawn = jax.vmap(draw)(jax.random.split(key, 20)).inputs
    np.testing.assert_array_equal(np.sort(drawn, -1), np.tile(rows, (20, 1)))
    numbers = support._replace(targets=targets[:, :1])
    draw = lambda key: _adaptation._draw(key, numbers, 3, jm.losses.squared_error)
    drawn = jax.vmap(draw)(jax.random.split(key, 50)).inputs
    assert set(np.unique(drawn)) == set(range(8))


def test_plots_leave_padding_out():
    pytest.importorskip("matplotlib")
    images = jnp.ones((3, 4, 4, 1)).at[2].set(9.0)
    targets = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    examples = jm.Examples(images, targets)
    padded = jm.plots.task_sheet(jm.Task(examples, examples)).images[0].get_array()
    first = jax.tree.map(lambda x: x[:2], examples)
    plain = jm.plots.task_sheet(jm.Task(first, first)).images[0].get_array()
    assert padded.shape == plain.shape
    points = jnp.array([[0.0, 1.0], [4.0, 1.0], [50.0, 9.0]])
    shown, expected = (
        [text.xy for text in jm.plots.embedding_map(points[:n], targets[:n]).texts]
        for n in (3, 2)
    )
    np.testing.assert_allclose(shown, expected)
