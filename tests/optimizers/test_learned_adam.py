"""Adam with learned schedules, against its formula and what it promises."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

PARAMS = {"w": jnp.array([[0.5, -2.0, 1.0], [0.3, 0.2, -0.7]]), "b": jnp.array([0.1])}


def _moved(lopt, key):
    """Meta-parameters that are not the initial ones, which are Adam's."""
    noise = optax.tree.random_like(key, lopt.init(key))
    return optax.tree.add_scale(lopt.init(key), 0.3, noise)


def _run(tx, params, gradients, **extra):
    """Updates and states for a sequence of gradients."""
    state, updates, states = tx.init(params), [], []
    for grads in gradients:
        update, state = tx.update(grads, state, params, **extra)
        params = optax.apply_updates(params, update)
        updates.append(update)
        states.append(state)
    return updates, states


def _gradients(key, count=6, scale=1.0, params=PARAMS):
    draw = lambda key: optax.tree.random_like(key, params)
    drawn = [draw(key) for key in jax.random.split(key, count)]
    return [optax.tree.scale(scale, grads) for grads in drawn]


class _ByHand:
    """The rule by NumPy, tensor after tensor, from the docstring's formulas."""

    def __init__(self, theta, params, total_steps):
        self.theta = jax.tree.map(np.asarray, theta)
        self.params = {k: np.array(x) for k, x in params.items()}
        self.total, self.t = total_steps, 0
        zeros = lambda: {k: np.zeros_like(x) for k, x in self.params.items()}
        self.mu = {d: zeros() for d in (0.5, 0.9, 0.98)}
        self.nu = {d: zeros() for d in (0.99, 0.999)}
        self.rate = dict.fromkeys(params, 0.0)
        self.agreement = dict.fromkeys(params, 0.0)

    def update(self, grads):
        t, total = self.t, self.total
        seen, means, directions = {}, {}, {}
        roots = {k: np.sqrt(x.size) for k, x in self.params.items()}
        share = {k: root / sum(roots.values()) for k, root in roots.items()}
        count = sum(roots.values()) ** 2 / sum(root**2 for root in roots.values())
        for k, g in grads.items():
            before = self.mu[0.9][k].copy()
            for d in self.mu:
                self.mu[d][k] = d * self.mu[d][k] + (1 - d) * g
            for d in self.nu:
                self.nu[d][k] = d * self.nu[d][k] + (1 - d) * g**2
            v = np.maximum(*(self.nu[d][k] / (1 - d ** (t + 1)) for d in self.nu))
            m = [self.mu[d][k] / (1 - d ** (t + 1)) / np.sqrt(v) for d in self.mu]
            g, p = g / np.sqrt(v), self.params[k]
            directions[k] = [g, *m]
            dot = lambda a, b: np.mean(a * b)
            cosine = lambda a, b: (
                dot(a, b) / np.sqrt((dot(a, a) + 1e-12) * (dot(b, b) + 1e-12))
            )
            log = lambda a, least: np.log(dot(a, a) + least) / 2
            old = before / np.sqrt(v)
            cos = dot(g, old) / np.sqrt(dot(old, old) * dot(g, g) + 1e-5)
            self.agreement[k] = 0.9 * self.agreement[k] + 0.1 * cos
            seen[k] = {
                "agreement": self.agreement[k] / (1 - 0.9 ** (t + 1)),
                "fast": cosine(m[0], m[1]),
                "slow": cosine(m[1], m[2]),
                "log middle": log(m[1], 1e-6),
                "log slow": log(m[2], 1e-6),
                "log grad": log(g, 1e-6),
                "param": cosine(m[1], p),
                "log param": log(p, 1e-5),
                "log size": np.log(np.mean(np.sqrt(v))),
            }
        for name in ("agreement", "slow", "log middle", "log grad"):
            means[name] = sum(share[k] * seen[k][name] for k in grads)
        size = np.mean([seen[k]["log size"] for k in grads])
        updates = {}
        for k, p in self.params.items():
            x, left = seen[k], max(1 - t / total, 1 / total)
            fan_in = np.prod(p.shape[:-1]) if p.ndim > 1 else 1
            features = np.array(
                [
                    2 * t / total - 1,
                    np.log(left + 1 / total) / 2,
                    np.log(total / 300) / 2,
                    np.log((t + 1) / 30) / 2,
                    x["log param"] / 2 + 1.25,
                    np.log(fan_in + 1) / 3 - 0.5,
                    (np.log(p.size) - 5) / 3,
                    p.ndim < 2,
                    2 * x["agreement"],
                    x["fast"] - 0.5,
                    x["slow"] - 0.5,
                    x["log middle"] + 1,
                    x["log slow"] + 1.5,
                    x["log grad"],
                    2 * x["param"],
                    2 * means["agreement"],
                    means["slow"] - 0.5,
                    means["log middle"] + 1,
                    means["log grad"],
                    self.rate[k] / 2,
                    np.clip((x["log size"] - size) / 3, -2, 2),
                ]
            )
            hidden = np.tanh(
                features @ self.theta.hidden.kernel + self.theta.hidden.bias
            )
            out = hidden @ self.theta.output.kernel + self.theta.output.bias
            out = out + features @ self.theta.skip
            change = np.clip(out[1], -2, 2) / (5 + 0.15 * t)
            self.rate[k] = np.clip(self.rate[k] + change, -4, 4)
            exponent = min(np.clip(out[0], -4, 4) + self.rate[k], 3.5)
            warm_up = min(1, (t + 1) / (0.03 * total + 2))
            alpha = 0.01 * warm_up * left * np.exp(exponent)
            if p.ndim > 1:  # Kernels of 64 to 1,024 inputs.
                alpha *= np.sqrt(64 / np.clip(fan_in, 64, 1024))
            alpha *= np.sqrt(min(1, 8 / count))  # More than eight tensors.
            mixing = np.array([0, 0, 1, 0]) + out[2:] / 2
            pairs = zip(mixing, directions[k], strict=True)
            updates[k] = -alpha * sum(c * d for c, d in pairs)
        for k in grads:
            self.params[k] = self.params[k] + updates[k]
        self.t += 1
        return updates


