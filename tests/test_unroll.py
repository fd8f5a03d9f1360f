"""The traps of differentiating through an inner loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._learners import maml, regression_task, tanh_model

MODES = ("forward-over-reverse", "reverse-over-reverse")


def _flat_meta_grad(learner, key, task):
    """The meta-gradient as a function of a flat vector, and where it starts."""
    flat, unravel = jax.flatten_util.ravel_pytree(learner.init(key, task))

    def meta_grad(x):
        grads, _ = learner.meta_grad(key, unravel(x), task)
        return jax.flatten_util.ravel_pytree(grads)[0]

    return meta_grad, flat


@pytest.mark.parametrize("hvp", MODES)
def test_the_gradient_of_a_meta_gradient_is_right(hvp, key):
    with jax.enable_x64(True):
        learner = maml(tanh_model(3), hvp=hvp, inner_steps=2)
        meta_grad, flat = _flat_meta_grad(learner, key, regression_task(key))
        direction = jax.random.normal(jax.random.key(1), flat.shape)
        along = lambda x: jnp.vdot(meta_grad(x), direction)
        got = jax.jit(jax.grad(along))(flat)
        eps = 1e-5
        numeric = (
            meta_grad(flat + eps * direction) - meta_grad(flat - eps * direction)
        ) / (2 * eps)
        # The Hessian of the query loss is symmetric: its product either way.
        np.testing.assert_allclose(got, numeric, rtol=1e-5, atol=1e-7)


def test_forward_mode_through_adaptation_needs_reverse_over_reverse(key):
    task = regression_task(key)

    def adapted(hvp):
        learner = maml(hvp=hvp)
        params = learner.init(key, task)
        adapt = lambda p: learner.adapt(key, p, task.support)[0]
        return jax.jvp(adapt, (params,), (params,))

    adapted("reverse-over-reverse")
    with pytest.raises(TypeError, match='with hvp="reverse-over-reverse"'):
        adapted("forward-over-reverse")


@pytest.mark.parametrize("hvp", MODES)
def test_values_that_losses_close_over_get_their_gradient(hvp, key):
    """A learned loss weight, used in the inner loss, by finite differences."""
    with jax.enable_x64(True):
        task = regression_task(key)
        params = tanh_model().init(key, task.support.inputs)

        def query_loss(weight):
            learner = jm.maml(
                tanh_model(),
                lambda out, y: weight * jnp.mean(jnp.square(out - y)),
                inner_tx=optax.sgd(0.02),
                inner_steps=3,
                hvp=hvp,
            )
            task_params, _ = learner.adapt(key, params, task.support)
            outputs = learner.predict(task_params, task.query.inputs)
            return jm.losses.squared_error(outputs, task.query.targets)

        got, eps = jax.grad(query_loss)(0.7), 1e-6
        numeric = (query_loss(0.7 + eps) - query_loss(0.7 - eps)) / (2 * eps)
        np.testing.assert_allclose(got, numeric, rtol=1e-7)


@pytest.mark.parametrize("hvp", MODES)
def test_the_support_set_gets_its_gradient(hvp, key):
    """Data can be learned too (distillation); integer labels beside get none."""
    with jax.enable_x64(True):
        x = jax.random.normal(key, (4, 3))
        labels = jnp.array([0, 1, 1, 0])
        model = jm.Model(lambda key, x: jnp.ones((3, 2)), lambda w, x: jnp.tanh(x) @ w)
        learner = jm.maml(
            model,
            jm.losses.cross_entropy,
            inner_tx=optax.sgd(0.5),
            inner_steps=2,
            hvp=hvp,
        )

        def query_loss(x):
            support = jm.Examples(x, labels)
            w = jnp.arange(6.0).reshape(3, 2)
            task_params, _ = learner.adapt(key, w, support)
            return jnp.sum(jnp.sin(task_params))

        got, eps = jax.grad(query_loss)(x), 1e-6
        bump = jnp.zeros_like(x).at[1, 2].set(eps)
        numeric = (query_loss(x + bump) - query_loss(x - bump)) / (2 * eps)
        np.testing.assert_allclose(got[1, 2], numeric, rtol=1e-6)


def test_the_loss_value_carries_its_gradient_to_the_inner_rule(key):
    """A rule that scales its step by the loss (`value`), by finite differences."""

    def update(updates, state, params=None, *, value, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda g: -0.01 * value * g, updates), state

    inner_tx = optax.GradientTransformationExtraArgs(lambda _: (), update)
    with jax.enable_x64(True):
        task = regression_task(key)
        results = [maml(inner_tx=inner_tx, hvp=hvp, inner_steps=3) for hvp in MODES]
        meta_grad, flat = _flat_meta_grad(results[0], key, task)
        reverse, _ = _flat_meta_grad(results[1], key, task)
        np.testing.assert_allclose(meta_grad(flat), reverse(flat), rtol=1e-9)


def _compiled_megabytes(learner, key, task):
    meta_params = learner.init(key, task)
    compiled = jax.jit(learner.meta_grad).lower(key, meta_params, task).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def test_memory_of_an_inner_step_is_a_few_copies_of_the_parameters(key):
    """Activations of the inner steps are not kept."""
    sample_task = jm.tasks.sinusoid(shots=2000, queries=2000)
    task = sample_task(key)
    model = jm.models.MLP([64, 64, 1])
    short, long = (
        _compiled_megabytes(
            jm.maml(
                model,
                jm.losses.squared_error,
                inner_tx=optax.sgd(0.01),
                inner_steps=steps,
            ),
            key,
            task,
        )
        for steps in (2, 34)
    )
    params = sum(x.size for x in jax.tree.leaves(model.init(key, task.support.inputs)))
    copies = (long - short) / 32 / (4e-6 * params)
    assert copies < 4, copies  # Activations of one step alone are 60 copies.


class TestAdam:
    def _one_step(self, tx, gradient_of):
        def after(w):
            updates, _ = tx.update(gradient_of(w), tx.init(w), w)
            return optax.apply_updates(w, updates)

        return after

    def test_updates_are_those_of_optax(self, key):
        ours, theirs = (
            jm.optimizers.adam(0.1, b1=0.8, b2=0.99),
            optax.adam(0.1, 0.8, 0.99),
        )
        params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
        states = [ours.init(params), theirs.init(params)]
        for k in jax.random.split(key, 4):
            grads = optax.tree.random_like(k, params)
            (mine, states[0]), (expected, states[1]) = (
                tx.update(grads, s)
                for tx, s in zip((ours, theirs), states, strict=True)
            )
            jax.tree.map(np.testing.assert_array_equal, mine, expected)

    @pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3])
    def test_derivative_is_bounded_where_the_gradient_vanishes(self, scale):
        after = self._one_step(jm.optimizers.adam(0.1), lambda w: 2 * w)
        derivative = jax.grad(after)(jnp.float32(scale))
        assert abs(derivative) < 200  # learning rate 0.1, curvature 2, floor 1e-5.

    def test_optax_adam_is_not_bounded_there(self):
        """What the test above is for: measured, not supposed."""
        plain = self._one_step(optax.adam(0.1), lambda w: 2 * w)
        assert jnp.isnan(jax.grad(plain)(0.0))
        rooted = self._one_step(optax.adam(0.1, eps_root=1e-8), lambda w: 2 * w)
        assert abs(jax.grad(rooted)(0.0)) > 1000

    def test_derivative_is_exact_away_from_zero(self):
        with jax.enable_x64(True):
            after = self._one_step(
                jm.optimizers.adam(0.1, eps=0.3), lambda w: jnp.sin(3 * w)
            )
            w, eps = 0.4, 1e-6
            numeric = (after(w + eps) - after(w - eps)) / (2 * eps)
            np.testing.assert_allclose(jax.grad(after)(w), numeric, rtol=1e-7)

    def test_meta_gradient_with_dead_units_is_finite(self, key):
        """ReLU units that never fire have an inner gradient of exactly zero."""
        task = regression_task(key)
        learner = jm.maml(
            jm.models.MLP([20, 1]),
            jm.losses.squared_error,
            inner_tx=jm.optimizers.adam(0.01),
            inner_steps=3,
        )
        params = learner.init(key, task)
        hidden = params["params"]["Dense_0"]
        hidden["bias"] = hidden["bias"].at[:5].set(-100.0)
        grads, _ = learner.meta_grad(key, params, task)
        assert optax.tree.norm(grads) < 1e3

    def test_bad_floor_is_named(self):
        with pytest.raises(ValueError, match="`grad_floor` must be positive, got 0"):
            jm.optimizers.adam(0.1, grad_floor=0)
