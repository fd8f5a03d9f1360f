"""Meta-gradients of policies against Markov decision processes solved exactly."""

import functools
from typing import get_args

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta import rl
from jaxmeta.rl import _surrogates
from tests._policy_learners import HORIZON, table_policy, tabular_learner

DISCOUNT = 0.9


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def problem():
    """A task, logits [S, A] and the exact values and visits of their policy."""
    env, _ = tabular_learner()
    task = env.sample_task(jax.random.key(3))
    return env, task, 0.7 * jax.random.normal(jax.random.key(4), (3, 2))


def _return(task, logits, discount):
    policy = jax.nn.softmax(logits)
    return rl.expected_return(task, policy, horizon=HORIZON, discount=discount)


def _visits(task, logits):
    """Probabilities [H, S] of the states at each time."""
    move = jnp.einsum("sa,sap->sp", jax.nn.softmax(logits), task.transitions)
    visits = [task.start]
    for _ in range(HORIZON - 1):
        visits.append(visits[-1] @ move)
    return jnp.stack(visits)


def _frozen_objective(surrogate, task, at):
    """What a biased surrogate's derivatives are of: visits and values stay at `at`."""
    policy = jax.nn.softmax(at)
    q = rl.action_values(task, policy, horizon=HORIZON)
    visits = _visits(task, at)

    def objective(logits):
        if surrogate == "low-variance":
            weights = jax.nn.softmax(logits)
        else:
            weights = policy * jax.nn.log_softmax(logits)
        # A baseline leaves the Hessian of probabilities alone, not that of logarithms.
        advantages = q - jnp.sum(policy[None] * q, -1, keepdims=True)
        return jnp.einsum("hs,sa,hsa->", visits, weights, advantages)

    return objective


def _draw_hessians(surrogate, problem, discount, num_episodes):
    """Gradients [B, S A] and Hessians [B, S A, S A] of single episodes."""
    env, task, logits = problem
    policy = table_policy()
    found = rl.rollout(
        jax.random.key(5), policy, logits, env, task, num_episodes=num_episodes
    )
    q = rl.action_values(
        task, jax.nn.softmax(logits), horizon=HORIZON, discount=discount
    )
    exact = jnp.sum(jax.nn.softmax(logits)[None] * q, -1)  # [H, S]
    values = jnp.einsum("bhs,hs->bh", found.observations, exact)
    batch = rl.Batch(
        observations=found.observations,
        actions=found.actions,
        distributions=found.distributions,
        log_probs=policy.log_prob(found.distributions, found.actions),
        rewards=found.rewards,
        values=values,
        advantages=rl.generalized_advantages(
            found.rewards, values, discount=discount, gae_lambda=1.0
        ),
        mask=found.mask,
    )

    def of_episode(flat, episode):
        episode = jax.tree.map(lambda x: x[None], episode)
        logits = policy.apply(flat.reshape(3, 2), episode.observations)
        log_probs = policy.log_prob(logits, episode.actions)
        return jnp.sum(rl.objective(surrogate, log_probs, episode, discount=discount))

    derive = lambda flat, e: (
        jax.grad(of_episode)(flat, e),
        jax.hessian(of_episode)(flat, e),
    )
    return jax.jit(jax.vmap(derive, (None, 0)))(logits.reshape(-1), batch)


def _errors(draws, exact):
    """Distances of the mean from `exact` in standard errors, and these."""
    draws = np.asarray(draws).reshape(len(draws), -1)
    # What no episode touches is zero in all of them: to rounding, then.
    standard_error = draws.std(0, ddof=1) / np.sqrt(len(draws)) + 1e-6
    return np.abs(draws.mean(0) - np.ravel(exact)) / standard_error, standard_error


