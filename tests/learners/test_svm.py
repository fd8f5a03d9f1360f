"""The support vector machine against SciPy's general solver, primal and dual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxmeta as jm
from jaxmeta import learners
from jaxmeta.learners._svm import solve_dual
from tests._metric_learners import identity_embedding, logits_of, vector_task


def _primal(x, y, cost):
    """Crammer and Singer's program, over weights [D, W] and slacks [N]."""
    (num, size), ways = x.shape, y.shape[1]
    split = lambda v: (v[: size * ways].reshape(size, ways), v[size * ways :])

    def objective(v):
        w, slack = split(v)
        return 0.5 * np.sum(w**2) + cost * slack.sum(), np.concatenate(
            [w.ravel(), np.full(num, cost)]
        )

    rows = []
    for n in range(num):
        for c in range(ways):
            if not y[n, c]:
                w, slack = np.outer(x[n], y[n] - np.eye(ways)[c]), np.eye(num)[n]
                rows.append(np.concatenate([w.ravel(), slack]))
    rows = np.array(rows)
    found = scipy.optimize.minimize(
        objective,
        np.concatenate([np.zeros(size * ways), np.ones(num)]),
        jac=True,
        method="SLSQP",
        bounds=[(None, None)] * (size * ways) + [(0, None)] * num,
        constraints={
            "type": "ineq",
            "fun": lambda v: rows @ v - 1,
            "jac": lambda v: rows,
        },
        options={"maxiter": 500, "ftol": 1e-14},
    )
    # It may stop for rounding, with no success to report: the comparison decides.
    return split(found.x)[0]


PROBLEMS = {
    "more examples than features": {"ways": 3, "shots": 4, "size": 2},
    "more features than examples": {"ways": 3, "shots": 2, "size": 9},
    "two ways": {"ways": 2, "shots": 3, "size": 4},
    "one shot": {"ways": 5, "shots": 1, "size": 4},
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_weights_solve_the_primal(problem, key):
    with jax.enable_x64(True):
        task = vector_task(key, **PROBLEMS[problem])
        learner = learners.svm(identity_embedding(), C=0.1)
        task_params, info = jax.jit(learner.adapt)(
            key, learner.init(key, task), task.support
        )
        expected = _primal(*map(np.asarray, task.support), 0.1)
        np.testing.assert_allclose(task_params.fitted, expected, atol=2e-6)
        assert info.converged and info.residual < 1e-8


@pytest.mark.parametrize("cost", [0.001, 0.1, 5.0, 100.0])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_gap_between_primal_and_dual(problem, cost, key):
    """Weak duality: values that meet are the optimum, whoever found them."""
    with jax.enable_x64(True):
        x, y = map(np.asarray, vector_task(key, **PROBLEMS[problem]).support)
        solve = jax.jit(solve_dual, static_argnums=2)
        alpha, info = solve(jnp.asarray(cost * x @ x.T), jnp.asarray(y), 25)
    alpha = np.asarray(alpha)
    assert np.all(alpha <= y + 1e-6) and np.abs(alpha.sum(1)).max() < 1e-6
    weights = cost * x.T @ alpha
    scores = x @ weights
    slacks = np.max(scores + 1 - y, 1) - np.sum(scores * y, 1)
    primal = 0.5 * np.sum(weights**2) + cost * slacks.sum()
    dual = cost * np.sum(alpha * y) - 0.5 * np.sum(weights**2)
    np.testing.assert_allclose(dual, primal, rtol=1e-4)
    assert info.converged


def test_logits_are_scaled_products(key):
    with jax.enable_x64(True):
        task = vector_task(key)
        weights = _primal(*map(np.asarray, task.support), 0.1)
        learner = learners.svm(identity_embedding(), scale=3.0)
        expected = 3 * np.asarray(task.query.inputs) @ weights
        np.testing.assert_allclose(logits_of(learner, task), expected, atol=1e-5)


@pytest.mark.parametrize("magnitude", [0.01, 1.0, 100.0])
def test_float32_is_near_float64_at_any_magnitude(magnitude, key):
    """From all examples at their bound to a margin that none violates."""
    task, weights = vector_task(key, ways=5, shots=5, size=30), []
    x, y = (np.asarray(v, np.float32) for v in task.support)
    for x64 in (True, False):
        with jax.enable_x64(x64):
            dtype = jnp.result_type(float)
            support = jm.Examples(jnp.asarray(magnitude * x, dtype), jnp.asarray(y))
            learner = learners.svm(identity_embedding())
            meta_params = learner.init(key, jm.Task(support, support))
            task_params, info = jax.jit(learner.adapt)(key, meta_params, support)
            weights.append(np.asarray(task_params.fitted))
            assert info.converged, info
    error = np.linalg.norm(weights[1] - weights[0]) / np.linalg.norm(weights[0])
    assert error < 2e-2, error


def test_too_few_steps_are_reported(key):
    task = vector_task(key, ways=5, shots=5, size=3)
    infos = {}
    for steps in (1, 25):
        learner = learners.svm(identity_embedding(), C=10.0, solver_steps=steps)
        meta_params = learner.init(key, task)
        infos[steps] = jax.jit(learner.adapt)(key, meta_params, task.support)[1]
    assert infos[25].converged and not infos[1].converged
    assert infos[1].residual > infos[25].residual


def test_second_derivatives_are_those_of_the_first(key):
    """The solution is differentiated as what it is, not by a rule for one order."""
    with jax.enable_x64(True):
        task = vector_task(key)
        (x, y), direction = task.support, jax.random.normal(key, (6, 5))
        value = lambda x: jnp.sum(jnp.square(solve_dual(x @ x.T, y, 25)[0]))
        slope = lambda t: jnp.vdot(jax.grad(value)(x + t * direction), direction)
        numeric = (jax.jit(slope)(1e-5) - jax.jit(slope)(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(slope))(0.0), numeric, rtol=1e-5)
