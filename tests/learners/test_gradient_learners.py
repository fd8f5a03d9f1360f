"""Learners with an inner loop against closed forms, MAML and finite differences."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta.learners import _maml_plus_plus
from tests._learners import part_model, regression_task, tanh_model
from tests._metric_learners import tanh_embedding, vector_task

SGD = optax.sgd(0.02)
INNER = {"inner_tx": SGD, "inner_steps": 3}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _error(got, expected):
    return optax.tree.norm(optax.tree.sub(got, expected)) / optax.tree.norm(expected)


def _finite_difference_error(learner, key, task=None, eps=1e-5):
    """Relative error of the meta-gradient against that of `evaluate`'s last loss."""
    task = regression_task(key) if task is None else task
    meta_params = learner.init(key, task)
    grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
    flat, unravel = jax.flatten_util.ravel_pytree(meta_params)
    steps = eps * jnp.eye(flat.size)

    @jax.jit
    @jax.vmap
    def query_loss(flat):
        return learner.evaluate(key, unravel(flat), task).loss[-1]

    ahead, behind = query_loss(flat[None] + steps), query_loss(flat[None] - steps)
    numeric = (ahead - behind) / (2 * eps)
    return _error(jax.flatten_util.ravel_pytree(grads)[0], numeric)


@pytest.mark.parametrize(
    "learner",
    [
        jm.meta_sgd(tanh_model(), jm.losses.squared_error, inner_steps=2),
        jm.anil(part_model(), jm.losses.squared_error, **INNER),
        jm.boil(part_model(), jm.losses.squared_error, **INNER),
        jm.maml_plus_plus(
            tanh_model(),
            jm.losses.squared_error,
            learning_rate=0.02,
            inner_steps=2,
            is_per_step=lambda path: path == "bias",
        ),
        jm.cavia(tanh_model(), jm.losses.squared_error, num_context=2, **INNER),
        jm.meta_curvature(
            tanh_model(), jm.losses.squared_error, learning_rate=0.02, inner_steps=2
        ),
    ],
    ids=["meta_sgd", "anil", "boil", "maml_plus_plus", "cavia", "meta_curvature"],
)
def test_meta_gradients_are_those_of_finite_differences(learner, key):
    assert _finite_difference_error(learner, key) < 1e-6


def test_the_gradient_goes_through_where_proto_maml_starts(key):
    learner = jm.proto_maml(tanh_embedding(), inner_tx=optax.sgd(0.1), inner_steps=2)
    assert _finite_difference_error(learner, key, vector_task(key)) < 1e-6


# Reptile.


def test_reptile_moves_towards_the_adapted_parameters(key):
    learner = jm.reptile(tanh_model(), jm.losses.squared_error, batch_size=2, **INNER)
    task = regression_task(key)
    params = learner.init(key, task)
    grads, info = learner.meta_grad(key, params, task)
    adapted, _ = learner.adapt(jax.random.split(key)[0], params, task.support)
    chex.assert_trees_all_close(grads, optax.tree.sub(params, adapted), rtol=1e-9)
    outputs = tanh_model().apply(adapted, task.query.inputs)
    loss = jm.losses.squared_error(outputs, task.query.targets)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-9)


