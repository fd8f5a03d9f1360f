"""Celo, against a loop by NumPy and against a recorded run of its authors' code."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests.optimizers._by_hand import SHAPES, CeloByHand, check_run, problem

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "celo"


def _started(scheduler):
    """With a start that is not zero."""
    return scheduler._replace(hidden=jnp.ones(64) / 3, cell=-jnp.ones(64))


def test_it_is_its_formula(key, x64):
    lopt = jm.optimizers.celo(12)
    theta = lopt.init(key)
    theta = theta._replace(scheduler=_started(theta.scheduler))
    check_run(lopt, theta, CeloByHand, key)


class _AdamByHand(CeloByHand):
    """Celo-Adam: the same rate, and Adam in place of the network."""

    def __init__(self, theta, params, total_steps):
        super().__init__(jm.optimizers.CeloTheta((), theta), params, total_steps)

    def _tensor(self, name, g, rate):
        g, s = np.clip(g, -1000, 1000), self.moments[name]
        s["m"] = [0.9 * s["m"][0] + 0.1 * g]
        s["v"] = 0.999 * s["v"] + 0.001 * g * g
        m, v = s["m"][0] / (1 - 0.9**self.t), s["v"] / (1 - 0.999**self.t)
        return -1e-3 * rate * m / (np.sqrt(v + 1e-10) + 1e-8)


def test_celo_adam_is_its_formula(key, x64):
    lopt = jm.optimizers.celo_adam(12)
    theta = _started(lopt.init(key))
    params, gradients, losses = problem(key)
    by_hand = _AdamByHand(theta, jax.tree.map(np.asarray, params), 12)
    tx = lopt.transform(theta)
    state = tx.init(params)
    for grads, loss in zip(gradients, losses, strict=True):
        updates, state = tx.update(grads, state, value=jnp.asarray(loss))
        params = optax.apply_updates(params, updates)
        by_hand.update(jax.tree.map(np.asarray, grads), loss)
    for name, x in params.items():
        np.testing.assert_allclose(x, by_hand.params[name], rtol=1e-9)


def test_the_published_weights_of_celo_adam_have_its_schedule():
    """One for all tensors; it falls at the end."""
    if not DATA.exists():
        pytest.skip("needs Celo-Adam's published weights")
    tx = jm.optimizers.load_celo(DATA / "celo_adam_theta.state", total_steps=100)
    grads = {"a": jnp.ones(3), "b": jnp.array(-2.0)}
    state, update, sizes = tx.init(grads), jax.jit(tx.update), []
    for _ in range(100):
        updates, state = update(grads, state, value=jnp.ones(()))
        np.testing.assert_allclose(updates["a"], -updates["b"], rtol=1e-4)
        sizes.append(float(updates["b"]))
    assert 1e-4 < max(sizes) < 0.1
    assert 0 < sizes[-1] < max(sizes) / 5


def test_the_published_weights_repeat_a_recorded_run():
    if not DATA.exists():
        pytest.skip("needs Celo's published weights and a run of its authors' code")
    tx = jm.optimizers.load_celo(DATA / "celo_theta.state", total_steps=30)
    with np.load(DATA / "celo_trajectory_30.npz") as z:
        recorded = dict(z)
    params = start = {n: jnp.asarray(recorded[f"params/{n}"]) for n in SHAPES}
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(30):
        grads = {n: jnp.asarray(recorded[f"grads/{n}"][t]) for n in SHAPES}
        loss = jnp.asarray(recorded["losses"][t])
        updates, state = update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        for name, x in params.items():
            expected = recorded[f"celo/30/{name}"][t]
            np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-7)
            if t == 29:
                assert np.abs(x - start[name]).max() > 1e-3


def test_files_that_are_not_celos_are_named(tmp_path):
    path = tmp_path / "theta.state"
    path.write_bytes(b"nothing")
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(
            ValueError, match="`path` must be a file with Celo's weights"
        ):
            jm.optimizers.load_celo(wrong, total_steps=5)


def test_the_horizon_is_required(key):
    lopt = jm.optimizers.celo()
    tx = lopt.transform(lopt.init(key))
    with pytest.raises(ValueError, match="requires `total_steps`, got None"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=jnp.ones(()))
    with pytest.raises(ValueError, match="`total_steps` must be"):
        jm.optimizers.celo(0)
