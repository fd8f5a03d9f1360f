"""Every learner keeps the same contract: a learner is a row of one of three tables."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._learners import LEARNERS, maml, regression_task
from tests._metric_learners import METRIC_LEARNERS, classification_task
from tests._policy_learners import POLICY_LEARNERS


class Row(NamedTuple):
    """A learner, and the tasks that it is for."""

    learner: Any
    sample_task: Any
    makes_steps: bool

    @property
    def is_policy(self):
        return isinstance(self.learner, jm.rl.PolicyLearner)

    def support(self, task):
        """What the learner adapts to: a policy explores the task itself."""
        return task if self.is_policy else task.support


OUTER = {
    "adam": optax.adam(1e-3),
    "clip": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    "adamw": optax.adamw(optax.cosine_decay_schedule(1e-3, 10), weight_decay=1e-2),
}


ROWS = [*LEARNERS, *METRIC_LEARNERS, *POLICY_LEARNERS]


@pytest.fixture(params=ROWS)
def row(request):
    return _row(request.param)


def _row(name):
    if name in POLICY_LEARNERS:
        env, learner = POLICY_LEARNERS[name]()
        return Row(learner, env.sample_task, True)
    if name in LEARNERS:
        return Row(LEARNERS[name](), regression_task, True)
    learner = METRIC_LEARNERS[name]()
    return Row(learner, classification_task, name == "proto_maml")


def _start(row, key):
    task = row.sample_task(key)
    return task, row.learner.init(key, task)


def _estimator(row, **options):
    return jm.estimators.over_tasks(row.learner, row.sample_task, **options)


@pytest.mark.parametrize(
    "name",
    [
        # The other policies share their code with this one.
        pytest.param(name, marks=pytest.mark.slow)
        if name in POLICY_LEARNERS and name != "policy"
        else name
        for name in ROWS
    ],
)
def test_the_contract_of_learners(name):
    row = _row(name)
    with jax.enable_x64(True):
        jm.testing.check_learner(row.learner, row.sample_task, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("maml", "prototypical", "policy")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in ROWS
    ],
)
def test_a_step_is_the_same_on_several_devices_and_in_chunks(name, key):
    row = _row(name)
    with jax.enable_x64(True):
        mesh = jm.training.task_mesh(jax.devices()[:4])
        assert mesh.shape["tasks"] == 4
        results = []
        for options in ({}, {"mesh": mesh, "tasks_per_chunk": 1}):
            estimator = _estimator(row, num_tasks=8, **options)
            init, step = jm.training.make_train_step(estimator, OUTER["clip"])
            state = init(key)
            after, info = jax.jit(step)(state)
            chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
            moved = optax.tree.sub(after.meta_params, state.meta_params)
            assert optax.tree.norm(moved) > 0
            results.append((after.meta_params, info))
        chex.assert_trees_all_close(*results, rtol=1e-9, atol=1e-12)


def test_adapt_and_predict_agree_with_evaluate(row, key):
    if row.is_policy:
        pytest.skip("a policy is evaluated on new episodes; see test_rl_learners")
    with jax.enable_x64(True):
        task, meta_params = _start(row, key)
        task_params, _ = row.learner.adapt(key, meta_params, task.support)
        outputs = row.learner.predict(task_params, task.query.inputs)
        found = row.learner.evaluate(key, meta_params, task)
        if row.sample_task is regression_task:
            loss = jm.losses.squared_error(outputs, task.query.targets)
            chex.assert_trees_all_close(found.loss[-1], loss, rtol=1e-9)
        else:
            accuracy = jm.losses.accuracy(outputs, task.query.targets)
            np.testing.assert_allclose(found.metrics["accuracy"][-1], accuracy)


def test_evaluate_takes_any_number_of_steps_or_none(row, key):
    task, meta_params = _start(row, key)
    if not row.makes_steps:
        chex.assert_shape(row.learner.evaluate(key, meta_params, task).loss, (1,))
        with pytest.raises(ValueError, match="`inner_steps` must be None, got 5"):
            row.learner.evaluate(key, meta_params, task, inner_steps=5)
        return
    evaluate = jax.jit(row.learner.evaluate, static_argnames="inner_steps")
    short = evaluate(key, meta_params, task, inner_steps=1)
    long = evaluate(key, meta_params, task, inner_steps=5)
    chex.assert_shape((short.loss, long.loss), [(2,), (6,)])
    chex.assert_trees_all_close(short.loss[0], long.loss[0], rtol=1e-5)


def test_bfloat16_parameters_stay_bfloat16(row, key):
    """Of adaptation; the contract's check has the meta-gradient's."""
    task, meta_params = optax.tree.cast(_start(row, key), jnp.bfloat16)
    adapt = lambda *at: row.learner.adapt(*at, row.support(task))
    task_params, _ = jax.eval_shape(adapt, key, meta_params)
    model_params = getattr(task_params, "params", task_params)
    chex.assert_type(jax.tree.leaves(model_params), jnp.bfloat16)


def test_many_bfloat16_tasks_in_chunks():
    """A sum of 1,024 ones in bfloat16 would stop at 256."""
    info = jm.MetaGradInfo(jnp.zeros(()), {}, None)
    ones = lambda key, meta_params, task, **_: (jnp.ones_like(meta_params), info)
    learner = maml()._replace(meta_grad=ones)
    for chunk in (1, 1024):
        estimator = jm.estimators.over_tasks(
            learner, regression_task, num_tasks=1024, tasks_per_chunk=chunk
        )
        grads, _, _ = estimator.estimate(
            jax.random.key(0), jnp.zeros(2, jnp.bfloat16), None
        )
        assert grads.dtype == jnp.bfloat16
        np.testing.assert_array_equal(grads.astype(jnp.float32), 1.0)


def test_parameters_follow_the_default_float_type(row, key):
    with jax.enable_x64(True):
        task, meta_params = jax.eval_shape(lambda key: _start(row, key), key)
        grads, _ = jax.eval_shape(row.learner.meta_grad, key, meta_params, task)
        assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float64")}


@pytest.mark.parametrize("outer", OUTER)
def test_any_outer_chain(outer, key):
    row = Row(LEARNERS["meta_sgd"](), regression_task, True)
    estimator = _estimator(row, num_tasks=4)
    init, step = jm.training.make_train_step(estimator, OUTER[outer])
    state = init(key)
    after, _ = jax.jit(step)(state)
    assert int(after.step) == 1
    moved = optax.tree.sub(after.meta_params, state.meta_params)
    assert optax.tree.norm(moved) > 0
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_saved_meta_params_come_back(row, key, tmp_path):
    _, meta_params = _start(row, key)
    jm.training.save(tmp_path / "saved", meta_params)
    _, like = jax.eval_shape(lambda key: _start(row, key), key)
    chex.assert_trees_all_equal(
        jm.training.load(tmp_path / "saved", like=like), meta_params
    )


def test_bad_input_is_named(row, key):
    task, meta_params = jax.eval_shape(lambda key: _start(row, key), key)
    is_int = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.int32)
    wrong = jax.tree.map(is_int, meta_params)
    name = "" if row.is_policy else "hidden"
    with pytest.raises(ValueError, match=rf"floating point.*{name}.*int32"):
        jax.eval_shape(row.learner.adapt, key, wrong, row.support(task))
    if row.is_policy:
        return

    cut = lambda x, n: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
    number = task.support.targets.shape[0]
    ragged = task.support._replace(targets=cut(task.support.targets, number - 1))
    sizes = rf"support\.inputs.*\({number},\).*targets.*\({number - 1},\)"
    with pytest.raises(ValueError, match=sizes):
        jax.eval_shape(row.learner.adapt, key, meta_params, ragged)

    empty = task._replace(query=jax.tree.map(lambda x: cut(x, 0), task.query))
    with pytest.raises(ValueError, match="`query` holds no examples"):
        jax.eval_shape(row.learner.meta_grad, key, meta_params, empty)