@pytest.mark.parametrize(
    ("surrogate", "discount"),
    [
        ("dice", DISCOUNT),
        ("loaded-dice", DISCOUNT),
        ("low-variance", 1.0),
        ("log-likelihood", 1.0),
    ],
)
def test_surrogates_have_the_derivatives_that_they_say(surrogate, discount, problem):
    _, task, logits = problem
    exact = lambda flat: _return(task, flat.reshape(3, 2), discount)
    flat = logits.reshape(-1)
    true_hessian = jax.hessian(exact)(flat)
    grads, hessians = _draw_hessians(surrogate, problem, discount, 20_000)

    distance, standard_error = _errors(grads, jax.grad(exact)(flat))
    assert distance.max() < 4 and standard_error.max() < 0.02

    distance, standard_error = _errors(hessians, true_hessian)
    assert standard_error.max() < 0.05
    if "dice" in surrogate:
        assert distance.max() < 4
        return
    assert distance.max() > 10  # The bias is there, and this test sees it.
    stated = _frozen_objective(surrogate, task, logits)
    stated_hessian = jax.hessian(lambda flat: stated(flat.reshape(3, 2)))(flat)
    assert _errors(hessians, stated_hessian)[0].max() < 4


def test_loaded_dice_has_less_variance_than_dice(problem):
    errors = {
        surrogate: _errors(_draw_hessians(surrogate, problem, DISCOUNT, 2000)[1], 0.0)
        for surrogate in ("dice", "loaded-dice", "low-variance")
    }
    dice, loaded, low = (np.square(error).sum() for _, error in errors.values())
    assert low < loaded < dice


def test_low_variance_curvature_is_exact_at_horizon_one():
    env = rl.bandit(3, noise=0.0, horizon=1)
    policy = table_policy(1, 3)
    means, logits = jnp.array([1.0, -1.0, 0.5]), jnp.array([[0.2, -0.3, 0.1]])
    weight = jax.nn.softmax(logits)[0]
    exact = jax.hessian(lambda w: jax.nn.softmax(w) @ means)(logits[0])
    # Each arm once, weighted by its probability: the expectation itself.
    found = rl.rollout(jax.random.key(0), policy, logits, env, means, num_episodes=3)
    actions = jnp.arange(3)[:, None]
    rewards = means[:, None]
    batch = rl.Batch(
        observations=found.observations,
        actions=actions,
        distributions=found.distributions,
        log_probs=jnp.log(weight)[:, None],
        rewards=rewards,
        values=jnp.zeros_like(rewards),
        advantages=rewards,
        mask=found.mask,
    )

    def expected(surrogate, w):
        distribution = policy.apply(w[None], batch.observations)
        log_probs = policy.log_prob(distribution, actions)
        terms = rl.objective(surrogate, log_probs, batch, discount=1.0)
        return jnp.sum(weight[:, None] * terms)

    for surrogate in ("low-variance", "dice", "loaded-dice", "log-likelihood"):
        hessian = jax.hessian(functools.partial(expected, surrogate))(logits[0])
        if surrogate == "log-likelihood":
            assert np.abs(hessian - exact).max() > 0.1
        else:
            np.testing.assert_allclose(hessian, exact, atol=1e-12)


@pytest.mark.parametrize("hvp", ["forward-over-reverse", "reverse-over-reverse"])
@pytest.mark.parametrize(
    ("surrogate", "is_exact"),
    [("loaded-dice", True), ("dice", True), ("log-likelihood", False)],
)
def test_meta_gradients_match_the_solved_problem(surrogate, is_exact, hvp, problem):
    if hvp == "reverse-over-reverse" and surrogate != "loaded-dice":
        pytest.skip("the modes differ in how, not in what")
    _, task, logits = problem
    rate = 2.0
    _, learner = tabular_learner(
        inner_tx=optax.sgd(rate),
        # Many: where one step leads is a function of the sampled gradient, not linear.
        num_episodes=1000,
        surrogate=surrogate,
        discount=DISCOUNT,
        hvp=hvp,
    )

    def after_exact_step(logits):
        ascent = jax.grad(lambda w: _return(task, w, DISCOUNT))(logits)
        return -_return(task, logits + rate * ascent, DISCOUNT)

    exact = jax.grad(after_exact_step)(logits)
    keys = jax.random.split(jax.random.key(6), 60)
    meta_grad = lambda key: learner.meta_grad(key, logits, task)[0]
    draws = jax.jit(lambda keys: jax.lax.map(meta_grad, keys))(keys)
    distance, standard_error = _errors(draws, exact)
    assert standard_error.max() < 0.02
    assert distance.max() < 4 if is_exact else distance.max() > 10