def test_reptile_follows_its_expansion_on_a_quadratic(key):
    """E[theta - phi] = alpha (2 AvgGrad - alpha AvgGradInner), exact for two steps."""
    rate, num = 0.1, 3
    keys = jax.random.split(key, 3)
    hessians = jax.random.uniform(keys[0], (num,), minval=0.5, maxval=3.0)
    centres = jax.random.normal(keys[1], (num, 2))
    theta = jax.random.normal(keys[2], (2,))
    # The loss of example i is h_i / 2 |w - c_i|^2.
    model = jm.Model(
        lambda key, x: theta,
        lambda w, x: 0.5 * x[:, :1] * jnp.square(w[None] - x[:, 1:]),
    )
    learner = jm.reptile(
        model,
        lambda outputs, targets: jnp.mean(jnp.sum(outputs, -1)),
        inner_tx=optax.sgd(rate),
        inner_steps=2,
        batch_size=1,
    )
    inputs = jnp.concatenate([hessians[:, None], centres], -1)
    examples = jm.Examples(inputs, jnp.zeros((num, 1)))
    meta_grad = lambda key: learner.meta_grad(key, theta, jm.Task(examples, examples))[
        0
    ]
    draws = jax.jit(jax.vmap(meta_grad))(jax.random.split(key, 40_000))

    gradient = lambda i: hessians[i] * (theta - centres[i])
    average = np.mean([gradient(i) for i in range(num)], 0)
    inner = np.mean(
        [hessians[j] * gradient(i) for i, j in itertools.product(range(num), repeat=2)],
        0,
    )
    expected = rate * (2 * average - rate * inner)
    standard_error = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - expected) < 4 * standard_error)
    # Else the second-order term could hide in the noise.
    assert np.all(20 * standard_error < np.abs(rate**2 * inner))


def test_a_small_support_set_is_taken_whole(key):
    task = regression_task(key)
    grads = [
        jm.reptile(
            tanh_model(), jm.losses.squared_error, batch_size=size, **INNER
        ).meta_grad(key, tanh_model().init(key, task.support.inputs), task)[0]
        for size in (4, 100, None)
    ]
    chex.assert_trees_all_close(grads[0], grads[1], rtol=1e-9)
    chex.assert_trees_all_close(grads[0], grads[2], rtol=1e-9)


def test_kept_adam_state_goes_on_from_task_to_task(key):
    """Two meta-steps on one task: those of Adam that is never reset."""
    adam = optax.adam(0.01, b1=0.0)
    learner = jm.reptile(
        tanh_model(),
        jm.losses.squared_error,
        inner_tx=adam,
        inner_steps=3,
        keep_inner_state=True,
    )
    task = regression_task(key)
    labels = jm.learners.ReptileParams("params", "state")
    outer_tx = optax.partition(
        {"params": optax.sgd(0.5), "state": optax.sgd(1.0)}, labels
    )
    estimator = jm.estimators.over_tasks(learner, lambda key: task, num_tasks=2)
    init, step = jm.training.make_train_step(estimator, outer_tx)
    state = init(key)

    params = state.meta_params.params
    inner_state = adam.init(params)

    def loss(params):
        outputs = tanh_model().apply(params, task.support.inputs)
        return jm.losses.squared_error(outputs, task.support.targets)

    for _ in range(2):
        state, _ = step(state)
        adapted = params
        for _ in range(3):
            updates, inner_state = adam.update(jax.grad(loss)(adapted), inner_state)
            adapted = optax.apply_updates(adapted, updates)
        params = jax.tree.map(lambda p, a: (p + a) / 2, params, adapted)
    chex.assert_trees_all_close(state.meta_params.params, params, rtol=1e-9)
    assert float(state.meta_params.inner_state[0].count) == 6


def test_a_state_that_has_no_mean_is_named(key):
    noisy = optax.noisy_sgd(0.1, key=jax.random.key(0))
    learner = jm.reptile(
        tanh_model(),
        jm.losses.squared_error,
        inner_tx=noisy,
        inner_steps=1,
        keep_inner_state=True,
    )
    with pytest.raises(
        ValueError, match=r"`keep_inner_state` averages the inner.*key<"
    ):
        learner.init(key, regression_task(key))


# Meta-SGD, ANIL, BOIL, MAML++, Meta-Curvature: MAML with something more.


def _maml_grads(key, task, **options):
    learner = jm.maml(part_model(), jm.losses.squared_error, **INNER | options)
    params = part_model().init(key, task.support.inputs)
    return params, learner.meta_grad(key, params, task)[0]


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd_with_one_rate_is_maml(first_order, key):
    task = regression_task(key)
    params, expected = _maml_grads(key, task, first_order=first_order)
    learner = jm.meta_sgd(
        part_model(),
        jm.losses.squared_error,
        learning_rate=0.02,
        inner_steps=3,
        first_order=first_order,
    )
    meta_params = learner.init(key, task)._replace(params=params)
    grads, _ = learner.meta_grad(key, meta_params, task)
    chex.assert_trees_all_close(grads.params, expected, rtol=1e-9)


