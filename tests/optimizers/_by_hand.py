"""Celo and VeLO by NumPy, tensor after tensor and feature after feature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {"scalar": (), "bias": (5,), "dense": (7, 4), "conv": (3, 3, 2, 4)}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


class CeloByHand:
    """Celo's update."""

    def __init__(self, theta, params, total_steps):
        self.theta = jax.tree.map(np.asarray, theta)
        self.total, self.t, self.params = total_steps, 0, params
        self.hidden, self.cell = self.theta.scheduler.hidden, self.theta.scheduler.cell
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

    def rates(self, loss):
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
        self.t += 1
        return self._rates(x)

    def _rates(self, seen):
        theta = self.theta.scheduler
        pooled = np.maximum(seen @ theta.pooled.kernel + theta.pooled.bias, 0)
        x = pooled + seen @ theta.inputs.kernel + theta.inputs.bias
        self.hidden, self.cell = self._lstm(x, self.hidden, self.cell)
        rate = 0.1 * np.exp(self.hidden @ theta.rate.kernel + theta.rate.bias)[0]
        return dict.fromkeys(self.params, rate)

    def _lstm(self, x, hidden, cell):
        layer = self.theta.scheduler.lstm
        gates = np.concatenate([x, hidden]) @ layer.kernel + layer.bias
        i, g, f, o = np.split(gates, 4)
        cell = _sigmoid(f + 1) * cell + _sigmoid(i) * np.tanh(g)
        return _sigmoid(o) * np.tanh(cell), cell

    def update(self, grads, loss):
        rates = self.rates(loss)
        updates = {n: self._tensor(n, g, rates[n]) for n, g in grads.items()}
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
        first, *others = self._layers(name)
        x = x @ first.kernel + first.bias
        for layer in others:
            x = np.maximum(x, 0) @ layer.kernel + layer.bias
        size = np.sqrt(np.mean(p * p) + 1e-9)
        return -1e-3 * rate * size * x[..., 0] * np.exp(1e-3 * x[..., 1])

    def _layers(self, name):
        del name
        return self.theta.direction


class VeloByHand(CeloByHand):
    """VeLO's update: an LSTM and a mixture of networks for each tensor."""

    def __init__(self, theta, params, total_steps):
        super().__init__(theta, params, total_steps)
        self.hidden = dict.fromkeys(params, self.hidden)
        self.cell = dict.fromkeys(params, self.cell)
        self.mixture = {}

    def _rates(self, seen):
        theta, rates = self.theta.scheduler, {}
        own = {n: np.concatenate([seen, self._own(n)]) for n in self.params}
        relu = lambda x: np.maximum(x @ theta.pooled.kernel + theta.pooled.bias, 0)
        pooled = np.max([relu(x) for x in own.values()], 0)
        for n, x in own.items():
            x = pooled + x @ theta.inputs.kernel + theta.inputs.bias
            state = self._lstm(x, self.hidden[n], self.cell[n])
            self.hidden[n], self.cell[n] = state
            rates[n] = (state[0] @ theta.rate.kernel + theta.rate.bias)[0]
            weights = state[0] @ self.theta.controls.kernel + self.theta.controls.bias
            self.mixture[n] = jax.tree.map(
                lambda x, w=weights: 100 * np.tensordot(w, x, 1) / len(w),
                self.theta.networks,
            )
        return rates

    def _own(self, name):
        p, s = self.params[name], self.moments[name]
        scale = 1 / np.sqrt(max(1e-9, np.mean(p**2)))
        m, v = [x * scale for x in s["m"]], s["v"] * scale
        log = lambda x: np.clip(np.log(1e-8 + abs(10 * x)), -5, 5) * 0.5
        rank = np.eye(5)[sum(n > 1 for n in p.shape)]
        var_m = [log(np.var(x)) for x in m]
        var_v = [log(np.mean((v - np.mean(x)) ** 2)) for x in m]
        return np.concatenate([[log(np.mean(v))], rank, var_m, var_v])

    def _layers(self, name):
        return self.mixture[name]


def problem(key):
    """Parameters, and gradients and rising and falling losses of eight updates."""
    draw = lambda key: {n: jax.random.normal(key, s) for n, s in SHAPES.items()}
    keys = jax.random.split(key, 9)
    losses = [2.0, 1.5, 9.0, 1.0, 0.7, 0.9, 1.1, 0.2]
    return draw(keys[0]), [draw(k) for k in keys[1:]], losses


def check_run(lopt, theta, make, key):
    """Eight updates, each as `make(theta, params, 12)` computes it."""
    params, gradients, losses = problem(key)
    by_hand = make(theta, jax.tree.map(np.asarray, params), 12)
    tx = lopt.transform(theta)
    state, start = tx.init(params), params
    for grads, loss in zip(gradients, losses, strict=True):
        updates, state = tx.update(grads, state, params, value=jnp.asarray(loss))
        params = optax.apply_updates(params, updates)
        by_hand.update(jax.tree.map(np.asarray, grads), loss)
        for name, x in params.items():
            moved = np.abs(by_hand.params[name] - start[name]).max()
            np.testing.assert_allclose(x, by_hand.params[name], atol=1e-9 * moved)


def published_network(layers):
    """Layers as Celo's authors save them: a first kernel for each kind of feature."""
    widths = [1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3]
    first, second, third = layers
    kinds = np.split(first.kernel, np.cumsum(widths), -2)
    network = {f"w0__{i}": x for i, x in enumerate(kinds)}
    network |= {"w1": second.kernel, "w2": third.kernel}
    network |= {f"b{i}": layer.bias for i, layer in enumerate(layers)}
    return {"~": network}


def published_small_fc_mlp(theta):
    """Weights of `small_fc_mlp` as learned_optimization saves them."""
    network = {}
    for i, layer in enumerate(theta.layers):
        network |= {f"w{i}": layer.kernel, f"b{i}": layer.bias}
    tree = {
        "momentum_decays": theta.mu_decays,
        "rms_decays": theta.nu_decays,
        "adafactor_decays": theta.factored_decays,
        "nn": {"~": network},
    }
    return jax.tree.map(np.asarray, tree)
