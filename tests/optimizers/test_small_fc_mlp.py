"""learned_optimization's MLP, against a loop by NumPy; its files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import jaxmeta as jm
from tests.optimizers._by_hand import published_small_fc_mlp

SHAPES = {"scalar": (), "bias": (5,), "dense": (7, 4), "conv": (3, 3, 2, 4)}


def _by_hand(theta, p, gradients):
    """Updates of one tensor: its moments along a last axis, as in the paper's code."""
    theta = jax.tree.map(np.asarray, theta)
    move = lambda decays, by: 1 - np.exp(10 * (np.log(1 - np.array(decays)) / 10 + by))
    d_m = move([0.9, 0.99, 0.999], theta.mu_decays)
    d_v = move([0.999], theta.nu_decays)
    d_f = move([0.9, 0.99, 0.999], theta.factored_decays)
    shape, p = p.shape, np.atleast_1d(np.asarray(p))
    m, v, updates = np.zeros((*p.shape, 3)), np.zeros((*p.shape, 1)), []
    rsqrt = lambda x: 1 / np.sqrt(x)
    safe = lambda x: rsqrt(np.maximum(x, 1e-9))
    if p.ndim > 1:
        d1, d0 = (int(i) for i in np.argsort(p.shape, kind="stable")[-2:])
        row, col = (np.zeros((*np.delete(p.shape, i), 3)) for i in (d0, d1))
    else:
        full = np.zeros((*p.shape, 3))
    for t, g in enumerate(gradients):
        g = np.asarray(g).reshape(p.shape)[..., None]
        m, v = d_m * m + (1 - d_m) * g, d_v * v + (1 - d_v) * g * g
        square = g * g + 1e-30
        if p.ndim > 1:
            row = d_f * row + (1 - d_f) * square.mean(d0)
            col = d_f * col + (1 - d_f) * square.mean(d1)
            reduced = d1 - 1 if d1 > d0 else d1
            factor = safe(row / (row.mean(reduced, keepdims=True) + 1e-9))
            scale = np.expand_dims(factor, d0) * np.expand_dims(safe(col), d1)
            fac_g, fac_m = g * scale, m * scale
            rows = np.repeat(np.expand_dims(row, d0), p.shape[d0], d0)
            columns = np.repeat(np.expand_dims(col, d1), p.shape[d1], d1)
        else:
            full = d_f * full + (1 - d_f) * square
            fac_g, fac_m = g * safe(full + 1e-9), m * (full + 1e-6) ** -0.5
            rows = columns = full
        root = rsqrt(v + 1e-6)
        x = [g, p[..., None], m, v, m * root, root, fac_g, rows, columns]
        x += [rsqrt(rows + 1e-8), rsqrt(columns + 1e-8), fac_m]
        x = np.concatenate(x, -1)
        axes = tuple(range(p.ndim))
        x = x * rsqrt(1e-5 + np.mean(x**2, axes, keepdims=True))
        scales = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000]
        time = np.tanh(t / np.array(scales) - 1)
        x = np.concatenate([x, np.broadcast_to(time, (*p.shape, 11))], -1)
        for i, layer in enumerate(theta.layers):
            x = (np.maximum(x, 0) if i else x) @ layer.kernel + layer.bias
        step = x[..., 0] * np.exp(1e-3 * x[..., 1]) * 1e-3
        p = p - step
        updates.append(-step.reshape(shape))
    return updates


def _moved(key):
    """With decays that are not the initial ones."""
    theta = jm.optimizers.small_fc_mlp().init(key)
    by = jnp.array([0.05, -0.1, 0.02])
    return theta._replace(mu_decays=by, nu_decays=-by[:1], factored_decays=by[::-1])


def test_it_is_its_formula(key, x64):
    theta = _moved(key)
    draw = lambda key: {n: jax.random.normal(key, s) for n, s in SHAPES.items()}
    params, *gradients = map(draw, jax.random.split(key, 7))
    tx = jm.optimizers.small_fc_mlp().transform(theta)
    state, start, found = tx.init(params), params, []
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    for name, p in start.items():
        expected = _by_hand(theta, p, [grads[name] for grads in gradients])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[name], theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_it_reads_what_learned_optimization_saves(is_checkpoint, key, tmp_path):
    theta = _moved(key)
    tree = published_small_fc_mlp(theta)
    saved = {"params": tree, "gen_id": "", "step": 3} if is_checkpoint else tree
    path = tmp_path / "theta.state"
    path.write_bytes(serialization.msgpack_serialize(saved))
    grads = jnp.array([[0.5, -1.0], [2.0, 0.1]])
    found, expected = (
        tx.update(grads, tx.init(grads), grads)[0]
        for tx in (
            jm.optimizers.load_small_fc_mlp(path),
            jm.optimizers.small_fc_mlp().transform(theta),
        )
    )
    np.testing.assert_array_equal(found, expected)


def test_other_files_and_sizes_are_named(tmp_path):
    path = tmp_path / "theta.state"
    path.write_bytes(b"nothing")
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(
            ValueError, match="`path` must be a file with AdafacMLPLOpt"
        ):
            jm.optimizers.load_small_fc_mlp(wrong)
    for name in ("hidden_size", "num_layers"):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            jm.optimizers.small_fc_mlp(**{name: 0})