def test_meta_sgd_draws_rates_of_a_range(key):
    learner = jm.meta_sgd(
        jm.models.MLP([40, 40, 1]), jm.losses.squared_error, learning_rate=(0.005, 0.1)
    )
    rates, _ = jax.flatten_util.ravel_pytree(
        learner.init(key, regression_task(key)).theta
    )
    assert 0.005 <= rates.min() < 0.006 and 0.099 < rates.max() <= 0.1
    assert len(set(rates.tolist())) == rates.size
    np.testing.assert_allclose(rates.mean(), 0.0525, atol=4 * 0.0275 / rates.size**0.5)


def test_anil_with_an_empty_body_is_maml(key):
    task = regression_task(key)
    params, expected = _maml_grads(key, task)
    learner = jm.anil(
        part_model(), jm.losses.squared_error, is_adapted=lambda path: True, **INNER
    )
    grads, _ = learner.meta_grad(key, params, task)
    chex.assert_trees_all_close(grads, expected, rtol=1e-9)


@pytest.mark.parametrize("factory", [jm.anil, jm.boil])
def test_only_the_adapted_part_moves(factory, key):
    task = regression_task(key)
    learner = factory(part_model(), jm.losses.squared_error, **INNER)
    params = learner.init(key, task)
    adapted, _ = learner.adapt(key, params, task.support)
    kept, moved = ("body", "head") if factory is jm.anil else ("head", "body")
    chex.assert_trees_all_equal(adapted[kept], params[kept])
    assert _error(adapted[moved], params[moved]) > 1e-3


def test_anil_by_hand(key):
    """Ridge-like: with features fixed, the head's steps are those of least squares."""
    task = regression_task(key)
    learner = jm.anil(part_model(), jm.losses.squared_error, **INNER)
    params = learner.init(key, task)
    features = lambda x: np.tanh(x @ params["body"]["hidden"])
    x, y = features(task.support.inputs), np.asarray(task.support.targets)
    head = np.asarray(params["head"])
    for _ in range(3):
        head = head - 0.02 * 2 * x.T @ (x @ head - y) / len(x)
    adapted, _ = learner.adapt(key, params, task.support)
    np.testing.assert_allclose(adapted["head"], head, rtol=1e-9)


@pytest.mark.parametrize(("factory", "named"), [(jm.anil, "none"), (jm.boil, "all")])
def test_a_model_without_a_head_is_named(factory, named, key):
    learner = factory(jm.models.MLP([4, 1]), jm.losses.squared_error, **INNER)
    message = rf"`is_adapted` selects {named} .*params/Dense_1/kernel"
    with pytest.raises(ValueError, match=message):
        learner.init(key, regression_task(key))


def test_maml_plus_plus_with_all_switches_off_is_maml(key):
    task = regression_task(key)
    params, expected = _maml_grads(key, task)
    learner = jm.maml_plus_plus(
        part_model(),
        jm.losses.squared_error,
        learning_rate=0.02,
        inner_steps=3,
        is_per_step=lambda path: False,
    )
    meta_params = learner.init(key, task)._replace(params=params)
    grads, info = learner.meta_grad(key, meta_params, task, step=jnp.array(0))
    chex.assert_trees_all_close(grads.params, expected, rtol=1e-9)
    found = learner.evaluate(jax.random.split(key)[0], meta_params, task)
    np.testing.assert_allclose(info.loss, found.loss[-1], rtol=1e-9)


def _multi_step(**options):
    options = {"learning_rate": 0.02, "inner_steps": 3} | options
    return jm.maml_plus_plus(
        tanh_model(),
        jm.losses.squared_error,
        is_per_step=lambda path: path == "bias",
        **options,
    )


