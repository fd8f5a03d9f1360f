"""Imitation of a teacher, and steps that alternate."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

PROBLEM = jm.problems.quadratics(dim=3)


def _imitation(lopt, **options):
    options = {"unroll": 2, "horizon": 4, "num_problems": 2} | options
    return jm.estimators.imitation(lopt, PROBLEM, optax.adam(0.1), **options)


def test_gradient_agrees_with_a_plain_loop(key):
    """Two truncations along Adam's path, the state carried, detached between them."""
    with jax.enable_x64(True):
        lopt = jm.optimizers.lstm(4)
        estimator = _imitation(lopt)
        theta, carry = estimator.init(key)
        teacher = optax.adam(0.1)
        grad_fn = jax.vmap(jax.grad(PROBLEM.loss), (0, 0, None))
        params, instance = carry.runs.params, carry.runs.instance
        teacher_state = jax.vmap(teacher.init)(params)
        opt_state = carry.runs.opt_state
        for _ in range(2):

            def loss(theta, params=params, states=(opt_state, teacher_state)):
                tx = lopt.transform(theta)
                opt_state, teacher_state = states
                total = 0.0
                for _ in range(2):
                    grads = grad_fn(params, instance, None)
                    updates, opt_state = jax.vmap(tx.update)(grads, opt_state)
                    expected, teacher_state = jax.vmap(teacher.update)(
                        grads, teacher_state
                    )
                    total += 0.5 * jnp.mean((updates - expected) ** 2)
                    params = params + expected
                return total, (params, opt_state, teacher_state)

            expected, after = jax.grad(loss, has_aux=True)(theta)
            got, carry, _ = estimator.estimate(key, theta, carry)
            chex.assert_trees_all_close(got, expected, rtol=1e-9)
            params, opt_state, teacher_state = after
            chex.assert_trees_all_close(carry.runs.params, params, rtol=1e-9)


def test_a_pupil_learns_the_teachers_rate(key):
    """One rate can imitate gradient descent exactly."""
    lopt = jm.optimizers.learned_sgd(0.01)
    estimator = jm.estimators.imitation(
        lopt, PROBLEM, optax.sgd(0.05), unroll=5, horizon=10, num_problems=4
    )
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s), s, length=300))
    state, _ = run(init(key))
    np.testing.assert_allclose(state.meta_params, 0.05, rtol=1e-3)


def _sources():
    lopt = jm.optimizers.learned_sgd(0.01)
    runs = {"unroll": 2, "horizon": 4, "num_problems": 2}
    bptt = jm.estimators.truncated_bptt(lopt, PROBLEM, **runs)
    return [(bptt, optax.sgd(1e-4)), (_imitation(lopt), optax.adam(1e-3))]


@pytest.mark.parametrize("chosen", [0, 1])
def test_alternate_with_one_certain_is_that_one(chosen, key):
    sources = _sources()
    shares = [1.0 * (i == chosen) for i in range(2)]
    init, step = jm.training.alternate(sources, shares)
    state = init(key)
    after, info = jax.jit(step)(state)
    alone = jm.training.make_train_step(*sources[chosen])
    own = state._replace(
        carry=state.carry[chosen],
        opt_state=state.opt_state[chosen],
        key=jax.random.split(state.key, 3)[2],
    )
    expected, expected_info = jax.jit(alone.step)(own)
    chex.assert_trees_all_close(after.meta_params, expected.meta_params, rtol=1e-6)
    chex.assert_trees_all_close(after.carry[chosen], expected.carry, rtol=1e-6)
    chex.assert_trees_all_close(info, expected_info, rtol=1e-6)
    other = 1 - chosen
    chex.assert_trees_all_equal(after.opt_state[other], state.opt_state[other])
    chex.assert_trees_all_equal(after.carry[other], state.carry[other])


def test_alternate_follows_the_probabilities(key):
    init, step = jm.training.alternate(_sources(), [0.8, 0.2])
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s), s, length=1000))
    state, _ = run(init(key))
    share = state.opt_state[1][0].count / 1000  # Adam's steps.
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 1000)
    assert state.step == 1000


@pytest.mark.parametrize("shares", [[0.5], [0.5, 0.6], [1.5, -0.5]])
def test_probabilities_are_named(shares):
    with pytest.raises(ValueError, match="`probabilities` must be 2 numbers"):
        jm.training.alternate(_sources(), shares)
