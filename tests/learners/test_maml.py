"""MAML against closed forms, finite differences and itself taken another way."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._learners import maml, regression_task, scaled_sgd, tanh_model

RATE = 0.1
INNER = {
    "sgd": optax.sgd(0.02),
    "momentum": optax.sgd(0.02, momentum=0.9),
    "nesterov": optax.sgd(0.02, momentum=0.9, nesterov=True),
    "adam": jm.optimizers.adam(0.02),
    "optax adam": optax.adam(0.02, eps_root=1e-8),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _quadratic(key, dim=4):
    """Least squares whose support loss is 0.5 |A w - b|^2 / N: Hessian A^T A / N."""
    keys = jax.random.split(key, 5)
    num = 6
    a, c = (jax.random.normal(k, (num, dim)) for k in keys[:2])
    b, d = (jax.random.normal(k, (num,)) for k in keys[2:4])
    w = jax.random.normal(keys[4], (dim,))
    model = jm.Model(lambda key, x: w, lambda w, x: x @ w)
    loss = lambda out, y: 0.5 * jnp.mean(jnp.square(out - y))
    return model, loss, jm.Task(jm.Examples(a, b), jm.Examples(c, d)), w


@pytest.mark.parametrize("inner_steps", range(1, 11))
@pytest.mark.parametrize("first_order", [False, True], ids=["maml", "fomaml"])
def test_closed_form_on_a_quadratic(inner_steps, first_order, key):
    model, loss, task, w = _quadratic(key)
    learner = jm.maml(
        model,
        loss,
        inner_tx=optax.sgd(RATE),
        inner_steps=inner_steps,
        first_order=first_order,
    )
    (a, b), (c, d) = task.support, task.query
    num = a.shape[0]
    hessian = np.asarray(a.T @ a / num)
    shrink = np.linalg.matrix_power(np.eye(len(w)) - RATE * hessian, inner_steps)
    solution = np.linalg.solve(hessian, np.asarray(a.T @ b / num))
    adapted = solution + shrink @ (np.asarray(w) - solution)
    query_grad = np.asarray(c.T @ (c @ adapted - d) / num)
    expected = query_grad if first_order else shrink.T @ query_grad

    task_params, _ = learner.adapt(key, w, task.support)
    np.testing.assert_allclose(task_params, adapted, rtol=1e-9)
    grads, info = learner.meta_grad(key, w, task)
    np.testing.assert_allclose(grads, expected, rtol=1e-9)
    by_hand = 0.5 * np.mean(np.square(np.asarray(c) @ adapted - np.asarray(d)))
    np.testing.assert_allclose(info.loss, by_hand, rtol=1e-9)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_central_finite_differences(inner, inner_steps, key):
    learner = maml(inner_tx=INNER[inner], inner_steps=inner_steps)
    task = regression_task(key)
    meta_params = learner.init(key, task)
    grads, _ = learner.meta_grad(key, meta_params, task)
    flat, unravel = jax.flatten_util.ravel_pytree(meta_params)
    eps = 1e-5

    @jax.jit
    @jax.vmap
    def query_loss(flat):
        return learner.evaluate(key, unravel(flat), task).loss[-1]

    steps = eps * jnp.eye(flat.size)
    ahead, behind = query_loss(flat[None] + steps), query_loss(flat[None] - steps)
    numeric = (ahead - behind) / (2 * eps)
    exact = jax.flatten_util.ravel_pytree(grads)[0]
    error = jnp.linalg.norm(exact - numeric) / jnp.linalg.norm(numeric)
    assert error < 1e-6, error


@pytest.mark.parametrize("inner", INNER)
def test_forward_over_reverse_is_reverse_over_reverse(inner, key):
    task = regression_task(key)
    mixed, reverse = (
        maml(inner_tx=INNER[inner], inner_steps=5, hvp=hvp)
        for hvp in ("forward-over-reverse", "reverse-over-reverse")
    )
    meta_params = mixed.init(key, task)
    got, _ = mixed.meta_grad(key, meta_params, task)
    expected, _ = reverse.meta_grad(key, meta_params, task)
    error = optax.tree.norm(optax.tree.sub(got, expected)) / optax.tree.norm(expected)
    assert error < 1e-9, error


def test_agrees_with_a_hand_written_unrolled_loop(key):
    model, task = tanh_model(), regression_task(key)

    def query_loss(params):
        support_loss = lambda p: jm.losses.squared_error(
            model.apply(p, task.support.inputs), task.support.targets
        )
        for _ in range(3):
            grads = jax.grad(support_loss)(params)
            params = jax.tree.map(lambda p, g: p - 0.02 * g, params, grads)
        outputs = model.apply(params, task.query.inputs)
        return jm.losses.squared_error(outputs, task.query.targets)

    params = model.init(key, task.support.inputs)
    learner = maml(inner_steps=3)
    got, info = learner.meta_grad(key, params, task)
    chex.assert_trees_all_close(got, jax.grad(query_loss)(params), rtol=1e-9)
    np.testing.assert_allclose(info.loss, query_loss(params), rtol=1e-12)


def test_first_order_differs_from_exact(key):
    """Or the tests above could not tell one from the other."""
    task = regression_task(key)
    exact, first = maml(inner_steps=5), maml(inner_steps=5, first_order=True)
    params = exact.init(key, task)
    difference = optax.tree.sub(
        exact.meta_grad(key, params, task)[0], first.meta_grad(key, params, task)[0]
    )
    assert optax.tree.norm(difference) > 0.01


@pytest.mark.parametrize("first_order", [False, True])
def test_learned_rule_gets_its_gradient(first_order, key):
    """The rate's meta-gradient against finite differences, beside the parameters'."""
    learner = maml(inner_tx=scaled_sgd(), inner_steps=3, first_order=first_order)
    task = regression_task(key)
    meta_params = learner.init(key, task)
    assert isinstance(meta_params, jm.learners.MamlParams)
    grads, _ = learner.meta_grad(key, meta_params, task)
    if first_order:  # First order drops what comes through the inner gradients.
        learner_of_one_step = maml(inner_tx=scaled_sgd(), inner_steps=1)
        grads, _ = maml(
            inner_tx=scaled_sgd(), inner_steps=1, first_order=True
        ).meta_grad(key, meta_params, task)
        expected, _ = learner_of_one_step.meta_grad(key, meta_params, task)
        chex.assert_trees_all_close(grads.theta, expected.theta, rtol=1e-9)
        return
    eps = 1e-5

    def loss(log_rate):
        theta = meta_params.theta | {"hidden": log_rate}
        moved = meta_params._replace(theta=theta)
        return learner.meta_grad(key, moved, task)[1].loss

    rate = meta_params.theta["hidden"]
    numeric = (loss(rate + eps) - loss(rate - eps)) / (2 * eps)
    np.testing.assert_allclose(grads.theta["hidden"], numeric, rtol=1e-6, atol=1e-10)


def test_a_learned_rule_that_does_sgd_is_sgd(key):
    task = regression_task(key)
    learned, plain = maml(inner_tx=scaled_sgd()), maml(inner_tx=optax.sgd(0.02))
    meta_params = learned.init(key, task)
    got, _ = learned.meta_grad(key, meta_params, task)
    expected, _ = plain.meta_grad(key, meta_params.params, task)
    chex.assert_trees_all_close(got.params, expected, rtol=1e-9)


def test_partition_gives_a_learned_rule_its_own_outer_update(key):
    learner = maml(inner_tx=scaled_sgd())
    estimator = jm.estimators.over_tasks(learner, regression_task, num_tasks=2)
    outer_tx = optax.partition(
        {"params": optax.sgd(0.1), "theta": optax.set_to_zero()},
        lambda params: jm.learners.MamlParams(
            *(
                jax.tree.map(lambda _, name=name: name, p)
                for name, p in zip(("params", "theta"), params, strict=True)
            )
        ),
    )
    init, step = jm.training.make_train_step(estimator, outer_tx)
    state = init(key)
    after, _ = jax.jit(step)(state)
    chex.assert_trees_all_equal(after.meta_params.theta, state.meta_params.theta)
    moved = optax.tree.sub(after.meta_params.params, state.meta_params.params)
    assert optax.tree.norm(moved) > 0


def test_metrics_are_of_the_adapted_query_outputs(key):
    sample_task = jm.tasks.glyphs(size=8, queries=3)
    task = sample_task(key)
    learner = jm.maml(
        jm.models.MLP([6, 5]),
        jm.losses.cross_entropy,
        inner_tx=optax.sgd(0.5),
        inner_steps=2,
    )
    meta_params = learner.init(key, task)
    task_params, _ = learner.adapt(key, meta_params, task.support)
    outputs = learner.predict(task_params, task.query.inputs)
    expected = np.mean(np.argmax(outputs, -1) == np.argmax(task.query.targets, -1))
    _, info = learner.meta_grad(key, meta_params, task)
    np.testing.assert_allclose(info.metrics["accuracy"], expected)
    result = learner.evaluate(key, meta_params, task)
    np.testing.assert_allclose(result.metrics["accuracy"][-1], expected)
    chex.assert_shape(result.metrics["accuracy"], (3,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "`inner_steps` must be an int >= 1, got 0"),
        ({"inner_steps": -3}, "`inner_steps` must be an int >= 1, got -3"),
        ({"inner_steps": 2.0}, "`inner_steps` must be an int >= 1, got 2.0"),
        ({"inner_steps": True}, "`inner_steps` must be an int >= 1, got True"),
        ({"inner_tx": 0.1}, r"`inner_tx` must be an optax transformation.*got 0.1"),
        ({"hvp": "forward"}, "`hvp` must be one of 'auto', 'forward-over"),
        ({"model": lambda x: x}, "`model` must have callable `init` and `apply`"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        learner = maml(**options)
        learner.init(jax.random.key(0), regression_task(jax.random.key(0)))


def test_bad_evaluation_steps_are_named(key):
    learner, task = maml(), regression_task(key)
    with pytest.raises(ValueError, match="`inner_steps` must be an int >= 1, got 0"):
        learner.evaluate(key, learner.init(key, task), task, inner_steps=0)


def test_a_loss_that_is_no_scalar_is_named(key):
    learner = jm.maml(
        tanh_model(), lambda out, y: out - y, inner_tx=optax.sgd(0.1), inner_steps=1
    )
    task = regression_task(key)
    with pytest.raises(
        ValueError, match=r"`loss` must return a float scalar.*\(4, 1\)"
    ):
        learner.meta_grad(key, learner.init(key, task), task)


def test_a_task_without_support_is_named(key):
    learner, task = maml(), regression_task(key)
    with pytest.raises(ValueError, match=r"`task` must be `jaxmeta.Task"):
        learner.meta_grad(key, learner.init(key, task), tuple(task))


def test_line_searches_are_refused(key):
    learner, task = maml(inner_tx=optax.lbfgs()), regression_task(key)
    with pytest.raises(ValueError, match=r"`inner_tx` needs more.*optax.lbfgs"):
        learner.meta_grad(key, learner.init(key, task), task)