@pytest.mark.parametrize("step", [0, 4, 9, 10, None])
def test_the_multi_step_loss_is_the_weighted_sum(step, key):
    learner, plain = _multi_step(multi_step_until=10), _multi_step()
    task = regression_task(key)
    meta_params = learner.init(key, task)
    # What stands in the released code, by its own words.
    weights = np.ones(3) / 3
    if step is None or step >= 10:
        weights = np.array([0.0, 0.0, 1.0])
    else:
        decay = 1.0 / 3 / 10
        for i in range(2):
            weights[i] = max(weights[i] - step * decay, 0.03 / 3)
        weights[2] = min(weights[2] + step * 2 * decay, 1 - 2 * 0.03 / 3)

    def weighted(meta_params):
        losses = plain.evaluate(key, meta_params, task).loss[1:]
        return jnp.vdot(weights, losses)

    step = None if step is None else jnp.array(step, jnp.int32)
    grads, info = jax.jit(learner.meta_grad)(key, meta_params, task, step=step)
    assert _error(grads, jax.grad(weighted)(meta_params)) < 1e-9
    last = plain.evaluate(key, meta_params, task).loss[-1]
    np.testing.assert_allclose(info.loss, last, rtol=1e-9)


def test_derivative_order_anneals(key):
    learner, exact = _multi_step(first_order_until=5), _multi_step()
    task = regression_task(key)
    meta_params = learner.init(key, task)
    grads = {
        step: learner.meta_grad(key, meta_params, task, step=jnp.array(step))[0]
        for step in (4, 5)
    }
    expected, _ = exact.meta_grad(key, meta_params, task)
    assert _error(grads[5], expected) < 1e-12
    # First order: the gradient passes the identity of each step.
    task_params, _ = exact.adapt(jax.random.split(key)[0], meta_params, task.support)

    def query_loss(params):
        outputs = tanh_model().apply(params, task.query.inputs)
        return jm.losses.squared_error(outputs, task.query.targets)

    first = jax.grad(query_loss)(task_params.params)
    assert _error(grads[4].params["hidden"], first["hidden"]) < 1e-9
    assert _error(grads[4].params["hidden"], expected.params["hidden"]) > 1e-2


def test_scales_and_shifts_are_of_the_step(key):
    """Each step sees its own normalisation parameters, which do not adapt."""
    model = jm.models.MLP([6, 6, 1], norm="batch")
    learner = jm.maml_plus_plus(
        model, jm.losses.squared_error, learning_rate=0.02, inner_steps=2
    )
    task = regression_task(key, num_support=5)
    meta_params = learner.init(key, task)
    norms = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(meta_params.params)
        if "Norm" in jax.tree_util.keystr(path)
    }
    assert len(norms) == 4 and set(norms.values()) == {(3, 6)}
    is_norm = lambda path: "Norm" in jax.tree_util.keystr(path)
    numbers = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.1 * jnp.arange(3.0)[:, None] if is_norm(path) else x,
        meta_params.params,
    )
    at = lambda k, tree: jax.tree_util.tree_map_with_path(
        lambda path, x: x[k] if is_norm(path) else x, tree
    )
    params = at(0, numbers)
    for k in range(2):
        params = jax.tree_util.tree_map_with_path(
            lambda path, p, n, k=k: n[k] if is_norm(path) else p, params, numbers
        )
        loss = lambda params: jm.losses.squared_error(
            model.apply(params, task.support.inputs), task.support.targets
        )
        grads = jax.grad(loss)(params)
        params = jax.tree_util.tree_map_with_path(
            lambda path, p, g: p if is_norm(path) else p - 0.02 * g, params, grads
        )
    params = jax.tree_util.tree_map_with_path(
        lambda path, p, n: n[2] if is_norm(path) else p, params, numbers
    )
    adapted, _ = learner.adapt(key, meta_params._replace(params=numbers), task.support)
    chex.assert_trees_all_close(adapted.params, params, rtol=1e-9)


def test_the_weights_of_the_losses_sum_to_one():
    for step in range(12):
        weights = _maml_plus_plus._loss_weights(jnp.array(step), 5, 10)
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)


