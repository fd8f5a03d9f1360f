"""Evolution strategies, as statistics: against exact gradients and known optima."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta.estimators import _evolution, _runs

PROBLEM = jm.problems.quadratics(dim=2)


def _rule(update, theta):
    """A stateless learned rule `(theta, params, grads, step) -> update`."""

    def transform(theta):
        def step(updates, state, params=None, **extra_args):
            del extra_args
            return update(theta, params, updates, state), state + 1

        return optax.GradientTransformationExtraArgs(
            lambda params: jnp.zeros((), jnp.int32), step
        )

    return jm.LearnedOptimizer(lambda key, params=None: jnp.asarray(theta), transform)


def _rates():
    """One rate a coordinate."""
    return _rule(lambda theta, params, grads, step: -theta * grads, [0.1, 0.2])


def _exact(theta, key, horizon, num_problems=20_000):
    """The whole meta-gradient, over many problems."""
    estimator = jm.estimators.bptt(
        _rates(), PROBLEM, horizon=horizon, num_problems=num_problems
    )
    return estimator.estimate(key, theta, None)[0]


@pytest.mark.parametrize("horizon", [1, 4])
def test_a_weight_knows_the_horizon_of_its_run(horizon, key):
    """The loss at the end alone, of runs whose horizon is drawn."""
    tx, params = optax.sgd(0.1), jnp.ones(2)
    instance = PROBLEM.sample(key)
    run = _runs.Run(instance, params, tx.init(params), jnp.zeros((), int), jnp.array(9))
    whole_run = _evolution._weighted_sum(lambda t, horizon: t == horizon)
    tx_of_run = optax.with_extra_args_support(tx)
    value, _ = whole_run(PROBLEM, tx_of_run, run, jnp.asarray(horizon), key)
    loss = lambda params: PROBLEM.loss(params, instance, key)
    for _ in range(horizon):
        params = params - 0.1 * jax.grad(loss)(params)
    np.testing.assert_allclose(value, loss(params), rtol=1e-5)


def _assert_unbiased(draws, expected, most_error):
    """Within 4 standard errors, which are small enough to tell."""
    standard_error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - expected) < 4 * standard_error).all()
    assert (standard_error < most_error * np.abs(expected)).all()


def _sum_over_a_run(estimator, theta, key, num_truncations):
    """Gradients of fresh runs summed over their truncations, one draw for each key."""
    _, carry = estimator.init(key)
    is_over = carry.runs._replace(step=carry.runs.horizon)
    carry, total = carry._replace(runs=is_over), 0.0
    for truncation_key in jax.random.split(key, num_truncations):
        grads, carry, _ = estimator.estimate(truncation_key, theta, carry)
        total = total + grads
    return total


@pytest.mark.parametrize("noise", ["persistent", "shared"])
def test_truncations_sum_to_the_whole_gradient(noise, key):
    """With little noise the smoothed loss is the loss."""
    with jax.enable_x64(True):
        theta = jnp.array([0.1, 0.2])
        estimator = jm.estimators.pes(
            _rates(), PROBLEM, unroll=2, horizon=6, num_problems=100, sigma=1e-3,
            noise=noise,
        )  # fmt: skip
        run = lambda key: _sum_over_a_run(estimator, theta, key, 3)
        draws = jax.jit(jax.vmap(run))(jax.random.split(key, 1000))
        _assert_unbiased(draws, _exact(theta, key, 6), most_error=0.02)


def test_fresh_noise_is_biased(key):
    """Its gradient is that of truncated back-propagation."""
    with jax.enable_x64(True):
        theta = jnp.array([0.1, 0.2])
        options = {"unroll": 2, "horizon": 6, "num_problems": 100}
        fresh = jm.estimators.pes(
            _rates(), PROBLEM, noise="fresh", sigma=1e-3, **options
        )
        run = lambda key: _sum_over_a_run(fresh, theta, key, 3)
        draws = jax.jit(jax.vmap(run))(jax.random.split(key, 300))
        truncated = jm.estimators.truncated_bptt(_rates(), PROBLEM, **options)

        def truncated_run(key):
            _, runs = truncated.init(key)
            total = 0.0
            for truncation_key in jax.random.split(key, 3):
                grads, runs, _ = truncated.estimate(truncation_key, theta, runs)
                total = total + grads
            return total

        exact_draws = jax.jit(jax.vmap(truncated_run))(jax.random.split(key, 1000))
        _assert_unbiased(draws, exact_draws.mean(0), most_error=0.05)
        whole = _exact(theta, key, 6)
        assert (np.abs(draws.mean(0) - whole) > 0.2 * np.abs(whole)).any()


def test_es_is_the_whole_gradient(key):
    with jax.enable_x64(True):
        theta = jnp.array([0.1, 0.2])
        estimator = jm.estimators.es(
            _rates(), PROBLEM, horizon=4, num_problems=100, sigma=1e-3
        )
        run = lambda key: estimator.estimate(key, theta, None)[0]
        draws = jax.jit(jax.vmap(run))(jax.random.split(key, 1000))
        _assert_unbiased(draws, _exact(theta, key, 4), most_error=0.02)


def test_the_meta_loss_may_be_how_far_a_run_gets(key):
    """The logarithm of the last full loss over the first; a pair from its own noise."""
    full = lambda x, instance: jnp.sum(x**2) + 0.5
    problem = PROBLEM._replace(full_loss=full)
    theta, sigma = jnp.array([0.1, 0.2]), 0.05
    estimator = jm.estimators.es(
        _rates(), problem, horizon=3, num_problems=1, sigma=sigma, meta_loss="log"
    )
    grads, _, info = estimator.estimate(key, theta, None)
    key, _ = jax.random.split(key)  # The other draws the horizon.
    noise_key, start_key, _ = jax.random.split(jax.random.split(key, 1)[0], 3)
    noise = sigma * optax.tree.random_like(noise_key, theta)
    sample_key, init_key, _ = jax.random.split(start_key, 3)
    w, y = problem.sample(sample_key)
    start = problem.init(init_key, (w, y))
    values = []
    for rates in (theta + noise, theta - noise):
        x = start
        for _ in range(3):
            x = x - rates * jax.grad(lambda x: jnp.sum(jnp.square(w @ x - y)))(x)
        values.append(jnp.log(full(x, None) / full(start, None)))
    expected = noise * jnp.clip(values[0] - values[1], -1, 1) / (2 * sigma**2)
    np.testing.assert_allclose(grads, expected, rtol=1e-3)
    np.testing.assert_allclose(info.loss[0], sum(values) / 2, rtol=1e-4)


def test_diverged_runs_count_as_a_constant(key):
    estimator = jm.estimators.es(
        _rates(), PROBLEM, horizon=200, num_problems=3, meta_loss="log", sigma=0.1
    )
    grads, _, info = estimator.estimate(key, jnp.array([50.0, 50.0]), None)
    assert info.loss.tolist() == [2, 2, 2]
    assert grads.tolist() == [0, 0]


def test_es_draws_a_horizon_for_all_runs_of_a_meta_step(key):
    """From 3 to 6 updates; the rule is told how many."""

    def transform(theta):
        def update(updates, state, params=None, *, total_steps, **extra):
            del params, extra
            return jax.tree.map(lambda g: 0 * g + total_steps, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: None, update)

    counting = jm.LearnedOptimizer(lambda key, params=None: jnp.zeros(()), transform)
    problem = jm.OptimizationProblem(
        sample=lambda key: None,
        init=lambda key, instance: jnp.zeros(()),
        loss=lambda x, instance, key: x,
        full_loss=lambda x, instance: 1 + x,
    )
    estimator = jm.estimators.es(
        counting, problem, horizon=(3, 6), num_problems=4, meta_loss="log"
    )
    keys = jax.random.split(key, 200)
    estimate = lambda key: estimator.estimate(key, jnp.zeros(()), None)[2].loss
    # T updates by T each: the last loss is 1 + T^2, and its logarithm over 2.
    assert (jax.jit(jax.vmap(estimate))(keys) == 2).all()
    summed = jm.estimators.es(counting, problem, horizon=(3, 6), num_problems=4)
    estimate = lambda key: summed.estimate(key, jnp.zeros(()), None)[2].loss
    means = np.asarray(jax.jit(jax.vmap(estimate))(keys))
    # The mean of T, 2 T, ... T^2 is T (T + 1) / 2.
    expected = {t: t * (t + 1) / 2 for t in (3, 4, 5, 6)}
    assert (means == means[:, :1]).all()
    assert set(means[:, 0].tolist()) == set(expected.values())


def test_every_estimator_tells_the_rule_its_horizon(key):
    seen = []

    def transform(theta):
        def update(updates, state, params=None, *, total_steps, **extra):
            del params, extra
            seen.append(total_steps)
            return jax.tree.map(lambda g: -theta * g, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: None, update)

    lopt = jm.LearnedOptimizer(lambda key, params=None: jnp.array(0.1), transform)
    truncated = {"unroll": 2, "horizon": 4, "num_problems": 2}
    for estimator in (
        jm.estimators.bptt(lopt, PROBLEM, horizon=4, num_problems=2),
        jm.estimators.truncated_bptt(lopt, PROBLEM, **truncated),
        jm.estimators.pes(lopt, PROBLEM, **truncated),
        jm.estimators.es(lopt, PROBLEM, horizon=4, num_problems=2),
    ):
        seen.clear()
        theta, carry = estimator.init(key)
        grads, _, _ = estimator.estimate(key, theta, carry)
        assert seen and jnp.isfinite(grads)
    curves = jm.training.evaluate_optimizer(
        lopt, 0.1, PROBLEM, num_steps=7, num_problems=2, key=key
    )
    assert curves.per_problem.shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"meta_loss": "mean"}, "`meta_loss` must be one of"),
        ({"horizon": (5, 2)}, "`horizon` must be"),
        ({"horizon": lambda step: 3}, "`horizon` of `es` must be an int or"),
    ],
)
def test_invalid_arguments_of_es_are_named(options, words):
    options = {"horizon": 2, "num_problems": 1} | options
    with pytest.raises(ValueError, match=words):
        jm.estimators.es(_rates(), PROBLEM, **options)


def test_one_pair_by_hand(key):
    """The estimate of one pair over two truncations, from the carry's own noise."""
    theta, sigma = jnp.array([0.1, 0.2]), 0.05
    estimator = jm.estimators.pes(
        _rates(), PROBLEM, unroll=1, horizon=2, num_problems=1, sigma=sigma
    )
    _, carry = estimator.init(key)
    x = carry.runs.params[0]
    w, y = jax.tree.map(lambda x: x[0, 0], carry.runs.instance)
    f = lambda x: jnp.sum(jnp.square(w @ x - y))
    before = jnp.zeros(2)
    for step_key in jax.random.split(key):
        grads, carry, info = estimator.estimate(step_key, theta, carry)
        total = carry.noise[0]
        epsilon = total - before
        rates = [theta + epsilon, theta - epsilon]
        x = [x[i] - rates[i] * jax.grad(f)(x[i]) for i in range(2)]
        expected = total * (f(x[0]) - f(x[1])) / (2 * sigma**2)
        np.testing.assert_allclose(grads, expected, rtol=1e-3)
        np.testing.assert_allclose(info.loss[0], (f(x[0]) + f(x[1])) / 2, rtol=1e-5)
        before = total


