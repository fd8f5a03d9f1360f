"""Every learner keeps the same contract: a learner is a row in `LEARNERS`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._problems import LEARNERS, regression_task


@pytest.fixture(params=LEARNERS)
def learner(request):
    return LEARNERS[request.param]()


def _batch(learner, key, num_tasks=4):
    keys = jax.random.split(key, num_tasks)
    tasks = jax.vmap(regression_task)(keys)
    first = jax.tree.map(lambda x: x[0], tasks)
    return keys, tasks, learner.init(key, first)


def test_meta_gradients_are_shaped_like_meta_params_and_finite(learner, key):
    task = regression_task(key)
    meta_params = learner.init(key, task)
    grads, info = learner.meta_grad(key, meta_params, task)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, meta_params)
    chex.assert_shape(info.loss, ())
    chex.assert_tree_all_finite((grads, info))
    assert optax.tree.norm(grads) > 0


def test_jit_agrees_with_eager(learner, key):
    with jax.enable_x64(True):
        task = regression_task(key)
        meta_params = learner.init(key, task)
        for function in (learner.meta_grad, learner.evaluate):
            eager = function(key, meta_params, task)
            jitted = jax.jit(function)(key, meta_params, task)
            chex.assert_trees_all_close(jitted, eager, rtol=1e-9)


def test_vmap_agrees_with_loop(learner, key):
    with jax.enable_x64(True):
        keys, tasks, meta_params = _batch(learner, key)
        for function in (learner.meta_grad, learner.evaluate):
            batched = jax.vmap(function, (0, None, 0))(keys, meta_params, tasks)
            for t, task_key in enumerate(keys):
                one = function(
                    task_key, meta_params, jax.tree.map(lambda x: x[t], tasks)
                )
                mine = jax.tree.map(lambda x: x[t], batched)
                chex.assert_trees_all_close(mine, one, rtol=1e-9)


def test_traces_once(learner, key):
    task = regression_task(key)
    meta_params = learner.init(key, task)
    for function in (learner.meta_grad, learner.evaluate):
        chex.clear_trace_counter()
        step = jax.jit(chex.assert_max_traces(function, n=1))
        for k in jax.random.split(key, 3):
            step(k, meta_params, regression_task(k))


def test_sharding_the_tasks_changes_nothing(learner, key):
    with jax.enable_x64(True):
        mesh = jm.training.task_mesh()
        assert mesh.shape["tasks"] == 4
        one, four = (
            jm.estimators.over_tasks(learner, regression_task, num_tasks=8, mesh=m)
            for m in (None, mesh)
        )
        meta_params, carry = one.init(key)
        expected, _, info = jax.jit(one.estimate)(key, meta_params, carry)
        got, _, sharded_info = jax.jit(four.estimate)(key, meta_params, carry)
        chex.assert_trees_all_close(got, expected, rtol=1e-12)
        chex.assert_trees_all_close(sharded_info, info, rtol=1e-12)


def test_chunks_change_nothing(learner, key):
    with jax.enable_x64(True):
        results = []
        for chunk in (1, 2, 8):
            estimator = jm.estimators.over_tasks(
                learner, regression_task, num_tasks=8, tasks_per_chunk=chunk
            )
            meta_params, carry = estimator.init(key)
            results.append(jax.jit(estimator.estimate)(key, meta_params, carry))
        for other in results[1:]:
            chex.assert_trees_all_close(other, results[0], rtol=1e-11)


def test_adapt_and_predict_agree_with_evaluate(learner, key):
    with jax.enable_x64(True):
        task = regression_task(key)
        meta_params = learner.init(key, task)
        task_params, _ = learner.adapt(key, meta_params, task.support)
        outputs = learner.predict(task_params, task.query.inputs)
        loss = jm.losses.squared_error(outputs, task.query.targets)
        losses = learner.evaluate(key, meta_params, task).loss
        chex.assert_trees_all_close(losses[-1], loss, rtol=1e-9)


def test_evaluate_takes_any_number_of_steps(learner, key):
    task = regression_task(key)
    meta_params = learner.init(key, task)
    short = learner.evaluate(key, meta_params, task, inner_steps=1)
    long = learner.evaluate(key, meta_params, task, inner_steps=5)
    chex.assert_shape((short.loss, long.loss), [(2,), (6,)])
    chex.assert_trees_all_close(short.loss, long.loss[:2], rtol=1e-5)


def test_unknown_extra_arguments_are_ignored(learner, key):
    task = regression_task(key)
    meta_params = learner.init(key, task)
    learner.meta_grad(key, meta_params, task, step=jnp.zeros((), jnp.int32), other="x")


def test_bfloat16_parameters_stay_bfloat16(learner, key):
    task = optax.tree.cast(regression_task(key), jnp.bfloat16)
    meta_params = optax.tree.cast(learner.init(key, task), jnp.bfloat16)
    task_params, _ = learner.adapt(key, meta_params, task.support)
    chex.assert_trees_all_equal_dtypes(
        task_params, getattr(meta_params, "params", meta_params)
    )
    grads, _ = learner.meta_grad(key, meta_params, task)
    chex.assert_trees_all_equal_dtypes(grads, meta_params)
    chex.assert_tree_all_finite(grads)


def test_many_bfloat16_tasks_in_chunks():
    """A sum of 1,024 ones in bfloat16 would stop at 256."""
    ones = lambda key, meta_params, task, **_: (jnp.ones_like(meta_params), None)
    learner = LEARNERS["maml"]()._replace(meta_grad=ones)
    for chunk in (1, 1024):
        estimator = jm.estimators.over_tasks(
            learner, regression_task, num_tasks=1024, tasks_per_chunk=chunk
        )
        grads, _, _ = estimator.estimate(
            jax.random.key(0), jnp.zeros(2, jnp.bfloat16), None
        )
        assert grads.dtype == jnp.bfloat16
        np.testing.assert_array_equal(grads.astype(jnp.float32), 1.0)


def test_parameters_follow_the_default_float_type(learner, key):
    with jax.enable_x64(True):
        task = regression_task(key)
        meta_params = learner.init(key, task)
        grads, _ = learner.meta_grad(key, meta_params, task)
        assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float64")}


@pytest.mark.parametrize(
    "outer_tx",
    [
        optax.adam(1e-3),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
        optax.adamw(optax.cosine_decay_schedule(1e-3, 10), weight_decay=1e-2),
    ],
    ids=["adam", "clip", "adamw"],
)
def test_one_jitted_step_with_any_outer_chain(learner, outer_tx, key):
    estimator = jm.estimators.over_tasks(learner, regression_task, num_tasks=4)
    init, step = jm.training.make_train_step(estimator, outer_tx)
    state = init(key)
    after, _ = jax.jit(step)(state)
    assert int(after.step) == 1
    moved = jax.tree.map(lambda a, b: a - b, after.meta_params, state.meta_params)
    assert optax.tree.norm(moved) > 0
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_saved_meta_params_come_back(learner, key, tmp_path):
    meta_params = learner.init(key, regression_task(key))
    jm.training.save(tmp_path / "saved", meta_params)
    like = jax.eval_shape(learner.init, key, regression_task(key))
    chex.assert_trees_all_equal(
        jm.training.load(tmp_path / "saved", like=like), meta_params
    )


def test_ragged_support_names_the_leaves(learner, key):
    task = regression_task(key)
    meta_params = learner.init(key, task)
    ragged = task.support._replace(targets=task.support.targets[:-1])
    with pytest.raises(ValueError, match=r"support\.inputs.*\(4,\).*targets.*\(3,\)"):
        jax.eval_shape(learner.adapt, key, meta_params, ragged)


def test_empty_query_is_named(learner, key):
    task = regression_task(key)
    meta_params = learner.init(key, task)
    empty = jax.tree.map(lambda x: x[:0], task.query)
    with pytest.raises(ValueError, match="`query` holds no examples"):
        jax.eval_shape(learner.meta_grad, key, meta_params, task._replace(query=empty))


def test_integer_parameters_are_named(learner, key):
    task = regression_task(key)
    meta_params = learner.init(key, task)
    wrong = jax.tree.map(lambda x: x.astype(jnp.int32), meta_params)
    with pytest.raises(ValueError, match=r"floating point.*hidden.*int32"):
        learner.adapt(key, wrong, task.support)
