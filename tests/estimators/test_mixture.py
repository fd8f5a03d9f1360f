"""Mixtures of estimators, against their parts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

LOPT = jm.optimizers.lstm(3, 1)


def _parts(mesh=None):
    """Back-propagation, truncated or not, and evolution, on problems of all sizes."""
    quadratics = jm.problems.quadratics
    options = {"num_problems": 2, "mesh": mesh}
    return {
        "bptt": jm.estimators.bptt(LOPT, quadratics(2), horizon=3, **options),
        "truncated": jm.estimators.truncated_bptt(
            LOPT, quadratics(3), unroll=2, horizon=4, **options
        ),
        "es": jm.estimators.es(LOPT, quadratics(4), horizon=(2, 5), **options),
    }


@pytest.mark.parametrize("normalize", [True, False])
def test_the_gradient_is_the_weighted_mean_of_the_parts(normalize, key):
    parts, weights = _parts(), {"bptt": 1.0, "truncated": 2.0, "es": 5.0}
    estimator = jm.estimators.mixture(parts, weights=weights, normalize=normalize)
    theta, carry = estimator.init(key)
    # Each as one program: operation by operation takes longer to compile.
    estimate = jax.jit(estimator.estimate)
    estimates = {name: jax.jit(part.estimate) for name, part in parts.items()}
    own = {name: carry.carries[name] for name in parts}
    squares = dict.fromkeys(parts, 0.0)
    for step in range(3):
        step_key = jax.random.fold_in(key, step)
        grads, carry, info = estimate(step_key, theta, carry, step=step)
        keys = jax.random.split(step_key, 3)
        expected = optax.tree.zeros_like(theta)
        for part_key, (name, part) in zip(keys, estimates.items(), strict=True):
            found, own[name], one = part(part_key, theta, own[name], step=step)
            square = float(optax.tree.norm(found, squared=True))
            before = squares[name]
            squares[name] = 0.95 * before + 0.05 * square if step else square
            scale = weights[name] / 8 / (np.sqrt(squares[name]) if normalize else 1)
            expected = optax.tree.add_scale(expected, scale, found)
            np.testing.assert_allclose(info.metrics[f"loss_{name}"], one.loss.mean())
        chex.assert_trees_all_close(grads, expected, rtol=1e-4, atol=1e-9)
        chex.assert_trees_all_close(carry.carries, own)
        assert info.loss.shape == info.is_valid.shape == (6,)


def test_a_family_that_fails_leaves_the_others(key):
    fails = lambda params, instance, key: jnp.nan * jnp.sum(params)
    nan = jm.problems.quadratics(2)._replace(loss=fails)
    es = functools.partial(jm.estimators.es, LOPT, horizon=2, num_problems=2)
    whole = jm.estimators.mixture({"a": es(jm.problems.quadratics(2)), "b": es(nan)})
    theta, carry = whole.init(key)
    grads, carry, info = whole.estimate(key, theta, carry)
    chex.assert_tree_all_finite((grads, carry))
    assert info.is_valid.tolist() == [True, True, False, False]
    assert optax.tree.norm(grads) > 0
    assert carry.mean_squares["b"] == 0


def test_devices_agree(key):
    """Two devices, a run of each family on either."""
    found = []
    for devices in (1, 2):
        mesh = jm.training.task_mesh(jax.devices()[:devices])
        estimator = jm.estimators.mixture(_parts(mesh))
        init, step = jm.training.make_train_step(estimator, optax.sgd(0.1))
        state, info = jax.jit(step)(init(key))
        found.append((jax.device_get(state.meta_params), np.asarray(info.loss)))
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)


def test_a_mixture_trains_and_resumes(key, tmp_path):
    estimator = jm.estimators.mixture(_parts())
    train_step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    fit = functools.partial(
        jm.training.fit, train_step, key=key, log_every=2, validate_every=2
    )
    whole = fit(num_steps=4, directory=tmp_path / "whole")
    fit(num_steps=2, directory=tmp_path / "parts")
    parts = fit(num_steps=4, directory=tmp_path / "parts")
    chex.assert_trees_all_equal(whole.state.meta_params, parts.state.meta_params)


def test_invalid_mixtures_are_named(key):
    mixture, parts = jm.estimators.mixture, _parts()
    with pytest.raises(ValueError, match="`estimators` must map names to estimators"):
        mixture({})
    with pytest.raises(ValueError, match="`weights` must have the names"):
        mixture(parts, weights={"es": 1.0})
    with pytest.raises(ValueError, match=r"`weights\['es'\]` must be"):
        mixture(parts, weights=dict.fromkeys(parts, 1.0) | {"es": 0.0})
    other = jm.estimators.es(
        jm.optimizers.lstm(4), jm.problems.quadratics(2), horizon=2, num_problems=1
    )
    with pytest.raises(
        ValueError, match=r"`estimators\['other'\].init` does not match"
    ):
        mixture(parts | {"other": other}).init(key)