def test_curvature_of_identities_is_maml(key):
    task = regression_task(key)
    params, expected = _maml_grads(key, task)
    learner = jm.meta_curvature(
        part_model(), jm.losses.squared_error, learning_rate=0.02, inner_steps=3
    )
    meta_params = learner.init(key, task)._replace(params=params)
    grads, _ = learner.meta_grad(key, meta_params, task)
    chex.assert_trees_all_close(grads.params, expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 2, 3, 4)])
def test_curvature_is_the_product_over_every_axis(shape, key):
    lopt = jm.optimizers.curvature_sgd(0.5)
    grads = jax.random.normal(key, shape)
    theta = lopt.init(key, grads)
    keys = jax.random.split(key, len(theta))
    theta = tuple(
        jax.random.normal(k, m.shape) for k, m in zip(keys, theta, strict=True)
    )
    tx = lopt.transform(theta)
    updates, _ = tx.update(grads, tx.init(grads))
    g, m = np.asarray(grads), [np.asarray(x) for x in theta]
    expected = {
        0: lambda: m[0][0, 0] * g,
        1: lambda: m[0] @ g,
        2: lambda: m[0] @ g @ m[1].T,
        4: lambda: np.einsum("fg,ij,op,gjp->fio", *m, g.reshape(4, 3, 4)).reshape(
            shape
        ),
    }[len(shape)]()
    np.testing.assert_allclose(updates, -0.5 * expected, rtol=1e-9)


def test_long_axes_of_the_curvature_are_diagonal(key):
    lopt = jm.optimizers.curvature_sgd(0.5, max_size=2)
    grads = jnp.ones((3, 2))
    theta = lopt.init(key, grads)
    assert [m.shape for m in theta] == [(3,), (2, 2)]
    tx = lopt.transform((jnp.arange(3.0), theta[1]))
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(
        updates, -0.5 * np.arange(3.0)[:, None] * np.ones((3, 2))
    )
    with pytest.raises(ValueError, match=r"`theta` has matrices \[\(3,\), \(2, 2\)\]"):
        tx.update(jnp.ones((2, 2)), optax.EmptyState())


# CAVIA.


def test_cavia_adapts_the_context_alone(key):
    learner = jm.cavia(tanh_model(), jm.losses.squared_error, num_context=3, **INNER)
    task = regression_task(key)
    params = learner.init(key, task)
    assert params["hidden"].shape == (1 + 3, 5)
    task_params, _ = learner.adapt(key, params, task.support)
    chex.assert_trees_all_equal(task_params.params, params)

    def loss(phi):
        phi = jnp.broadcast_to(phi[None], (4, 3))
        inputs = jnp.concatenate([task.support.inputs, phi], -1)
        outputs = tanh_model().apply(params, inputs)
        return jm.losses.squared_error(outputs, task.support.targets)

    phi = jnp.zeros(3)
    for _ in range(3):
        phi = phi - 0.02 * jax.grad(loss)(phi)
    np.testing.assert_allclose(task_params.context, phi, rtol=1e-9)


def test_cavia_gives_the_context_to_a_film_network(key):
    with jax.enable_x64(False):
        model = jm.models.FilmConv4(filters=2, head=3, strided=True)
        learner = jm.cavia(
            model,
            jm.losses.cross_entropy,
            num_context=4,
            context="model",
            inner_tx=optax.sgd(0.5),
            inner_steps=2,
        )
        task = jm.tasks.glyphs(ways=3, shots=2, queries=2, size=8)(key)
        params = learner.init(key, task)
        assert params["params"]["film"]["kernel"].shape == (4, 4)
        grads, info = jax.jit(learner.meta_grad)(key, params, task)
        assert optax.tree.norm(grads["params"]["film"]) > 0
        task_params, _ = learner.adapt(key, params, task.support)
        assert task_params.context.shape == (4,)
        outputs = learner.predict(task_params, task.query.inputs)
        plain = model.apply(params, (task.query.inputs, jnp.zeros(4)))
        assert outputs.shape == (6, 3) and not np.allclose(outputs, plain)
        chex.assert_tree_all_finite((grads, info))


# Implicit MAML.


