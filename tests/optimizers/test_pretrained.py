"""Learned optimizers that ship with the package."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta.optimizers import _pretrained

NAMES = tuple(_pretrained._PRETRAINED)


def _make(name):
    options = {"total_steps": 20} if name == "general" else {}
    return jm.optimizers.pretrained(name, **options)


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
    tx = optax.chain(optax.clip_by_global_norm(1.0), _make(name))
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(5):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_tree_all_finite(params)


@pytest.mark.parametrize("name", NAMES)
def test_a_pretrained_optimizer_takes_a_donated_state(name):
    tx, p = _make(name), jnp.ones(3)
    jax.jit(lambda s: tx.update(p, s, p), donate_argnums=0)(tx.init(p))


@pytest.mark.parametrize("name", NAMES)
def test_cards_tell_what_users_must_know(name):
    card = jm.optimizers.load_pretrained(name).card
    assert card["name"] == name
    for field in ("optimizer", "trained", "on", "works", "fails"):
        assert len(card[field]) > 20


def test_all_weights_are_under_a_megabyte():
    assert sum(path.stat().st_size for path in _pretrained._FOLDER.iterdir()) < 2**20


def test_options_are_those_of_general():
    pretrained = jm.optimizers.pretrained
    with pytest.raises(ValueError, match="`total_steps`, the number of updates that"):
        pretrained("general")
    for options in ({"total_steps": 5}, {"weight_decay": 0.1}):
        with pytest.raises(ValueError, match="are options of 'general', not of"):
            pretrained("rnnprop-mlp", **options)


@pytest.mark.parametrize("num_steps", [200, 1000])
def test_general_beats_tuned_adam_on_a_problem_it_has_not_seen(num_steps, key):
    """A wider network on other clusters; Adam at the best of seven rates."""
    centres = jax.random.normal(jax.random.key(7), (6, 10))

    def draw(key):
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.randint(label_key, (256,), 0, 6)
        return centres[labels] + jax.random.normal(noise_key, (256, 10)), labels

    model = jm.models.MLP([48, 48, 6], activation=jax.nn.swish)
    problem = jm.problems.supervised(draw, model)
    found = jm.optimizers.load_pretrained("general")

    def final(lopt, theta):
        """The full loss after a run, on average over eight."""

        def one(key):
            start_key, run_key = jax.random.split(key)
            instance = problem.sample(start_key)
            params = problem.init(start_key, instance)
            tx = optax.with_extra_args_support(lopt.transform(theta))

            def body(k, carry):
                params, state = carry
                batch_key = jax.random.fold_in(run_key, k)
                grads = jax.grad(problem.loss)(params, instance, batch_key)
                updates, state = tx.update(grads, state, params, total_steps=num_steps)
                return optax.apply_updates(params, updates), state

            carry = params, tx.init(params)
            params, _ = jax.lax.fori_loop(0, num_steps, body, carry)
            return problem.full_loss(params, instance)

        return jnp.mean(jax.vmap(one)(jax.random.split(key, 8)))

    adam = jm.optimizers.learned_rate(optax.adam)
    run_adam = jax.jit(lambda rate: final(adam, rate))
    best = min(run_adam(rate) for rate in 10.0 ** np.arange(-4, -0.9, 0.5))
    assert final(found.lopt, found.theta) < best


def test_an_unknown_name():
    with pytest.raises(ValueError, match="`name` must be one of 'lstm-quadratic'"):
        jm.optimizers.pretrained("velo")
