"""Celo2, against a loop by NumPy and against optax; its files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import jaxmeta as jm
from tests.optimizers._by_hand import SHAPES, problem, published_network

DECAYS = np.array([0.9, 0.99, 0.999])


def _over_size(x, axes):
    return x / np.sqrt(np.mean(x**2, axes, keepdims=True) + 1e-9)


def _orthogonal(x):
    """Newton-Schulz, each matrix of a stack for itself."""
    if x.ndim > 2:
        return np.stack([_orthogonal(y) for y in x])
    if x.shape[0] > x.shape[1]:
        return _orthogonal(x.T).T
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def _by_hand(theta, p, gradients, rates, decay, orthogonalize):
    """Parameters of one tensor after each gradient."""
    layers = jax.tree.map(np.asarray, theta.layers)
    shape, p = p.shape, np.atleast_1d(np.asarray(p))
    is_matrix = p.ndim > 1
    m, v = np.zeros((*p.shape, 3)), np.zeros((*p.shape, 1))
    if is_matrix:
        d1, d0 = (int(i) for i in np.argsort(p.shape, kind="stable")[-2:])
        row, col = (np.zeros((*np.delete(p.shape, i), 3)) for i in (d0, d1))
    else:
        full = np.zeros((*p.shape, 3))
    found = []
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True)):
        g = np.asarray(g).reshape(p.shape)[..., None]
        m, v = DECAYS * m + (1 - DECAYS) * g, 0.95 * v + 0.05 * g * g
        square = g * g + 1e-30
        root = 1 / np.sqrt(v + 1e-8)
        safe = lambda x: 1 / np.sqrt(np.maximum(x, 1e-9))
        if is_matrix:
            row = DECAYS * row + (1 - DECAYS) * square.mean(d0)
            col = DECAYS * col + (1 - DECAYS) * square.mean(d1)
            reduced = d1 - 1 if d1 > d0 else d1
            factor = safe(row / (row.mean(reduced, keepdims=True) + 1e-9))
            scale = np.expand_dims(factor, d0) * np.expand_dims(safe(col), d1)
            rows = np.repeat(np.expand_dims(row, d0), p.shape[d0], d0)
            columns = np.repeat(np.expand_dims(col, d1), p.shape[d1], d1)
        else:
            full = DECAYS * full + (1 - DECAYS) * square
            scale = safe(full + 1e-9)
        x = [g, np.clip(g, -0.1, 0.1), p[..., None], m, v, m * root, root, g * scale]
        x += [g * root]
        if is_matrix:
            x += [rows, columns, 1 / np.sqrt(rows + 1e-8), 1 / np.sqrt(columns + 1e-8)]
            x += [m * scale]
        axes = tuple(range(p.ndim))[-2:]
        x = np.concatenate([_over_size(part, axes) for part in x], -1)
        for i, layer in enumerate(layers):
            kernel = layer.kernel[: x.shape[-1]]
            x = (np.maximum(x, 0) if i else x) @ kernel + layer.bias
        step = x[..., 0]
        if orthogonalize and is_matrix:
            step = _orthogonal(step)
        step = _over_size(step, axes)
        if orthogonalize and not is_matrix:
            size = np.sqrt(v[..., 0] / (1 - 0.95 ** (t + 1))) + 1e-8
            step = m[..., 0] / (1 - 0.9 ** (t + 1)) / size
        p = p - rate * (step + decay * p)
        found.append(p.reshape(shape))
    return found


@pytest.mark.parametrize("orthogonalize", [True, False])
def test_it_is_its_formula(orthogonalize, key, x64):
    schedule = lambda t: 0.01 / (t + 1)
    lopt = jm.optimizers.celo2(schedule, weight_decay=0.1, orthogonalize=orthogonalize)
    theta = lopt.init(key)
    params, gradients, _ = problem(key)
    tx = lopt.transform(theta)
    state, start, found = tx.init(params), params, []
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    rates = [schedule(t) for t in range(len(gradients))]
    for name in SHAPES:
        grads = [each[name] for each in gradients]
        expected = _by_hand(theta, start[name], grads, rates, 0.1, orthogonalize)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[name], theirs, rtol=1e-8, atol=1e-10)


def test_vectors_get_adamw(key):
    lopt = jm.optimizers.celo2(1e-2, weight_decay=0.1)
    params, gradients, _ = problem(key)
    params = expected = {"bias": params["bias"]}
    tx = lopt.transform(lopt.init(key))
    adamw = optax.adamw(1e-2, 0.9, 0.95, weight_decay=0.1)
    state, other = tx.init(params), adamw.init(params)
    for grads in gradients:
        grads = {"bias": grads["bias"]}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        updates, other = adamw.update(grads, other, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params["bias"], expected["bias"], rtol=1e-5)


def test_it_reads_published_weights_and_names_other_files(key, tmp_path):
    path = tmp_path / "theta.state"
    lopt = jm.optimizers.celo2(1e-2)
    theta = lopt.init(key)
    tree = jax.tree.map(np.asarray, {"ff_mod_stack": published_network(theta.layers)})
    path.write_bytes(serialization.msgpack_serialize(tree))
    grads = jnp.array([[0.5, -1.0], [2.0, 0.1]])
    found, expected = (
        tx.update(grads, tx.init(grads), grads)[0]
        for tx in (jm.optimizers.load_celo2(path, 1e-2), lopt.transform(theta))
    )
    np.testing.assert_array_equal(found, expected)
    tree["ff_mod_stack"]["~"]["b1"] = np.full(8, np.nan, "f")
    path.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(ValueError, match=r"not finite, at \['layers.1.bias'\]"):
        jm.optimizers.load_celo2(path, 1e-2)
    path.write_bytes(b"nothing")
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="`path` must be a file with Celo2's"):
            jm.optimizers.load_celo2(wrong, 1e-2)
    with pytest.raises(ValueError, match="`weight_decay` must be at least 0"):
        jm.optimizers.celo2(1e-2, weight_decay=-1.0)