WIDE = {"wide": jnp.ones((50, 3, 2)), "widest": jnp.ones((1100, 1))}
DEEP = {f"layer {i}": jnp.ones((2, 2)) for i in range(20)}


@pytest.mark.parametrize(
    ("scale", "more"), [(1.0, WIDE), (20.0, WIDE), (1e6, WIDE), (1.0, DEEP)]
)
def test_it_is_its_formula(scale, more, key, x64):
    """Also where one tensor's gradients are larger, kernels wide, or tensors many."""
    lopt = jm.optimizers.learned_adam(20)
    theta = _moved(lopt, key)
    params = PARAMS | more
    params = jax.tree.map(lambda x: x.astype(float), params)
    by_hand = _ByHand(theta, params, 20)
    gradients = [
        {**grads, "w": scale * grads["w"]} for grads in _gradients(key, params=params)
    ]
    updates, _ = _run(lopt.transform(theta), params, gradients)
    for found, grads in zip(updates, gradients, strict=True):
        expected = by_hand.update(jax.tree.map(np.asarray, grads))
        chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-8)


def test_untrained_it_is_adam_with_a_schedule(key):
    """For gradients of constant size, of which all second moments are the same."""
    lopt = jm.optimizers.learned_adam(20)
    signs = [jax.tree.map(jnp.sign, grads) for grads in _gradients(key, 8)]
    found, _ = _run(lopt.transform(lopt.init(key)), PARAMS, signs)
    rate = lambda t: 0.01 * jnp.minimum(1, (t + 1) / 2.6) * (1 - t / 20)
    expected, _ = _run(optax.adam(rate, eps=0), PARAMS, signs)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_it_does_not_know_the_scale_of_the_loss(scale, key):
    lopt = jm.optimizers.learned_adam(20)
    tx = lopt.transform(_moved(lopt, key))
    one, _ = _run(tx, PARAMS, _gradients(key))
    other, _ = _run(tx, PARAMS, _gradients(key, scale=scale))
    chex.assert_trees_all_close(one, other, rtol=2e-3)


