"""Optimizers on fresh problems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

PROBLEM = jm.problems.quadratics(dim=3)
SGD = jm.optimizers.learned_rate(optax.sgd)


def _evaluate(rate=0.01, lopt=SGD, **options):
    options = {"num_steps": 4, "num_problems": 5, "key": jax.random.key(1)} | options
    return jm.training.evaluate_optimizer(lopt, rate, PROBLEM, **options)


def test_is_the_closed_form_of_gradient_descent():
    """x_t - x* = (I - 2 r W'W)^t (x_0 - x*), on the problems that the key draws."""
    with jax.enable_x64(True):
        curves = _evaluate().per_problem
        for i, key in enumerate(jax.random.split(jax.random.key(1), 5)):
            start_key, _ = jax.random.split(key)
            sample_key, init_key, _ = jax.random.split(start_key, 3)
            w, y = (np.asarray(x) for x in PROBLEM.sample(sample_key))
            x = np.asarray(PROBLEM.init(init_key, (w, y)))
            best = np.linalg.solve(w, y)
            shrink = np.eye(3) - 2 * 0.01 * w.T @ w
            for t in range(5):
                at = best + np.linalg.matrix_power(shrink, t) @ (x - best)
                expected = np.sum((w @ at - y) ** 2)
                np.testing.assert_allclose(curves[i, t], expected, rtol=1e-8)


def test_summaries_are_of_the_runs():
    curves = _evaluate(num_problems=20)
    runs = np.asarray(curves.per_problem)
    assert runs.shape == (20, 5)
    np.testing.assert_allclose(curves.final.mean, runs[:, -1].mean(), rtol=1e-5)
    np.testing.assert_allclose(curves.summed.mean, runs[:, 1:].sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(curves.median, np.median(runs, 0), rtol=1e-5)
    np.testing.assert_allclose(curves.at_step.mean, runs.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"problems_per_chunk": 2}, {"mesh": jm.training.task_mesh()}]
)
def test_chunks_and_devices_change_nothing(options):
    got, expected = _evaluate(**options), _evaluate()
    np.testing.assert_allclose(got.per_problem, expected.per_problem, rtol=1e-5)


def test_optimizers_share_problems_and_starts():
    adam = jm.optimizers.learned_rate(optax.adam)
    np.testing.assert_array_equal(
        _evaluate().per_problem[:, 0], _evaluate(lopt=adam).per_problem[:, 0]
    )


def test_tune_finds_the_least_final_loss():
    rates = [1e-3, 1e-2, 1e-1, 1e3]
    options = {"num_steps": 20, "num_problems": 8, "key": jax.random.key(2)}
    tuned = jm.training.tune(SGD, rates, PROBLEM, **options)
    finals = [_evaluate(rate, **options).final.mean for rate in rates]
    assert tuned.rate == rates[int(np.nanargmin(np.asarray(finals)))]
    assert np.isinf(tuned.losses[-1])  # Diverged.


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="`num_steps` must be an int >= 1, got 0"):
        _evaluate(num_steps=0)
    with pytest.raises(ValueError, match="`rates` must have at least one"):
        jm.training.tune(SGD, [], PROBLEM)


def test_a_learned_rate_has_a_gradient(key):
    estimator = jm.estimators.bptt(SGD, PROBLEM, horizon=3, num_problems=4)
    theta, _ = estimator.init(key)
    assert theta == jnp.float32(1e-3)
    assert estimator.estimate(key, theta, None)[0] < 0  # A larger rate would help.


def test_responses_are_the_optimizers_own_updates():
    """Momentum's, by hand: -rate * (decay * trace + gradient) for the coordinate."""
    momentum = jm.optimizers.learned_rate(lambda rate: optax.sgd(rate, 0.9))
    options = {"steps": [0, 2, 5], "num_problems": 4, "key": jax.random.key(3)}
    gradients = [-3.0, 0.0, 7.0]
    found = jm.training.update_responses(
        momentum, 0.01, PROBLEM, gradients=gradients, **options
    )
    assert found.updates.shape == (4, 3, 3)
    # Of a zero gradient: what the trace alone does. None at first.
    of_trace = found.updates[:, :, 1]
    np.testing.assert_array_equal(of_trace[:, 0], 0)
    assert (np.abs(of_trace[:, 1:]) > 0).all()
    np.testing.assert_allclose(
        found.updates - of_trace[..., None],
        np.broadcast_to(-0.01 * np.array(gradients), (4, 3, 3)),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [2, 1]}, "`steps` must be ascending"),
        ({"steps": []}, "`steps` must be ascending, at least one"),
        ({"steps": [-1]}, "`steps` must be an int >= 0, got -1"),
        ({"gradients": []}, r"`gradients` must have shape \[G\], not empty"),
        ({"num_problems": 0}, "`num_problems` must be an int >= 1"),
    ],
)
def test_responses_name_bad_input(options, message):
    settings = {
        "gradients": [1.0],
        "steps": [0],
        "num_problems": 1,
        "key": jax.random.key(0),
    }
    with pytest.raises(ValueError, match=message):
        jm.training.update_responses(SGD, 0.1, PROBLEM, **settings | options)


def test_rates_that_all_diverge_are_named():
    options = {"num_steps": 40, "num_problems": 2, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=r"all `rates`, \[1e\+30, 1e\+31\]"):
        jm.training.tune(SGD, [1e30, 1e31], PROBLEM, **options)