def _prox_maml(inner_steps, regularization, rate, params, task):
    """The query loss after gradient descent on the proximal objective, unrolled."""

    def loss(params, examples):
        outputs = tanh_model(3).apply(params, examples.inputs)
        return jm.losses.squared_error(outputs, examples.targets)

    def query_loss(start):
        def inner_step(adapted, _):
            grads = jax.grad(loss)(adapted, task.support)
            step = lambda a, g, s: a - rate * (g + regularization * (a - s))
            return jax.tree.map(step, adapted, grads, start), None

        adapted, _ = jax.lax.scan(inner_step, start, length=inner_steps)
        return loss(adapted, task.query)

    return jax.jit(jax.grad(query_loss))(params)


def test_implicit_maml_at_convergence_is_exact_maml(key):
    task = regression_task(key)
    learner = jm.imaml(
        tanh_model(3),
        jm.losses.squared_error,
        inner_tx=optax.sgd(0.02),
        inner_steps=3000,
        regularization=2.0,
        cg_steps=50,
        cg_tolerance=1e-10,
    )
    params = learner.init(key, task)
    grads, info = jax.jit(learner.meta_grad)(key, params, task)
    expected = _prox_maml(3000, 2.0, 0.02, params, task)
    assert _error(grads, expected) < 1e-6
    assert info.adapt.converged and info.adapt.residual < 1e-9
    assert info.adapt.gradient_norm < 1e-9
    # The inner optimizer does not matter where it converges.
    other = jm.imaml(
        tanh_model(3),
        jm.losses.squared_error,
        inner_tx=optax.sgd(0.01, momentum=0.9),
        inner_steps=2000,
        cg_steps=50,
        cg_tolerance=1e-10,
    )
    again, _ = jax.jit(other.meta_grad)(key, params, task)
    assert _error(again, grads) < 1e-6


def test_damping_of_implicit_maml_divides_the_hessian_alone(key):
    learner = jm.imaml(
        jm.Model(lambda key, x: jnp.zeros(()), lambda w, x: w * x),
        lambda out, y: jnp.mean(0.5 * (out - y) ** 2),  # Its Hessian is 1.
        inner_tx=optax.sgd(0.5),
        inner_steps=60,
        regularization=1.0,
        damping=2.0,
        cg_tolerance=1e-10,
    )
    ones = jm.Examples(inputs=jnp.ones(2), targets=jnp.ones(2))
    task = jm.Task(ones, ones)
    grads, _ = learner.meta_grad(key, learner.init(key, task), task)
    # phi = 1/2 as without; (1 + 1 / 3)^-1 of the query's gradient there.
    assert grads == pytest.approx(-0.5 * 3 / 4, rel=1e-6)


def test_implicit_maml_does_not_follow_conjugate_gradients_astray(key):
    """I + H = diag(-1, 2): their first step is to (2, 2), further off than zero."""

    def loss(outputs, targets):
        curvatures, slopes = targets[:, :2], targets[:, 2:]
        return jnp.mean(curvatures * outputs**2 + 2 * slopes * outputs)

    learner = jm.imaml(
        jm.Model(lambda key, x: jnp.zeros(2), lambda w, x: w[None] * x),
        loss,
        inner_tx=optax.sgd(0.1),
        inner_steps=1,
        regularization=1.0,
        cg_steps=1,
    )
    examples = lambda y: jm.Examples(jnp.ones((1, 2)), jnp.array([y]))
    task = jm.Task(examples([-2.0, 1.0, 0.0, 0.0]), examples([0.0, 0.0, 1.0, 1.0]))
    grads, info = learner.meta_grad(key, learner.init(key, task), task)
    np.testing.assert_allclose(info.adapt.residual, 3, rtol=1e-6)
    np.testing.assert_allclose(grads, [1, 1], rtol=1e-6)  # The query's own.


def test_implicit_maml_tells_when_it_has_not_converged(key):
    task = regression_task(key)
    learner = jm.imaml(
        tanh_model(3),
        jm.losses.squared_error,
        inner_tx=optax.sgd(0.02),
        inner_steps=1,
        regularization=0.1,
        cg_steps=1,
        cg_tolerance=1e-6,
    )
    _, info = learner.meta_grad(key, learner.init(key, task), task)
    assert not info.adapt.converged
    assert info.adapt.residual > 1e-3 and info.adapt.gradient_norm > 1e-3


