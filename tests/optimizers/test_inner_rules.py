"""Rules for inner loops against optax's, and which of optax's are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from benchmarks import inner_rules

SHAPES = {"scalar": (), "bias": (3,), "matrix": (4, 3), "kernel": (3, 3, 2, 4)}
# Name -> first argument; clips act on the larger of the gradients below.
RULES = {
    "clip_by_global_norm": 0.7,
    "clip_by_block_rms": 0.3,
    "adaptive_grad_clip": 0.1,
    "normalize_by_update_norm": 2.0,
    "adam": 0.1,
    "adamw": 0.1,
}
CLIPS = ("clip_by_global_norm", "clip_by_block_rms", "adaptive_grad_clip")
MODEL = jm.Model(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w)


def _tree(key, shapes=SHAPES):
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _moves(tx):
    """Gradients of several steps -> the parameters after them."""

    def move(all_grads, params):
        state = tx.init(params)
        for grads in all_grads:
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return move


def _pair(name, argument):
    return (getattr(library, name)(argument) for library in (jm.optimizers, optax))


class TestAgainstOptax:
    @pytest.mark.parametrize(("name", "argument"), RULES.items())
    def test_updates_and_derivatives_are_those_of_optax(self, name, argument, key, x64):
        """By gradients, parameters, and the limit or rate."""
        keys = jax.random.split(key, 4)
        grads = tuple(
            optax.tree.scale(size, _tree(k))
            for size, k in zip((0.01, 3.0), keys[:2], strict=True)
        )

        @jax.jit
        def both(weights, *args):
            def move(library, grads, params, argument):
                return _moves(getattr(library, name)(argument))(grads, params)

            pairs = [
                jax.vjp(functools.partial(move, library), *args)
                for library in (jm.optimizers, optax)
            ]
            return [(moved, backward(weights)) for moved, backward in pairs]

        found, expected = both(_tree(keys[2]), grads, _tree(keys[3]), argument)
        _assert_close(found[0], expected[0], 1e-12)
        _assert_close(found[1], expected[1], 1e-10)
        assert abs(found[1][-1]) > 1e-3

    def test_half_precision_and_masked_leaves(self, key):
        mask = {name: name != "bias" for name in SHAPES}
        halves = optax.tree.cast(_tree(key), jnp.bfloat16)

        @jax.jit
        def update(tree):
            return {
                name: [
                    optax.masked(tx, mask).update(
                        tree, optax.masked(tx, mask).init(tree), tree
                    )[0]
                    for tx in _pair(name, argument)
                ]
                for name, argument in RULES.items()
            }

        for found, expected in update(halves).values():
            assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(found))
            np.testing.assert_array_equal(found["bias"], halves["bias"])
            _assert_close(optax.tree.cast(found, float), expected, 0.02)


class TestAtZero:
    @pytest.mark.parametrize("name", CLIPS)
    def test_a_clip_is_the_identity(self, name, key):
        tx = getattr(jm.optimizers, name)(0.1)
        zeros, params = jnp.zeros((3, 2)), _tree(key, {"w": (3, 2)})["w"]
        clip = lambda grads: tx.update(grads, tx.init(params), params)[0]
        found = jax.jacrev(clip)(zeros).reshape(6, 6)
        np.testing.assert_array_equal(found, jnp.eye(6))

    @pytest.mark.parametrize("name", ["clip_by_block_rms", "adaptive_grad_clip"])
    def test_a_block_that_is_zero_leaves_the_others_clipped(self, name, key):
        params = _tree(key, {"zero": (2, 1), "other": (2, 1)})
        grads = params | {"zero": jnp.zeros((2, 1))}
        ours, theirs = _pair(name, 0.1)
        derivative = lambda tx: jax.jacrev(
            lambda g: tx.update(g, tx.init(params), params)[0]
        )(grads)
        found, expected = derivative(ours), derivative(theirs)
        np.testing.assert_array_equal(found["zero"]["zero"].reshape(2, 2), np.eye(2))
        np.testing.assert_allclose(
            found["other"]["other"], expected["other"]["other"], rtol=1e-6
        )
        assert jnp.isnan(expected["zero"]["zero"]).any()

    def test_adaptive_clip_of_parameters_that_are_zero(self):
        """They have the norm `eps`, whatever they do under it."""
        tx, grads = jm.optimizers.adaptive_grad_clip(0.1), jnp.array([3.0, 4.0])
        clip = lambda params: tx.update(grads, tx.init(params), params)[0]
        moved, backward = jax.vjp(clip, jnp.zeros(2))
        np.testing.assert_allclose(moved, [0.6e-4, 0.8e-4], rtol=1e-6)
        np.testing.assert_array_equal(backward(moved)[0], 0)

    @pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-5, 1e-3])
    def test_a_normalised_update_has_a_bounded_derivative(self, size):
        tx = jm.optimizers.normalize_by_update_norm()
        normalize = lambda g: tx.update(g, tx.init(g))[0]
        slopes = jax.jacrev(normalize)(size * jnp.array([0.6, 0.8]))
        assert jnp.abs(slopes).max() <= 1e5

    @pytest.mark.parametrize("name", CLIPS)
    def test_a_minimum_with_curvature_has_the_meta_gradient_of_descent(self, name, x64):
        """No gradient, but a Hessian: a clip that does not act changes nothing."""
        inputs, targets = jnp.eye(2), jnp.array([0.4, -0.3])
        task = jm.Task(jm.Examples(inputs, targets), jm.Examples(inputs, targets + 1))
        descent = optax.sgd(0.1)
        clipped = optax.chain(getattr(jm.optimizers, name)(10.0), descent)
        found, expected = (
            jm.maml(
                MODEL, jm.losses.squared_error, inner_tx=tx, inner_steps=3
            ).meta_grad(jax.random.key(0), targets, task)[0]
            for tx in (clipped, descent)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        np.testing.assert_allclose(
            found, -(0.9**3), rtol=1e-12
        )  # 0.9: 1 - rate * Hessian

    def test_weight_decay_keeps_its_derivative(self):
        tx = jm.optimizers.adamw(0.5, weight_decay=0.1)
        after = lambda w: _moves(tx)((jnp.zeros(2),) * 2, w).sum()
        np.testing.assert_allclose(jax.grad(after)(jnp.ones(2)), 0.95**2, rtol=1e-6)


class TestTable:
    """`python -m benchmarks.inner_rules` writes the table of the documentation."""

    @pytest.mark.parametrize("name", inner_rules.rules())
    def test_a_row_is_what_is_measured(self, name):
        found = inner_rules.measure(inner_rules.rules()[name])
        if name.startswith("jm."):
            assert {x.verdict for x in found.values()} <= {"right", "bounded"}
        table = inner_rules.committed_table()
        if f"optax {optax.__version__}:" not in table:
            pytest.skip(f"The table is not of optax {optax.__version__}.")
        assert inner_rules.row(name, found) in table.splitlines()

    def test_it_has_every_rule(self):
        rows = inner_rules.committed_table().splitlines()[4:]
        assert [row.split("`")[1] for row in rows] == list(inner_rules.rules())
        for row in rows:
            *cells, instead = (cell.strip() for cell in row.split("|")[1:-1])
            assert bool({"NaN", "wrong", "unbounded"} & set(cells)) == bool(instead)


class TestCheckInnerTx:
    @pytest.mark.parametrize("name", RULES)
    def test_ours_pass(self, name):
        jm.testing.check_inner_tx(getattr(jm.optimizers, name)(RULES[name]))

    def test_what_is_not_bounded_is_said(self):
        with pytest.raises(AssertionError, match=r"derivative of nan .*'vector'\] are"):
            jm.testing.check_inner_tx(optax.adam(0.1))
        with pytest.raises(AssertionError, match=r"derivative of \de\+07 where"):
            jm.testing.check_inner_tx(optax.adamax(0.1))

    def test_one_leaf_that_is_zero_is_enough(self):
        """The other gradients are one, at which this rule has no derivative."""
        norm = lambda x: jnp.sqrt(jnp.sum(x**2))
        rule = optax.stateless(
            lambda grads, params: jax.tree.map(
                lambda g: g * norm(grads["vector"] - 1), grads
            )
        )
        with pytest.raises(AssertionError, match=r"gradients of \['matrix'\] are zero"):
            jm.testing.check_inner_tx(rule)

    def test_a_learned_rule_is_refused(self):
        with pytest.raises(ValueError, match="`inner_tx` must be an optax transform"):
            jm.testing.check_inner_tx(jm.optimizers.lstm(4))


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda o: o.clip_by_global_norm(0.0), "`max_norm` must be positive and"),
            (lambda o: o.clip_by_block_rms(-1.0), "`threshold` must be positive and"),
            (lambda o: o.adaptive_grad_clip(0.1, eps=0), "`eps` must be positive and"),
            (lambda o: o.normalize_by_update_norm(grad_floor=0), "`grad_floor` must"),
            (lambda o: o.adamw(0.1, weight_decay=-1.0), "`weight_decay` must be at"),
            (lambda o: o.adamw(0.1, grad_floor=0), "`grad_floor` must be positive"),
            (
                lambda o: o.clip_by_global_norm(lambda step: 1.0),
                r"must be a number, got <function.*inject_hyperparams",
            ),
        ],
    )
    def test_bad_settings_are_named(self, make, message):
        with pytest.raises(ValueError, match=message):
            make(jm.optimizers)

    def test_adaptive_clip_requires_parameters(self):
        tx = jm.optimizers.adaptive_grad_clip(0.1)
        with pytest.raises(ValueError, match="requires `params`, got None"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def _assert_close(found, expected, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, np.asarray(b, a.dtype), rtol=rtol, atol=rtol)
