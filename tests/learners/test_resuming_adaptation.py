"""`adapt` resumes from task parameters: new examples arrive, the state is kept."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._learners import LEARNERS, maml, regression_task, with_inner_sgd
from tests._metric_learners import METRIC_LEARNERS, classification_task

MOMENTUM = optax.sgd(0.02, momentum=0.9)
ROWS = LEARNERS | {
    "maml, momentum": lambda: maml(inner_tx=MOMENTUM),
    "maml, Adam": lambda: maml(inner_tx=jm.optimizers.adam(0.01)),
    "cavia, momentum": lambda: with_inner_sgd(
        jm.cavia, num_context=2, inner_tx=MOMENTUM
    ),
    "anil, momentum": lambda: with_inner_sgd(jm.anil, inner_tx=MOMENTUM),
    "imaml, momentum": lambda: with_inner_sgd(jm.imaml, inner_tx=MOMENTUM),
}
ROWS.pop("reptile")  # Its minibatches are drawn anew.


@pytest.mark.parametrize("name", ROWS)
def test_adapting_twice_is_twice_as_many_steps(name, key):
    learner = ROWS[name]()
    with jax.enable_x64(True):
        task = regression_task(key)
        meta_params = learner.init(key, task)
        expected = learner.evaluate(key, meta_params, task, inner_steps=6).loss
        task_params = meta_params
        for steps in (2, 4, 6):
            task_params, info = learner.adapt(key, task_params, task.support)
            chex.assert_tree_all_finite(info)
            outputs = learner.predict(task_params, task.query.inputs)
            loss = jm.losses.squared_error(outputs, task.query.targets)
            np.testing.assert_allclose(loss, expected[steps], rtol=1e-10)


def test_the_state_is_needed(key):
    """What the test above is for: without its momentum the rule ends elsewhere."""
    learner = maml(inner_tx=MOMENTUM)
    task = regression_task(key)
    once, _ = learner.adapt(key, learner.init(key, task), task.support)
    assert isinstance(once, jm.Adapted) and int(once.step) == 2
    twice, _ = learner.adapt(key, once, task.support)
    fresh, _ = learner.adapt(key, once.params, task.support)
    assert optax.tree.norm(optax.tree.sub(twice.params, fresh.params)) > 1e-4


def test_parameters_alone_where_nothing_else_is_needed(key):
    task = regression_task(key)
    learner = maml()
    meta_params = learner.init(key, task)
    task_params, _ = learner.adapt(key, meta_params, task.support)
    chex.assert_trees_all_equal_structs(task_params, meta_params)


def test_models_with_statistics_of_the_support_resume(key):
    """Statistics are those of the examples that came last."""
    model = jm.models.Conv4(4, head=2, statistics="support")
    images = jax.random.uniform(key, (4, 16, 16, 1))
    support = jm.Examples(images, jnp.eye(2)[jnp.array([0, 1, 0, 1])])
    learner = jm.maml(
        model, jm.losses.cross_entropy, inner_tx=optax.sgd(0.1), inner_steps=1
    )
    meta_params = learner.init(key, jm.Task(support, support))
    adapt = jax.jit(learner.adapt)
    once, _ = adapt(key, meta_params, support)
    twice, _ = adapt(key, once, support)
    expected = learner.evaluate(
        key, meta_params, jm.Task(support, support), inner_steps=2
    )
    outputs = learner.predict(twice, images)
    loss = jm.losses.cross_entropy(outputs, support.targets)
    np.testing.assert_allclose(loss, expected.loss[-1], rtol=1e-4)


def test_policies_resume(key):
    env = jm.rl.navigation(horizon=4)
    policy = jm.rl.gaussian_policy(jm.models.MLP([4, 2]))
    learner = jm.rl.maml(env, policy, inner_tx=MOMENTUM, num_episodes=2)
    task = env.sample_task(key)
    once, _ = learner.adapt(key, learner.init(key, task), task)
    twice, info = learner.adapt(key, once, task)
    assert int(twice.step) == 2 and info.losses.shape == (1,)
    assert learner.predict(twice, jnp.zeros((1, 2)))


METRIC_ROWS = [name for name in METRIC_LEARNERS if name != "proto_maml"]


@pytest.mark.parametrize("name", METRIC_ROWS)
def test_metric_learners_know_all_examples_that_they_have_seen(name, key):
    learner = METRIC_LEARNERS[name]()
    with jax.enable_x64(True):
        task = classification_task(key)
        meta_params = learner.init(key, task)
        together, _ = learner.adapt(key, meta_params, task.support)
        task_params = meta_params
        for part in (slice(0, 2), slice(2, 3), slice(3, None)):
            examples = jax.tree.map(lambda x, part=part: x[part], task.support)
            task_params, _ = learner.adapt(key, task_params, examples)
        expected, found = (
            learner.predict(p, task.query.inputs) for p in (together, task_params)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_proto_maml_takes_up_classes_that_come_later(key):
    learner = METRIC_LEARNERS["proto_maml"]()
    task = classification_task(key)
    meta_params = learner.init(key, task)
    labels = jnp.argmax(task.support.targets, -1)
    first, others = (
        jax.tree.map(lambda x, rows=rows: x[rows], task.support)
        for rows in (labels == 0, labels != 0)
    )
    once, _ = learner.adapt(key, meta_params, first)
    assert once.present.tolist()[0] == 1 and once.present.sum() == 1
    twice, _ = learner.adapt(key, once, others)
    assert twice.present.sum() == task.support.targets.shape[1]
    assert (twice.kernel[:, 1:] != once.kernel[:, 1:]).any()
    chex.assert_tree_all_finite(learner.predict(twice, task.query.inputs))