# Tallec and Ollivier's influence balancing, as in Vicol et al. 2021, Figure 3: the
# stationary first component is -6 theta, so that theta should be -1/6; whoever looks
# one step ahead sees the first column's sign alone, and goes the other way.


def _influence_balancing():
    n, positive = 23, 10
    matrix = 0.5 * (np.eye(n) + np.eye(n, k=1))
    signs = jnp.where(jnp.arange(n) < positive, 1.0, -1.0)
    lopt = _rule(
        lambda theta, s, grads, step: jnp.asarray(matrix) @ s + theta * signs - s, 0.5
    )
    problem = jm.OptimizationProblem(
        sample=lambda key: None,
        init=lambda key, instance: jnp.ones(n),
        loss=lambda s, instance, key: 0.5 * jnp.square(s[0] - 1),
    )
    return lopt, problem


def _train(estimator, outer_tx, num_steps, key):
    init, step = jm.training.make_train_step(estimator, outer_tx)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s), s, length=num_steps))
    state, infos = run(init(key))
    return state.meta_params, infos


@pytest.mark.parametrize(
    ("name", "expected", "error"),
    [
        pytest.param("persistent", -1 / 6, 1e-4, marks=pytest.mark.slow),
        pytest.param("fresh", 3.26, 0.02, marks=pytest.mark.slow),
        ("truncated", 3.26, 0.02),
    ],
)
def test_influence_balancing(name, expected, error, key):
    options = {"unroll": 1, "horizon": 10_000}
    with jax.enable_x64(True):
        lopt, problem = _influence_balancing()
        if name == "truncated":
            estimator = jm.estimators.truncated_bptt(
                lopt, problem, num_problems=1, **options
            )
        else:
            estimator = jm.estimators.pes(
                lopt, problem, num_problems=1000, sigma=0.1, noise=name, **options
            )
        theta, _ = _train(estimator, optax.sgd(1e-4), 3000, key)
    assert abs(float(theta) - expected) < error