def test_implicit_maml_needs_no_memory_for_its_inner_steps(key):
    def temporaries(factory, inner_steps):
        learner = factory(
            jm.models.MLP([64, 64, 1]),
            jm.losses.squared_error,
            inner_tx=optax.sgd(0.01),
            inner_steps=inner_steps,
        )
        task = regression_task(key, 20, 20)
        params = jax.eval_shape(learner.init, key, task)
        compiled = jax.jit(learner.meta_grad).lower(key, params, task).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = (temporaries(jm.imaml, steps) for steps in (1, 64))
    assert many < few + 4096  # the losses of each step
    assert temporaries(jm.maml, 64) > 5 * many


# Meta-LSTM: the cell, by a loop over coordinates in NumPy.


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _log_gradient(x, p=10.0):
    large = abs(x) >= np.exp(-p)
    return (np.log(abs(x)) / p, np.sign(x)) if large else (-1.0, np.exp(p) * x)


def test_the_meta_lstm_cell_by_hand(key):
    hidden_size, steps = 3, 4
    learner = jm.meta_lstm(
        tanh_model(2),
        jm.losses.squared_error,
        inner_steps=steps,
        hidden_size=hidden_size,
    )
    task = regression_task(key)
    meta_params = learner.init(key, task)
    # Larger weights than it starts from, so that every gate is at work.
    theta = jax.tree.map(lambda x: 20 * x, meta_params.theta)
    theta = theta._replace(
        forget_gate=theta.forget_gate._replace(bias=meta_params.theta.forget_gate.bias),
        input_gate=theta.input_gate._replace(bias=meta_params.theta.input_gate.bias),
    )
    task_params, info = learner.adapt(
        key, meta_params._replace(theta=theta), task.support
    )

    value_and_grad = jax.value_and_grad(
        lambda params: jm.losses.squared_error(
            tanh_model(2).apply(params, task.support.inputs), task.support.targets
        )
    )
    flat, unravel = jax.flatten_util.ravel_pytree(meta_params.params)
    params = np.array(flat)
    lstm, forget, input_ = (jax.tree.map(np.asarray, layer) for layer in theta)
    h, c = np.zeros((2, len(params), hidden_size))
    gates = np.zeros((2, len(params)))  # before the sigmoid: forget, input
    losses = []
    for _ in range(steps):
        loss, grads = value_and_grad(unravel(jnp.asarray(params)))
        grads = np.asarray(jax.flatten_util.ravel_pytree(grads)[0])
        losses.append(float(loss))
        for n in range(len(params)):
            seen = [*_log_gradient(grads[n]), *_log_gradient(float(loss)), *h[n]]
            i, f, o, g = np.split(np.array(seen) @ lstm.kernel + lstm.bias, 4)
            c[n] = _sigmoid(f) * c[n] + _sigmoid(i) * np.tanh(g)
            h[n] = _sigmoid(o) * np.tanh(c[n])
            for row, layer in ((0, forget), (1, input_)):
                joined = [*h[n], params[n], gates[row, n]]
                gates[row, n] = (np.array(joined) @ layer.kernel + layer.bias)[0]
            params[n] = (
                _sigmoid(gates[0, n]) * params[n] - _sigmoid(gates[1, n]) * grads[n]
            )
    np.testing.assert_allclose(info.losses, losses, rtol=1e-9)
    got, _ = jax.flatten_util.ravel_pytree(task_params.params)
    np.testing.assert_allclose(got, params, rtol=1e-9)


