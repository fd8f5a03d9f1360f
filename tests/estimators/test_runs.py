"""Runs of all truncated estimators: when they start, and what rules are told."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxmeta as jm

QUADRATICS = jm.problems.quadratics(2)
ESTIMATORS = {
    "truncated_bptt": jm.estimators.truncated_bptt,
    "staggered": functools.partial(jm.estimators.truncated_bptt, staggered=True),
    "pes": jm.estimators.pes,
    "shared": functools.partial(jm.estimators.pes, noise="shared"),
    "fresh": functools.partial(jm.estimators.pes, noise="fresh"),
    "imitation": functools.partial(jm.estimators.imitation, teacher=optax.adam(0.1)),
}


def _train_step(name, problem=QUADRATICS, lopt=None):
    lopt = jm.optimizers.lstm(3) if lopt is None else lopt
    options = {"unroll": 2, "horizon": 6, "num_problems": 3}
    estimator = ESTIMATORS[name](lopt, problem, **options)
    return jm.training.make_train_step(estimator, optax.adam(1e-3))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_instances_are_drawn_when_runs_start(name, key):
    drawn = []

    def sample(key):
        jax.debug.callback(lambda: drawn.append(1))
        return QUADRATICS.sample(key)

    init, step = _train_step(name, QUADRATICS._replace(sample=sample))
    state, step = init(key), jax.jit(step)
    counts = []
    for _ in range(7):
        jax.effects_barrier()
        drawn.clear()
        state, _ = jax.block_until_ready(step(state))
        jax.effects_barrier()
        counts.append(len(drawn))
    # Runs last three meta-steps; staggered, one starts in each.
    expected = [0, 1, 1, 1, 1, 1, 1] if name == "staggered" else [0, 0, 0, 3, 0, 0, 3]
    assert counts == expected


@pytest.mark.parametrize("name", ["staggered", "pes"])
def test_accelerators_draw_at_once(name, key, monkeypatch):
    found = []
    for platform in ("cpu", "default"):
        choose = lambda *args, platform=platform, **branches: branches[platform](*args)
        monkeypatch.setattr(jax.lax, "platform_dependent", choose)
        init, step = _train_step(name)
        state, info = jax.lax.scan(lambda s, _: step(s), init(key), None, 7)
        found.append((state.meta_params, state.carry, info))
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)


def test_runs_of_many_problems_are_a_loop_over_them(key):
    """`vmap` over data sets, as over meta-seeds, leaves the draws right."""
    targets = jnp.array([[1.0], [2.0]])

    def after(target, key):
        def sample(key):
            return target + jax.random.normal(key, (1,))

        problem = jm.OptimizationProblem(
            sample,
            init=lambda key, instance: jnp.zeros(1),
            loss=lambda params, instance, key: jnp.sum((params - instance) ** 2),
        )
        init, step = _train_step("truncated_bptt", problem)
        state, info = jax.lax.scan(lambda s, _: step(s), init(key), None, 5)
        return state.meta_params, state.carry, info

    found = jax.vmap(after)(targets, jax.random.split(key))
    one = jax.jit(after)
    expected = [one(*each) for each in zip(targets, jax.random.split(key), strict=True)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *expected)
    chex.assert_trees_all_close(found, stacked, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rules_are_told_the_horizon(name, key):
    """Also by `update_responses`: a rule that requires it raises if it is not."""
    lopt = jm.optimizers.learned_adam()
    init, step = _train_step(name, lopt=lopt)
    state, info = jax.jit(step)(init(key))
    assert jnp.isfinite(info.loss).all()
    found = jm.training.update_responses(
        lopt,
        state.meta_params,
        QUADRATICS,
        gradients=[-1.0, 1.0],
        steps=[0, 2],
        num_problems=1,
        key=key,
    )
    assert (found.updates[..., 0] > found.updates[..., 1]).all()