@pytest.mark.parametrize("sampling_term", [0.0, 1.0])
def test_the_sampling_term_of_emaml_against_all_outcomes(sampling_term):
    """Two pulls of two arms: four outcomes, so the expectation is a sum."""
    rate = 1.5
    env = rl.bandit(2, noise=0.0, horizon=1)
    means, logits = jnp.array([1.0, 0.2]), jnp.array([[0.3, -0.4]])
    learner = rl.maml(
        env,
        table_policy(1, 2),
        inner_tx=optax.sgd(rate),
        num_episodes=2,
        surrogate="log-likelihood",
        sampling_term=sampling_term,
        baseline=None,
        standardize=False,
    )

    def expected(logits):
        log_prob = lambda w, arms: jax.nn.log_softmax(w)[0][jnp.array(arms)]
        total = 0.0
        for arms in ((0, 0), (0, 1), (1, 0), (1, 1)):
            rewards = means[jnp.array(arms)]
            ascent = jax.grad(lambda w: jnp.mean(log_prob(w, arms) * rewards))(logits)
            after = jax.nn.softmax(logits + rate * ascent)[0] @ means
            total -= jnp.exp(jnp.sum(log_prob(logits, arms))) * after
        return total

    exact = jax.grad(expected)(logits)
    keys = jax.random.split(jax.random.key(7), 40_000)
    meta_grad = lambda key: learner.meta_grad(key, logits, means)[0]
    distance, standard_error = _errors(jax.jit(jax.vmap(meta_grad))(keys), exact)
    assert standard_error.max() < 0.01
    assert distance.max() < 4 if sampling_term else distance.max() > 10


def test_first_order_is_the_policy_gradient_where_adaptation_leads(problem):
    _, task, logits = problem
    _, learner = tabular_learner(num_episodes=500, first_order=True)
    key = jax.random.key(8)
    grads, _ = jax.jit(learner.meta_grad)(key, logits, task)
    samples, _ = jax.jit(learner.loop.collect)(key, logits, task)
    plain = jm.rl.maml(
        tabular_learner()[0],
        table_policy(),
        inner_tx=optax.sgd(0.0),
        num_episodes=500,
        baseline=None,
        standardize=False,
        average_over="episodes",
    )
    adapt_key, _ = jax.random.split(key)  # As `collect` splits it.
    task_params, _ = jax.jit(learner.adapt)(adapt_key, logits, task)
    expected = jax.jit(jax.grad(lambda w: plain.loop.loss(w, samples)[0]))(task_params)
    np.testing.assert_allclose(grads, expected, rtol=1e-9)


@pytest.mark.parametrize("sampling_term", [0.0, 1.0])
@pytest.mark.parametrize("surrogate", get_args(_surrogates.Surrogate))
def test_surrogates_are_functions_whose_gradients_are_followed(
    surrogate, sampling_term, key
):
    """Away from where they sampled too, as PPO's epochs and TRPO's search want it."""
    with jax.enable_x64(True):
        env, learner = tabular_learner(surrogate=surrogate, sampling_term=sampling_term)
        task = env.sample_task(key)
        params = learner.init(key, task)
        samples, _ = jax.jit(learner.loop.collect)(key, params, task)
        loss = jax.jit(lambda params: learner.loop.loss(params, samples)[0])
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        flat = flat + 0.1 * jax.random.normal(key, flat.shape)
        grads = jax.jit(jax.grad(lambda flat: loss(unravel(flat))))(flat)
        steps = 1e-5 * jnp.eye(flat.size)
        differences = [
            (loss(unravel(flat + h)) - loss(unravel(flat - h))) / 2e-5 for h in steps
        ]
        np.testing.assert_allclose(grads, differences, rtol=1e-5, atol=1e-7)
