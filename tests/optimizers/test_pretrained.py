"""Learned optimizers that ship with the package."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxmeta as jm
from jaxmeta.optimizers import _pretrained

NAMES = tuple(_pretrained._PRETRAINED)


def test_a_pretrained_optimizer_beats_tuned_ones_on_quadratics(key):
    """On 200 fresh problems, momentum's and Adam's rates the best of a grid."""
    found = jm.optimizers.load_pretrained("lstm-quadratic")
    problem = jm.problems.quadratics()
    options = {"num_steps": 100, "num_problems": 200, "key": key}
    ours = jm.training.evaluate_optimizer(found.lopt, found.theta, problem, **options)
    for make_tx in (optax.adam, lambda rate: optax.sgd(rate, momentum=0.9)):
        family = jm.optimizers.learned_rate(make_tx)
        rates = [0.01, 0.02, 0.03, 0.1, 0.2]
        rate = jm.training.tune(family, rates, problem, **options).rate
        theirs = jm.training.evaluate_optimizer(family, rate, problem, **options)
        assert ours.summed.mean < 0.5 * theirs.summed.mean
        assert ours.median[-1] < theirs.median[-1]


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_in_a_chain(name, key):
    tx = optax.chain(optax.clip_by_global_norm(1.0), jm.optimizers.pretrained(name))
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(5):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_tree_all_finite(params)


@pytest.mark.parametrize("name", NAMES)
def test_a_pretrained_optimizer_takes_a_donated_state(name):
    tx, p = jm.optimizers.pretrained(name), jnp.ones(3)
    jax.jit(lambda s: tx.update(p, s, p), donate_argnums=0)(tx.init(p))


@pytest.mark.parametrize("name", NAMES)
def test_cards_tell_what_users_must_know(name):
    card = jm.optimizers.load_pretrained(name).card
    assert card["name"] == name
    for field in ("optimizer", "trained", "on", "works", "fails"):
        assert len(card[field]) > 20


def test_all_weights_are_under_a_megabyte():
    assert sum(path.stat().st_size for path in _pretrained._FOLDER.iterdir()) < 2**20


def test_an_unknown_name():
    with pytest.raises(ValueError, match="`name` must be one of 'lstm-quadratic'"):
        jm.optimizers.pretrained("velo")