def test_meta_lstm_predicts_by_the_supports_statistics(key):
    """Its batch normalisation: the same training, predictions one at a time."""
    task = jm.tasks.glyphs(ways=3, shots=2, queries=2, size=8)(key)

    def make(statistics):
        model = jm.models.MLP([8, 3], norm="batch", statistics=statistics)
        return jm.meta_lstm(
            model, jm.losses.cross_entropy, inner_steps=2, hidden_size=2
        )

    batch, support = make("batch"), make("support")
    meta_params = batch.init(key, task)
    chex.assert_trees_all_close(
        batch.meta_grad(key, meta_params, task)[0],
        support.meta_grad(key, meta_params, task)[0],
        rtol=1e-9,
    )
    task_params, _ = support.adapt(key, meta_params, task.support)
    together = support.predict(task_params, task.query.inputs)
    alone = support.predict(task_params, task.query.inputs[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-9)


# Proto-MAML.


def test_proto_maml_starts_as_a_prototypical_network(key):
    task = vector_task(key)
    learner = jm.proto_maml(tanh_embedding(), inner_tx=optax.sgd(0.1), inner_steps=1)
    prototypical = jm.prototypical(tanh_embedding())
    params = learner.init(key, task)
    start = learner.evaluate(key, params, task)
    expected = prototypical.evaluate(key, params, task)
    np.testing.assert_allclose(start.loss[0], expected.loss[0], rtol=1e-9)


def test_proto_maml_takes_other_ways_at_test(key):
    learner = jm.proto_maml(tanh_embedding(), inner_tx=optax.sgd(0.1), inner_steps=1)
    params = learner.init(key, vector_task(key, ways=3))
    result = learner.evaluate(key, params, vector_task(key, ways=5, shots=1))
    assert result.loss.shape == (2,)


# Bad input.

MODEL, LOSS = tanh_model(), jm.losses.squared_error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jm.reptile(MODEL, LOSS, inner_tx=0.1, inner_steps=1), "`inner_tx`"),
        (
            lambda: jm.reptile(MODEL, LOSS, inner_tx=SGD, inner_steps=1, batch_size=0),
            "`batch_size` must be an int >= 1, got 0",
        ),
        (
            lambda: jm.anil(MODEL, LOSS, inner_tx=jm.optimizers.lstm(), inner_steps=1),
            "`inner_tx` must be an optax.*For a learned rule use `jaxmeta.maml`",
        ),
        (
            lambda: jm.meta_sgd(MODEL, LOSS, learning_rate=-1.0),
            "`learning_rate` must be positive and finite, got -1.0",
        ),
        (
            lambda: jm.maml_plus_plus(MODEL, LOSS, multi_step_until=-1),
            "`multi_step_until` must be an int >= 0, got -1",
        ),
        (
            lambda: jm.cavia(MODEL, LOSS, num_context=0, **INNER),
            "`num_context` must be an int >= 1, got 0",
        ),
        (
            lambda: jm.cavia(MODEL, LOSS, num_context=1, context="film", **INNER),
            "`context` must be one of 'input', 'model', got 'film'",
        ),
        (
            lambda: jm.imaml(MODEL, LOSS, regularization=0.0, **INNER),
            "`regularization` must be positive and finite, got 0.0",
        ),
        (
            lambda: jm.imaml(MODEL, LOSS, damping=-1.0, **INNER),
            "`damping` must be at least 0 and finite, got -1.0",
        ),
        (
            lambda: jm.imaml(MODEL, LOSS, cg_steps=0, **INNER),
            "`cg_steps` must be an int >= 1, got 0",
        ),
        (
            lambda: jm.meta_lstm(MODEL, LOSS, inner_steps=0),
            "`inner_steps` must be an int >= 1, got 0",
        ),
        (
            lambda: jm.proto_maml(MODEL, inner_tx=SGD, inner_steps=1.5),
            "`inner_steps` must be an int >= 1, got 1.5",
        ),
        (
            lambda: jm.optimizers.curvature_sgd(max_size=0),
            "`max_size` must be an int >= 1, got 0",
        ),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_maml_plus_plus_of_per_step_parameters_alone_is_refused(key):
    learner = jm.maml_plus_plus(MODEL, LOSS, is_per_step=lambda path: True)
    with pytest.raises(ValueError, match="selects none of the parameters"):
        learner.init(key, regression_task(key))
