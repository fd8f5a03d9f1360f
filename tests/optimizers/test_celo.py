"""Celo, against a loop by NumPy and against a recorded run of its authors' code."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "celo"
SHAPES = {"scalar": (), "bias": (5,), "dense": (7, 4), "conv": (3, 3, 2, 4)}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


class _ByHand:
    """The update by NumPy, tensor after tensor and feature after feature."""

    def __init__(self, theta, params, total_steps):
        self.theta = jax.tree.map(np.asarray, theta)
        self.total, self.t, self.params = total_steps, 0, params
        self.hidden, self.cell = self.theta.hidden, self.theta.cell
        self.means, self.minima = np.zeros(10), np.full(10, 1e12)
        self.moments = {name: self._start(x) for name, x in params.items()}

    def _start(self, x):
        zeros = [np.zeros_like(x)] * 3
        found = {"m": zeros, "v": np.zeros_like(x)}
        if x.ndim < 2:
            return found | {"f": zeros}
        second, largest = (int(i) for i in np.argsort(x.shape, kind="stable")[-2:])
        rows, columns = (np.zeros(np.delete(x.shape, i)) for i in (largest, second))
        axes = {"largest": largest, "second": second}
        return found | axes | {"r": [rows] * 3, "c": [columns] * 3}

    def rate(self, loss):
        decays = np.exp(-1 / np.logspace(1, np.log10(self.total), 10))
        correction = 1 - decays ** (self.t + 1)
        if self.t:
            loss = min(loss, 2 * abs(np.max(self.means / correction)))
        self.means = decays * self.means + (1 - decays) * loss
        mean = self.means / correction
        self.minima = np.minimum(self.minima, mean)
        least = self.minima[:-1]
        trend = (mean[:-1] - least) / np.maximum(1e-8, mean[1:] - least) - 1
        trend = np.clip(trend, -1, 1) * (self.t >= 2)
        centres = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])
        x = np.concatenate([np.tanh(10 * (self.t / self.total - centres)), trend])
        theta = self.theta
        pooled = np.maximum(x @ theta.pooled.kernel + theta.pooled.bias, 0)
        x = pooled + x @ theta.inputs.kernel + theta.inputs.bias
        gates = np.concatenate([x, self.hidden]) @ theta.lstm.kernel + theta.lstm.bias
        i, g, f, o = np.split(gates, 4)
        self.cell = _sigmoid(f + 1) * self.cell + _sigmoid(i) * np.tanh(g)
        self.hidden = _sigmoid(o) * np.tanh(self.cell)
        self.t += 1
        return 0.1 * np.exp(self.hidden @ theta.rate.kernel + theta.rate.bias)[0]

    def update(self, grads, loss):
        rate = self.rate(loss)
        updates = {n: self._tensor(n, g, rate) for n, g in grads.items()}
        self.params = {n: x + updates[n] for n, x in self.params.items()}

    def _tensor(self, name, g, rate):
        g, p, s = np.clip(g, -1000, 1000), self.params[name], self.moments[name]
        decays, root = (0.9, 0.99, 0.999), lambda x: 1 / np.sqrt(np.maximum(x, 1e-9))
        s["m"] = [d * m + (1 - d) * g for d, m in zip(decays, s["m"], strict=True)]
        s["v"] = 0.999 * s["v"] + 0.001 * g * g
        square, inverse = g * g + 1e-30, 1 / np.sqrt(s["v"] + 1e-6)
        mix = lambda old, new: [
            d * x + (1 - d) * new for d, x in zip(decays, old, strict=True)
        ]
        if "f" in s:
            s["f"] = rows = columns = mix(s["f"], square)
            of_grads = [g * root(x + 1e-9) for x in rows]
            of_momenta = [m * x**-0.5 for m, x in zip(s["m"], rows, strict=True)]
        else:
            largest, second = s["largest"], s["second"]
            s["r"] = mix(s["r"], square.mean(largest))
            s["c"] = mix(s["c"], square.mean(second))
            kept = second - 1 if second > largest else second
            scales = [
                np.expand_dims(root(r / (r.mean(kept, keepdims=True) + 1e-9)), largest)
                * np.expand_dims(root(c), second)
                for r, c in zip(s["r"], s["c"], strict=True)
            ]
            rows = [np.expand_dims(r, largest) + 0 * g for r in s["r"]]
            columns = [np.expand_dims(c, second) + 0 * g for c in s["c"]]
            of_grads = [g * scale for scale in scales]
            of_momenta = [m * x for m, x in zip(s["m"], scales, strict=True)]
        features = [g, np.clip(g, -0.1, 0.1), p, *s["m"], s["v"]]
        features += [m * inverse for m in s["m"]] + [inverse, *of_grads, g * inverse]
        features += [*rows, *columns]
        features += [1 / np.sqrt(x + 1e-8) for x in (*rows, *columns)] + of_momenta
        x = np.stack([f / np.sqrt(1e-5 + np.mean(f * f)) for f in features], -1)
        first, *others = self.theta.direction
        x = x @ first.kernel + first.bias
        for layer in others:
            x = np.maximum(x, 0) @ layer.kernel + layer.bias
        size = np.sqrt(np.mean(p * p) + 1e-9)
        return -1e-3 * rate * size * x[..., 0] * np.exp(1e-3 * x[..., 1])


def _problem(key):
    """Parameters, and gradients and rising and falling losses of eight updates."""
    draw = lambda key: {n: jax.random.normal(key, s) for n, s in SHAPES.items()}
    keys = jax.random.split(key, 9)
    losses = [2.0, 1.5, 9.0, 1.0, 0.7, 0.9, 1.1, 0.2]
    return draw(keys[0]), [draw(k) for k in keys[1:]], losses


def test_it_is_its_formula(key, x64):
    lopt = jm.optimizers.celo(12)
    theta = lopt.init(key)
    theta = theta._replace(hidden=jnp.ones(64) / 3, cell=-jnp.ones(64))
    params, gradients, losses = _problem(key)
    by_hand = _ByHand(theta, jax.tree.map(np.asarray, params), 12)
    tx = lopt.transform(theta)
    state, start = tx.init(params), params
    for grads, loss in zip(gradients, losses, strict=True):
        updates, state = tx.update(grads, state, params, value=jnp.asarray(loss))
        params = optax.apply_updates(params, updates)
        by_hand.update(jax.tree.map(np.asarray, grads), loss)
        for name, x in params.items():
            moved = np.abs(by_hand.params[name] - start[name]).max()
            np.testing.assert_allclose(x, by_hand.params[name], atol=1e-9 * moved)


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
    for wrong in (path, tmp_path / "missing", DATA / "celo_adam_theta.state"):
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