def test_zero_gradients_move_nothing(key):
    lopt = jm.optimizers.learned_adam(20)
    zeros = [optax.tree.zeros_like(PARAMS)] * 3
    updates, _ = _run(lopt.transform(_moved(lopt, key)), PARAMS, zeros)
    assert optax.tree.norm(updates) == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_a_non_finite_gradient_is_skipped_counted_and_halves_the_rate(bad, key):
    lopt = jm.optimizers.learned_adam(1000)
    tx = lopt.transform(_moved(lopt, key))
    gradients = _gradients(key, 3)
    broken = gradients[1] | {"b": jnp.array([bad])}
    updates, states = _run(tx, PARAMS, [gradients[0], broken, gradients[2]])
    assert optax.tree.norm(updates[1]) == 0
    assert [int(state.skipped) for state in states] == [0, 1, 1]
    assert [int(state.count) for state in states] == [1, 1, 2]
    chex.assert_trees_all_equal(
        (states[0].mu, states[0].nu), (states[1].mu, states[1].nu)
    )
    drop = optax.tree.sub(states[1].rate, states[0].rate)
    chex.assert_trees_all_close(
        drop, jax.tree.map(lambda _: -np.log(2), drop), rtol=1e-5
    )
    chex.assert_tree_all_finite(updates[2])
    assert optax.tree.norm(updates[2]) > 0


def test_weight_decay_is_that_of_adamw(key):
    """In proportion to the rate, which alone reaches parameters without gradient."""
    plain, decaying = (
        jm.optimizers.learned_adam(20, weight_decay=decay) for decay in (0.0, 0.5)
    )
    theta = _moved(plain, key)
    grads = _gradients(key, 1)
    (without,), _ = _run(plain.transform(theta), PARAMS, grads)
    (with_decay,), _ = _run(decaying.transform(theta), PARAMS, grads)
    shrunk = optax.tree.sub(with_decay, without)
    for name, x in PARAMS.items():
        rate = -shrunk[name] / (0.5 * x)
        np.testing.assert_allclose(rate, rate.ravel()[0], rtol=1e-3)
        assert rate.ravel()[0] > 0


def test_the_horizon_may_be_told_later_and_traced(key):
    told, fixed = jm.optimizers.learned_adam(), jm.optimizers.learned_adam(20)
    theta = _moved(told, key)
    expected, _ = _run(fixed.transform(theta), PARAMS, _gradients(key))
    tx = told.transform(theta)
    run = lambda total: _run(tx, PARAMS, _gradients(key), total_steps=total)[0]
    chex.assert_trees_all_close(jax.jit(run)(20), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="requires `total_steps`, got None"):
        _run(tx, PARAMS, _gradients(key, 1))


def test_past_its_horizon_it_goes_on_slowly(key):
    lopt = jm.optimizers.learned_adam(10)
    tx = lopt.transform(lopt.init(key))
    updates, _ = _run(tx, PARAMS, _gradients(key, 1) * 40)
    sizes = np.array([float(optax.tree.norm(u)) for u in updates])
    assert np.isfinite(sizes).all()
    np.testing.assert_allclose(sizes[10:], sizes[9], rtol=1e-3)
    assert sizes[9] < sizes.max() / 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total_steps": 0}, "`total_steps` must be"),
        ({"hidden_size": 0}, "`hidden_size` must be"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0"),
        ({"base_rate": 0.0}, "`base_rate` must be"),
    ],
)
def test_invalid_settings_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        jm.optimizers.learned_adam(**options)