# Vicol et al. 2021, Figure 4: two rates of a linear schedule over 100 steps of gradient
# descent on a two-dimensional surface with a long valley.


def _schedule():
    horizon = 100

    def update(theta, params, grads, step):
        done = step / horizon
        rate = jnp.exp(theta[0]) * (1 - done) + jnp.exp(theta[1]) * done
        return -rate * grads

    def loss(x, instance, key):
        bowl = jnp.sqrt(x[0] ** 2 + 5) - jnp.sqrt(5.0)
        wave = jnp.sin(x[1]) ** 2 * jnp.exp(-5 * x[0] ** 2)
        return bowl + wave + 0.25 * jnp.abs(x[1] - 100)

    problem = jm.OptimizationProblem(
        sample=lambda key: None, init=lambda key, instance: jnp.ones(2), loss=loss
    )
    return _rule(update, [jnp.log(0.01)] * 2), problem, horizon


@pytest.mark.parametrize("name", ["pes", "truncated"])
def test_learning_rate_schedule(name, key):
    lopt, problem, horizon = _schedule()
    options = {"unroll": 10, "horizon": horizon}
    if name == "pes":
        estimator = jm.estimators.pes(
            lopt, problem, num_problems=100, sigma=1.0, staggered=False, **options
        )
    else:
        estimator = jm.estimators.truncated_bptt(
            lopt, problem, num_problems=1, **options
        )
    theta, _ = _train(estimator, optax.adam(1e-2, b1=0.99), 5000, key)
    whole = jm.estimators.bptt(lopt, problem, horizon=horizon, num_problems=1)
    loss = whole.estimate(key, theta, None)[2].loss[0]
    if name == "pes":
        assert loss < 7.0
    else:
        assert 23.5 < loss < 25


def test_a_mesh_changes_nothing(key):
    estimators = [
        jm.estimators.pes(
            _rates(), PROBLEM, unroll=2, horizon=4, num_problems=8, mesh=mesh
        )
        for mesh in (None, jm.training.task_mesh())
    ]
    theta, carry = estimators[0].init(key)
    got, expected = (jax.jit(e.estimate)(key, theta, carry) for e in estimators)
    chex.assert_trees_all_close(got, expected, rtol=1e-4)


def test_what_is_wrong_is_named():
    make = lambda **options: jm.estimators.pes(
        _rates(), PROBLEM, **{"unroll": 2, "horizon": 4, "num_problems": 1} | options
    )
    with pytest.raises(ValueError, match="`sigma` must be positive and finite, got 0"):
        make(sigma=0.0)
    with pytest.raises(ValueError, match="`noise` must be one of"):
        make(noise="pink")
    with pytest.raises(ValueError, match="`horizon` must be a multiple of `unroll`, 2"):
        make(horizon=5)
