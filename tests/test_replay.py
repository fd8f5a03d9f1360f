"""Backpropagation through coordinatewise rules, block by block, against the whole."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxmeta as jm
from jaxmeta import _replay, _unroll

RULES = {
    "lstm": lambda: jm.optimizers.lstm(3),
    "lstm, narrow state": lambda: jm.optimizers.lstm(3, state_dtype=jnp.bfloat16),
    "lstm, own features": lambda: jm.optimizers.lstm(3, preprocess=_own_features),
    "rnnprop": lambda: jm.optimizers.rnnprop(3),
    "meta_lstm": lambda: jm.optimizers.meta_lstm(3),
    "partition": lambda: jm.optimizers.partition(
        {
            "vector": jm.optimizers.rnnprop(2),
            "matrix": jm.optimizers.lstm(3),
        },
        lambda p: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", p),
    ),
}
STEPS = 4


def _own_features(grads):
    return jnp.stack([jnp.tanh(grads), grads], -1)


def _loss(params, key, step, data):
    x = jax.random.normal(key, (5, 3))
    hidden = jnp.tanh(x @ params["w"] + jnp.broadcast_to(params["b"], (5, 7)))
    return jnp.mean((hidden @ params["v"] - data) ** 2), jnp.sum(hidden)


def _params():
    shapes = {"w": (3, 7), "b": (7,), "v": (7, 2)}  # 42: blocks of 14, or 9 padded.
    keys = jax.random.split(jax.random.key(1), 3)
    draw = lambda key, shape: jax.random.normal(key, shape) / 3
    return {name: draw(k, shapes[name]) for k, name in zip(keys, shapes, strict=True)}


def _without_mark(tx):
    return optax.GradientTransformationExtraArgs(*tx)


def _applies(tx, params):
    return _replay.applies(tx, params, tx.init(params))


def _meta_loss(lopt, mark, order, theta, params, state):
    """Of all that an unrolled loop returns, each part weighed differently."""
    tx = mark(lopt.transform(theta))
    assert _applies(tx, params) == (mark is not _without_mark)
    keys = jax.random.split(jax.random.key(2), STEPS)
    result = _unroll.unroll(_loss, tx, params, keys, 0.5, order=order, state=state)
    of_state = [
        jnp.sum(jnp.sin(x.astype(jnp.float32)))
        for x in jax.tree.leaves(result.state)
        if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    last, _ = _loss(result.params, keys[0], STEPS, 0.5)
    return jnp.arange(STEPS) @ result.losses + last + sum(of_state), result


@pytest.mark.parametrize(
    ("name", "order", "block"),
    [
        *((name, "first-order", 9) for name in RULES),
        ("meta_lstm", "constant", 9),
        ("lstm", "constant", 15),
        ("lstm", "first-order", 1000),
    ],
)
def test_derivatives_are_those_of_the_whole(order, name, block, monkeypatch, x64):
    """By theta, parameters and a state in mid-run; of losses, parameters and state."""
    monkeypatch.setattr(_replay, "BLOCK", block)
    lopt, params = RULES[name](), _params()
    theta = lopt.init(jax.random.key(0))
    moved = lambda x: x + jnp.asarray(2 if x.dtype == jnp.int32 else 0.1, x.dtype)
    state = jax.tree.map(moved, lopt.transform(theta).init(params))

    def by_theta_and_params(mark):
        fn = functools.partial(_meta_loss, lopt, mark, order)
        grad = jax.value_and_grad(fn, (0, 1), has_aux=True)
        return jax.jit(grad)(theta, params, state)

    found, expected = (
        by_theta_and_params(lambda tx: tx),
        by_theta_and_params(_without_mark),
    )
    narrow = name == "lstm, narrow state"
    chex.assert_trees_all_close(found, expected, rtol=1e-2 if narrow else 1e-12)
    assert optax.tree.norm(found[1][0]) > 1e-3


def test_blocks_at_once_are_the_same(monkeypatch, x64):
    """The way of GPUs and TPUs, which is one program for many blocks."""
    found = []
    monkeypatch.setattr(_replay, "BLOCK", 9)
    monkeypatch.setattr(_replay, "_TOGETHER", 3)  # 5 blocks: 3, and 2 that are left.
    lopt, params = jm.optimizers.lstm(3), _params()
    theta = lopt.init(jax.random.key(0))
    state = lopt.transform(theta).init(params)
    for platform in ("cpu", "default"):
        choose = lambda *args, platform=platform, **branches: branches[platform](*args)
        monkeypatch.setattr(jax.lax, "platform_dependent", choose)
        fn = functools.partial(_meta_loss, lopt, lambda tx: tx, "first-order")
        grad = jax.jit(jax.value_and_grad(fn, (0, 1), has_aux=True))
        found.append(grad(theta, params, state))
    chex.assert_trees_all_close(*found, rtol=1e-12)


@pytest.mark.parametrize("block", [9, 100])
def test_many_problems_are_a_loop_over_them(block, monkeypatch, x64):
    """In turn; or several at once, if they are smaller than a block."""
    monkeypatch.setattr(_replay, "BLOCK", block)
    lopt, params = jm.optimizers.lstm(3), _params()
    many = jax.tree.map(lambda x: jnp.stack([x, -x, x / 2]), params)
    theta = lopt.init(jax.random.key(0))
    init = lopt.transform(theta).init

    def by_theta_and_params(theta, params):
        fn = functools.partial(_meta_loss, lopt, lambda tx: tx, "first-order")
        return jax.value_and_grad(fn, (0, 1), has_aux=True)(theta, params, init(params))

    found = jax.jit(jax.vmap(by_theta_and_params, (None, 0)))(theta, many)
    one = jax.jit(by_theta_and_params)
    expected = [one(theta, jax.tree.map(lambda x, i=i: x[i], many)) for i in range(3)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *expected)
    chex.assert_trees_all_close(found, stacked, rtol=1e-12)


def test_derivatives_by_the_state_are_those_of_the_whole(monkeypatch, x64):
    monkeypatch.setattr(_replay, "BLOCK", 9)
    lopt, params = jm.optimizers.lstm(3), _params()
    theta = lopt.init(jax.random.key(0))
    state = lopt.transform(theta).init(params)

    def by_state(mark):
        fn = functools.partial(_meta_loss, lopt, mark, "first-order")
        return jax.jit(jax.grad(fn, 2, has_aux=True))(theta, params, state)[0]

    found, expected = by_state(lambda tx: tx), by_state(_without_mark)
    chex.assert_trees_all_close(found, expected, rtol=1e-12)
    assert optax.tree.norm(found) > 1e-3


@pytest.mark.parametrize(
    "name", ["lstm_gac", "mlp", "ntm_bfgs", "lstm, features of the leaf"]
)
def test_rules_that_join_coordinates_are_not_taken_apart(name):
    of_leaf = lambda g: (g / (1e-8 + jnp.linalg.norm(g)))[..., None]
    lopt = {
        "lstm_gac": lambda: jm.optimizers.lstm_gac(3),
        "mlp": jm.optimizers.mlp,
        "ntm_bfgs": lambda: jm.optimizers.ntm_bfgs(3),
        "lstm, features of the leaf": lambda: jm.optimizers.lstm(3, preprocess=of_leaf),
    }[name]()
    tx = lopt.transform(lopt.init(jax.random.key(0)))
    assert not _applies(tx, _params())


def test_what_is_composed_of_a_rule_is_not_taken_apart():
    lopt = jm.optimizers.lstm(3)
    tx = lopt.transform(lopt.init(jax.random.key(0)))
    assert _applies(tx, _params())
    chained = optax.chain(optax.clip_by_global_norm(1.0), tx)
    assert not _applies(chained, _params())
    lopts = {"own": lopt, "of none": lopt}
    lopt = jm.optimizers.partition(lopts, lambda p: jax.tree.map(lambda _: "own", p))
    parted = lopt.transform(lopt.init(jax.random.key(0)))
    assert not _applies(parted, _params())
    mixed = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    assert not _applies(tx, mixed)


def test_a_step_needs_no_memory_for_the_gates():
    """Beside blocks: parameters, states and K gradients, not K times the gates."""
    lopt = jm.optimizers.lstm(20)
    params = jnp.zeros(32 * _replay.BLOCK)
    theta = lopt.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(2), 20)
    loss = lambda params, key, step, data: (jnp.sum((params - 1) ** 2), None)

    def temporaries(mark):
        def last(theta):
            tx = mark(lopt.transform(theta))
            args = loss, tx, params, keys, None
            return jnp.sum(_unroll.unroll(*args, order="first-order").losses)

        compiled = jax.jit(jax.grad(last)).lower(theta).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(lambda tx: tx) < temporaries(_without_mark) / 3
