"""Every learned optimizer is a good optax citizen: a row in `OPTIMIZERS`."""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta.optimizers import _blocks, _memory


class Row(NamedTuple):
    """A learned optimizer, and in what it is not like the others."""

    make: Callable[[], jm.LearnedOptimizer]
    coupled: bool = False  # Coordinates see each other, ...
    coupled_in_leaf: bool = False  # ... or those of a leaf do.
    num_whole: int = 0  # Arrays of its state over all coordinates together.
    gathers: bool = False  # Needs whole tensors.
    needs_value: bool = False  # Cannot do without the loss.
    is_for_one_tree: bool = False  # Theta is shaped like the parameters.
    # What an infinite gradient does; or passes, or lasts, or spreads over its tensor,
    # or is skipped like a NaN.
    infinite: str = "saturates"


def _scaled_lstm():
    return jm.optimizers.lstm(
        3, 1, preprocess=jm.optimizers.scaled_gradient(2.0), output_scale=1.0
    )


def _moved(lopt):
    """With a theta that is not its initial one: Adam's, or one at kinks of ReLU."""

    def init(key, params=None):
        theta = lopt.init(key, params)
        noise = optax.tree.random_like(key, theta)
        return optax.tree.add_scale(theta, 0.3, noise)

    return lopt._replace(init=init)


OPTIMIZERS = {
    "lstm": Row(lambda: jm.optimizers.lstm(4)),
    "lstm, one layer, scaled": Row(_scaled_lstm),
    "lstm, bfloat16 state": Row(
        lambda: jm.optimizers.lstm(4, state_dtype=jnp.bfloat16)
    ),
    "lstm, in blocks": Row(lambda: jm.optimizers.lstm(4, block_size=2)),
    "lstm_gac": Row(lambda: jm.optimizers.lstm_gac(4, num_averaged=1), coupled=True),
    "ntm_bfgs": Row(
        lambda: jm.optimizers.ntm_bfgs(4), coupled=True, num_whole=1, gathers=True
    ),
    "ntm_bfgs, limited": Row(lambda: jm.optimizers.ntm_bfgs(4, window=2), coupled=True),
    "rnnprop": Row(lambda: jm.optimizers.rnnprop(4), infinite="lasts"),
    "mlp": Row(lambda: jm.optimizers.mlp(4), coupled_in_leaf=True, infinite="lasts"),
    "celo": Row(
        lambda: jm.optimizers.celo(10),
        coupled_in_leaf=True,
        num_whole=4,
        needs_value=True,
    ),
    "celo_adam": Row(
        lambda: jm.optimizers.celo_adam(10), num_whole=4, needs_value=True
    ),
    "celo2": Row(
        # Vectors, of which most of these tests are, get Adam's update.
        lambda: _moved(jm.optimizers.celo2(1e-3)),
        gathers=True,
    ),
    "small_fc_mlp": Row(
        lambda: _moved(jm.optimizers.small_fc_mlp()),
        coupled_in_leaf=True,
        infinite="spreads",
    ),
    "velo": Row(
        lambda: jm.optimizers.velo(10, hidden_size=6, num_networks=3),
        coupled=True,
        num_whole=2,
        needs_value=True,
    ),
    "learned_adam": Row(
        lambda: _moved(jm.optimizers.learned_adam(10)),
        coupled=True,
        infinite="is skipped",
    ),
    "learned_sgd": Row(jm.optimizers.learned_sgd, infinite="passes"),
    "learned_sgd, a rate a leaf": Row(
        lambda: jm.optimizers.learned_sgd(shared_by="leaf"),
        is_for_one_tree=True,
        infinite="passes",
    ),
    "learned_sgd, a rate a parameter and step": Row(
        lambda: jm.optimizers.learned_sgd(shared_by="none", num_steps=2),
        is_for_one_tree=True,
        infinite="passes",
    ),
    "meta_lstm": Row(
        lambda: jm.optimizers.meta_lstm(4), needs_value=True, infinite="passes"
    ),
    "partition": Row(
        lambda: jm.optimizers.partition(
            {"matrix": jm.optimizers.lstm(4), "other": jm.optimizers.lstm(3, 1)},
            lambda params: jax.tree.map(
                lambda p: "matrix" if jnp.ndim(p) > 1 else "other", params
            ),
        )
    ),
}


def test_groups_of_a_partition_are_named(key):
    lopt = OPTIMIZERS["partition"].make()
    for theta in (lopt.init(key)["matrix"], {"matrix": None}):
        with pytest.raises(ValueError, match=r"must have the groups \['matrix', 'oth"):
            lopt.transform(theta)


def test_plain_rules_in_a_partition_have_no_theta(key):
    rules = {"1": jm.optimizers.learned_sgd(0.5), "2": optax.sgd(0.1, momentum=0.9)}
    lopt = jm.optimizers.partition(rules, {"w": "1", "b": "2", "s": "2"})
    theta = lopt.init(key)
    assert set(theta) == {"1"}
    expected = optax.partition(
        rules | {"1": optax.sgd(0.5)}, {"w": "1", "b": "2", "s": "2"}
    )
    got = _run(lopt.transform(theta), _params())[0]
    chex.assert_trees_all_close(got, _run(expected, _params())[0], rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"must have the groups \['1'\], got \['1', '2"
    ):
        lopt.transform(theta | {"2": None})


def test_partitions_of_no_rules_are_named():
    partition = jm.optimizers.partition
    with pytest.raises(ValueError, match=r"`lopts` must have a learned rule.*optax\.p"):
        partition({"a": optax.sgd(0.1)}, lambda params: params)
    with pytest.raises(ValueError, match=r"`lopts\['a'\]` must be an optax transform"):
        partition({"a": 0.1}, lambda params: params)
    with pytest.raises(ValueError, match="`lopts` must map labels to rules"):
        partition([optax.sgd(0.1)], lambda params: params)


# Tests of a row run one after the other, and share what its updates compile to.


@pytest.fixture(params=OPTIMIZERS, scope="module")
def row(request):
    return OPTIMIZERS[request.param]


@pytest.fixture(scope="module")
def lopt(row):
    return row.make()


@pytest.fixture(scope="module")
def theta(lopt):
    return jax.jit(lopt.init)(jax.random.key(0), _params())


@pytest.fixture(scope="module")
def eager_tx(lopt, theta):
    return lopt.transform(theta)


@pytest.fixture(scope="module")
def tx(eager_tx):
    return eager_tx._replace(update=jax.jit(eager_tx.update))


def _params(dtype=jnp.float32):
    return {
        "w": jnp.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3),
        "b": jnp.array([0.5, -0.25, 1.5], dtype),
        "s": jnp.array(2.0, dtype),
    }


def _update(tx, grads, state, params=None, **extra):
    """One update; every rule is told the parameters and a loss."""
    params = grads if params is None else params
    return tx.update(grads, state, params, **({"value": jnp.array(1.0)} | extra))


def _shapes(lopt, key, params):
    """Shapes of an update, of the state after it and before: nothing is compiled."""

    def shapes(key, params):
        tx = lopt.transform(lopt.init(key, params))
        state = tx.init(params)
        return *_update(tx, params, state, params), state

    return jax.eval_shape(shapes, key, params)


def _run(tx, params, steps=3, **extra):
    """Minimises half the sum of squares; returns the parameters and the state."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = _update(tx, params, state, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def test_updates_are_shaped_like_gradients_and_move(tx):
    params = _params()
    updates, state = _update(tx, params, tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert optax.tree.norm(updates) > 0
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "adam", "curvature_sgd", "learned_rate"])
def test_fresh_states_can_be_donated(name, key):
    """No buffer is in two places, alone and in optax's wrappers."""
    params = _params()
    others = {
        "curvature_sgd": jm.optimizers.curvature_sgd,
        "learned_rate": lambda: jm.optimizers.learned_rate(optax.adam),
    }
    if name == "adam":
        tx = jm.optimizers.adam(0.1)
    else:
        lopt = OPTIMIZERS[name].make() if name in OPTIMIZERS else others[name]()
        tx = lopt.transform(lopt.init(key, params))
    mask = jax.tree.map(lambda _: True, params)
    wrapped = optax.chain(tx, optax.trace(0.9), optax.masked(tx, mask))
    state = (wrapped.init(params), optax.MultiSteps(tx, 2).init(params))
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_dtypes(tx, dtype):
    params = _params(dtype)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(functools.partial(_update, tx), params, state)
    chex.assert_trees_all_equal_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_keeps_float64(lopt, key):
    with jax.enable_x64(True):
        params = _params(jnp.float64)
        updates, *_ = _shapes(lopt, key, params)
        chex.assert_trees_all_equal_dtypes(updates, params)


def test_jit_agrees_with_eager_and_traces_once(eager_tx):
    params = _params()
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(lambda *a: _update(eager_tx, *a), n=1))
    eager = jitted = params
    eager_state, jitted_state = eager_tx.init(params), jax.jit(eager_tx.init)(params)
    for _ in range(3):
        updates, eager_state = _update(eager_tx, eager, eager_state, eager)
        eager = optax.apply_updates(eager, updates)
        updates, jitted_state = update(jitted, jitted_state)
        jitted = optax.apply_updates(jitted, updates)
    chex.assert_trees_all_close(jitted, eager, rtol=1e-5)


def test_ignores_extra_arguments(eager_tx, tx):
    told = jax.jit(functools.partial(eager_tx.update, other="x"))
    expected, _ = _run(tx, _params())
    got, _ = _run(tx._replace(update=told), _params())
    chex.assert_trees_all_equal(got, expected)


def test_the_loss_is_told_or_not_needed(row, tx):
    params = _params()
    state = tx.init(params)
    if row.needs_value:
        with pytest.raises(ValueError, match=r"requires .*`value`"):
            tx.update(params, state, params)
    else:
        updates, _ = tx.update(params, state, params)
        told, _ = _update(tx, params, state, params)
        chex.assert_trees_all_equal(updates, told)


def test_leaves_see_each_other_only_where_coupled(row, tx):
    params = _params()
    whole, _ = _run(tx, params)
    alone, _ = _run(tx, {"b": params["b"]})
    is_same = np.allclose(alone["b"], whole["b"], rtol=1e-6, atol=0)
    assert is_same == (not row.coupled)


def test_coordinates_see_each_other_only_where_coupled(row, tx):
    params = _params()
    moved = params | {"b": params["b"].at[1].set(3.0)}
    first, second = (_run(tx, p)[0]["b"] for p in (params, moved))
    is_same = np.allclose(first[::2], second[::2], rtol=1e-6, atol=0)
    assert is_same == (not (row.coupled or row.coupled_in_leaf))


def test_in_a_chain(tx):
    halved, _ = _run(optax.chain(tx, optax.scale(0.5)), _params(), steps=1)
    whole, _ = _run(tx, _params(), steps=1)
    half = jax.tree.map(lambda a, b: (a + b) / 2, _params(), whole)
    chex.assert_trees_all_close(halved, half, rtol=1e-6)


def test_masked_leaves_pass_unchanged(tx):
    params = _params()
    masked = optax.masked(tx, {"w": True, "b": False, "s": True})
    updates, _ = _update(masked, params, masked.init(params), params)
    rest = {"w": params["w"], "s": params["s"]}
    expected, _ = _update(tx, rest, tx.init(rest))
    chex.assert_trees_all_close(updates, expected | {"b": params["b"]}, rtol=1e-5)


def test_partition_gives_groups_their_own(lopt, key):
    params = _params()
    thetas = [lopt.init(k, params) for k in jax.random.split(key)]
    first, second = map(lopt.transform, thetas)
    tx = optax.partition({"1": first, "2": second}, {"w": "1", "b": "2", "s": "2"})
    got, _ = _run(tx, params)
    groups = {"w": params["w"]}, {"b": params["b"], "s": params["s"]}
    expected = _run(first, groups[0])[0] | _run(second, groups[1])[0]
    chex.assert_trees_all_close(got, expected, rtol=1e-5)


def test_multi_steps_update_with_the_mean(tx):
    params = _params()
    every_2 = optax.MultiSteps(tx, 2)
    state = every_2.init(params)
    updates, state = _update(every_2, params, state, params)
    assert optax.tree.norm(updates) == 0
    thrice = jax.tree.map(lambda x: 3 * x, params)
    updates, _ = _update(every_2, thrice, state, params)
    twice = jax.tree.map(lambda x: 2 * x, params)
    expected, _ = _update(tx, twice, tx.init(params), params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_inject_hyperparams_reaches_a_scale(lopt, theta):
    def make(theta, scale):
        return optax.chain(lopt.transform(theta), optax.scale(scale))

    params = _params()
    tx = optax.inject_hyperparams(make)(theta=theta, scale=0.5)
    state = tx.init(params)
    half, _ = _update(tx, params, state, params)
    state.hyperparams["scale"] = jnp.array(1.0)
    whole, _ = _update(tx, params, state, params)
    chex.assert_trees_all_close(jax.tree.map(lambda x: 2 * x, half), whole, rtol=1e-6)


def test_apply_if_finite_keeps_a_nan_out(tx):
    params = _params()
    safe = optax.apply_if_finite(tx, 5)
    state = safe.init(params)
    bad = params | {"b": params["b"].at[1].set(jnp.nan)}
    updates, state = _update(safe, bad, state, params)
    assert optax.tree.norm(updates) == 0
    chex.assert_trees_all_equal(state.inner_state, tx.init(params))
    updates, _ = _update(safe, params, state, params)
    expected, _ = _update(tx, params, tx.init(params), params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_a_nan_stays_in_its_coordinate(row, tx):
    if row.coupled or row.coupled_in_leaf:
        pytest.skip("coordinates see each other")
    params = _params()
    bad = params | {"b": params["b"].at[1].set(jnp.nan)}
    state = tx.init(params)
    _, state = _update(tx, bad, state, params)
    updates, _ = _update(tx, params, state, params)
    is_nan = np.isnan(updates["b"])
    assert not is_nan[::2].any()
    has_memory = any(x.ndim > 0 for x in jax.tree.leaves(state))
    assert is_nan[1] == has_memory
    chex.assert_tree_all_finite((updates["w"], updates["s"]))


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf])
def test_an_infinite_gradient_does_what_the_docstring_says(row, tx, bad):
    params = _params()
    grads = params | {"b": params["b"].at[1].set(bad)}
    updates, state = _update(tx, grads, tx.init(params), params)
    later, _ = _update(tx, params, state, params)
    at_once, after = np.isfinite(updates["b"][1]), np.isfinite(later["b"][1])
    expected = {
        "saturates": (1, 1),
        "is skipped": (1, 1),
        "passes": (0, 1),
        "lasts": (0, 0),
        "spreads": (0, 0),
    }
    assert (at_once, after) == expected[row.infinite]
    if row.infinite == "is skipped":
        assert optax.tree.norm(updates) == 0
    for rest in (updates, later):
        chex.assert_tree_all_finite((rest["w"], rest["s"]))
        if row.infinite != "spreads":
            chex.assert_tree_all_finite(rest["b"][::2])


def test_reduce_on_plateau_is_told_the_value(tx):
    chained = optax.chain(tx, optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    params = _params()
    state = chained.init(params)
    for _ in range(4):
        updates, state = _update(chained, params, state)
    assert state[1].scale < 1
    chex.assert_tree_all_finite(updates)


def test_map_params_reaches_the_parameters_state_alone(row, tx):
    params = _params()
    state = tx.init(params)
    seen = jax.tree.leaves(optax.tree.map_params(tx, lambda x: "p", state))
    num_leaves = len(jax.tree.leaves(state)) - row.num_whole
    count = sum(x.shape == () and x.dtype == jnp.int32 for x in jax.tree.leaves(state))
    assert seen.count("p") == num_leaves - count


def test_states_are_sharded_like_the_parameters(lopt, key, monkeypatch):
    monkeypatch.setattr(_blocks, "_CPU_BLOCK", 1)  # Even so such leaves go whole.
    tx = lopt.transform(lopt.init(key, {"w": jnp.ones((8, 3))}))
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spec = jax.P("x", None)
        params = {"w": jax.device_put(jnp.ones((8, 3)), spec)}
        state = jax.jit(tx.init)(params)
        updates, after = jax.jit(functools.partial(_update, tx))(params, state)
        assert jax.typeof(updates["w"]).sharding.spec == spec
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert jax.typeof(x) == jax.typeof(y)
            if x.shape[:1] == (8,):
                assert jax.typeof(x).sharding.spec[0] == "x"


def test_no_mesh_of_automatic_axes_gathers(row, lopt, key, monkeypatch):
    """A parameter sharded along either axis: its update is computed where it lies."""
    if row.gathers:
        pytest.skip("its memory is one matrix, or it orthogonalises whole ones")
    monkeypatch.setattr(_blocks, "_CPU_BLOCK", 1)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=auto)
    params = {"rows": jnp.ones((8, 4)), "columns": jnp.ones((8, 4)) / 2}
    params["both"] = params["rows"] / 4
    specs = {"rows": jax.P("x"), "columns": jax.P(None, "y"), "both": jax.P("x", "y")}
    tx = lopt.transform(lopt.init(key, params))
    state = tx.init(params)

    def shard(path, x):
        names = [getattr(k, "key", None) for k in path if hasattr(k, "key")]
        spec = specs.get(names[-1]) if names and x.ndim > 1 else None
        return jax.device_put(x, jax.NamedSharding(mesh, spec or jax.P()))

    sharded = jax.tree_util.tree_map_with_path(shard, (params, state))
    compiled = jax.jit(functools.partial(_update, tx)).lower(*sharded).compile()
    # Sums of shards at most, a number a device; a parameter has 32.
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", compiled.as_text())
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in gathered]
    assert max(sizes, default=0) <= mesh.size
    got = compiled(*sharded)
    assert got[0]["both"].sharding.spec == specs["both"]
    chex.assert_trees_all_close(got, _update(tx, params, state), atol=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"a": None, "b": jnp.ones(2)},
        {"a": jnp.zeros((0, 3)), "b": jnp.ones(2)},
        jnp.array(1.0),
        (jnp.ones(2), [jnp.ones(())]),
    ],
    ids=["empty", "None", "zero-size", "scalar", "nested"],
)
def test_trees_of_any_shape(lopt, key, params):
    updates, after, state = _shapes(lopt, key, params)
    chex.assert_trees_all_equal_shapes(updates, params)
    chex.assert_trees_all_equal_shapes(after, state)


def test_complex_parameters_are_named(tx):
    with pytest.raises(ValueError, match=r"complex leaves.*split_real_and_imaginary"):
        tx.init({"w": jnp.ones(2, jnp.complex64)})


def test_complex_parameters_work_when_split(row, tx):
    if row.needs_value:
        pytest.skip("optax's split passes no extra arguments")
    if row.is_for_one_tree:
        pytest.skip("theta has the leaves of another tree")
    params = {"w": jnp.array([1.0 + 2.0j, -0.5j])}
    split = optax.contrib.split_real_and_imaginary(tx)
    state = jax.eval_shape(split.init, params)
    updates, _ = jax.eval_shape(split.update, params, state, params)
    assert updates["w"].dtype == jnp.complex64


def test_vmap_agrees_with_a_loop(tx):
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), _params())
    together = jax.jit(jax.vmap(lambda p: _run(tx, p)[0]))(many)
    for i in range(3):
        alone, _ = _run(tx, jax.tree.map(lambda x: x[i], many))
        mine = jax.tree.map(lambda x: x[i], together)
        chex.assert_trees_all_close(mine, alone, rtol=1e-5)


def test_state_comes_back_from_a_checkpoint(tx, tmp_path):
    _, state = _run(tx, _params())
    jm.training.save(tmp_path / "saved", state)
    like = jax.eval_shape(tx.init, _params())
    chex.assert_trees_all_equal(jm.training.load(tmp_path / "saved", like=like), state)


def test_derivative_in_theta_through_a_scan(lopt, key):
    """Against central finite differences along a random direction."""
    with jax.enable_x64(True):
        params = _params(jnp.float64)
        theta = jax.jit(lopt.init)(key, params)
        if "bfloat16" in str(
            [x.dtype for x in jax.tree.leaves(lopt.transform(theta).init(params))]
        ):
            pytest.skip("finite differences see the rounding of the state")

        @jax.jit
        @jax.value_and_grad
        def final(theta):
            tx = lopt.transform(theta)

            def step(carry, _):
                p, s = carry
                updates, s = _update(tx, p, s, p)
                return (optax.apply_updates(p, updates), s), None

            (p, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=4)
            return optax.tree.norm(p, squared=True)

        direction = jax.jit(optax.tree.random_like)(key, theta)
        move = lambda h: optax.tree.add_scale(theta, h, direction)
        expected = (final(move(1e-5))[0] - final(move(-1e-5))[0]) / 2e-5
        got = optax.tree.vdot(final(theta)[1], direction)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_second_derivatives_are_finite_at_zero_gradients(tx):
    def after_two(params):
        return optax.tree.norm(_run(tx, params, steps=2)[0], squared=True)

    zeros = optax.tree.zeros_like(_params())
    chex.assert_tree_all_finite(jax.jit(jax.grad(after_two))(zeros))


def test_theta_of_another_architecture_is_named(lopt, key):
    other = jm.optimizers.lstm(7).init(key)
    with pytest.raises(
        ValueError,
        match=r"`theta` (does not match this arch|must have (rates|the groups))",
    ):
        _run(lopt.transform(other), _params())


@pytest.mark.parametrize("other", ["shape", "last axis", "tree", "optimizer"])
def test_a_state_of_another_tree_is_named(row, tx, other):
    params = _params()
    if len(jax.tree.leaves(tx.init(params))) < 2:
        pytest.skip("the state is a count")
    changed = {
        "shape": params | {"w": jnp.ones((4, 3))},
        "last axis": params | {"w": jnp.ones((2, 5))},
        "tree": params | {"new": jnp.ones(2)},
        "optimizer": params,
    }[other]
    state = optax.adam(1.0).init(params) if other == "optimizer" else tx.init(params)
    with pytest.raises(ValueError, match="must match, with a state"):
        _update(tx, changed, state)


def test_a_maml_learns_it_together_with_the_initialisation(lopt, key):
    learner = jm.maml(
        jm.models.MLP([4, 1]), jm.losses.squared_error, inner_tx=lopt, inner_steps=2
    )
    task = jm.tasks.sinusoid(shots=3, queries=3)(key)
    meta_params = learner.init(key, task)
    grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
    chex.assert_tree_all_finite(grads)
    assert optax.tree.norm(grads.theta) > 0


# The LSTM itself.


def test_lstm_has_the_papers_size(key):
    theta = jm.optimizers.lstm(hidden_size=20, num_layers=2).init(key)
    assert sum(x.size for x in jax.tree.leaves(theta)) == 5141
    scaled = jm.optimizers.lstm(preprocess=jm.optimizers.scaled_gradient())
    assert sum(x.size for x in jax.tree.leaves(scaled.init(key))) == 5061


def test_lstm_agrees_with_flax(key):
    """The cell against flax.linen's, gate by gate."""
    import flax.linen as nn

    lopt = jm.optimizers.lstm(
        5, 1, preprocess=jm.optimizers.scaled_gradient(), output_scale=1.0
    )
    theta = lopt.init(key)
    layer, head = theta.layers[0], theta.head
    gates = jnp.split(layer.kernel, 4, -1)
    biases = jnp.split(layer.bias, 4)
    params = {}
    for name, kernel, bias in zip("ifog", gates, biases, strict=True):
        params[f"i{name}"] = {"kernel": kernel[:1]}
        params[f"h{name}"] = {"kernel": kernel[1:], "bias": bias}
    cell = nn.OptimizedLSTMCell(5)
    grads = jnp.array([[0.3], [-2.0], [0.0]])
    carry = cell.initialize_carry(key, grads.shape)
    tx = lopt.transform(theta)
    state = tx.init(grads[:, 0])
    for scale in (1.0, -0.5, 2.0):
        carry, hidden = cell.apply({"params": params}, carry, scale * grads)
        expected = hidden @ head.kernel[:, 0] + head.bias.item()
        updates, state = tx.update(scale * grads[:, 0], state)
        np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-7)


def test_preprocessing_is_checked():
    with pytest.raises(ValueError, match=r"`p` must be at most 80 .*, got 100"):
        jm.optimizers.log_gradient(100.0)
    with pytest.raises(ValueError, match=r"`preprocess` must map.*x\[\.\.\., None\]"):
        jm.optimizers.lstm(preprocess=lambda g: 10 * g)


def test_log_gradient_is_the_papers():
    p = 10.0
    grads = np.array([1.0, -3.0, np.exp(-10), 1e-6, -1e-6, 0.0])
    large = np.abs(grads) >= np.exp(-p)
    with np.errstate(divide="ignore"):
        first = np.where(large, np.log(np.abs(grads)) / p, -1)
    second = np.where(large, np.sign(grads), np.exp(p) * grads)
    got = jm.optimizers.log_gradient(p)(jnp.asarray(grads))
    np.testing.assert_allclose(got, np.stack([first, second], -1), rtol=1e-4, atol=1e-6)


def test_log_gradient_has_a_derivative_at_zero():
    slope = jax.jacfwd(jm.optimizers.log_gradient(10.0))(0.0)
    np.testing.assert_allclose(slope, [0.0, np.exp(10)], rtol=1e-5)


def test_blocks_within_shard_map(key, monkeypatch):
    """A device has its shard for itself, also where the state is not sharded yet."""
    monkeypatch.setattr(_blocks, "_CPU_BLOCK", 2)
    tx = jm.optimizers.lstm(3).transform(jm.optimizers.lstm(3).init(key))
    grads = jax.random.normal(key, (8, 40))
    sharded = jax.shard_map(
        tx.update,
        mesh=jm.training.task_mesh(jax.devices()),
        in_specs=(jax.P("tasks"), jax.P()),
        out_specs=jax.P("tasks"),
    )
    compiled = jax.jit(sharded).lower(grads, tx.init(grads[:1])).compile()
    assert " while(" in compiled.as_text()
    got = compiled(grads, tx.init(grads[:1]))
    chex.assert_trees_all_close(got, tx.update(grads, tx.init(grads)), atol=1e-6)


@pytest.mark.parametrize("name", ["hidden_size", "num_layers"])
def test_lstm_sizes_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be an int >= 1, got 0"):
        jm.optimizers.lstm(**{name: 0})


@pytest.mark.parametrize("block", [1, 4, 8])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_blocks_change_nothing(block, dtype, key, monkeypatch):
    """Also with something left of the last block; and derivatives are the whole's."""
    lopt = jm.optimizers.lstm(4, state_dtype=dtype)
    theta = lopt.init(key)
    params = {"w": jax.random.normal(key, (13, 11)), "b": jnp.ones(3)}

    def results():
        def run(theta):
            return _run(lopt.transform(theta), params)

        def weighted(theta):
            after, _ = run(theta)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(after))

        batched = jax.vmap(run)(jax.tree.map(lambda x: jnp.stack([x, -x]), theta))
        direction = jax.tree.map(jnp.ones_like, theta)
        curvature = jax.jvp(jax.grad(weighted), (theta,), (direction,))
        return run(theta), batched, curvature

    with monkeypatch.context() as patch:
        patch.setattr(_blocks, "at_coordinates", lambda step, size, *xs: step(*xs))
        expected = results()
    monkeypatch.setattr(_blocks, "_CPU_BLOCK", block)
    calls = []
    in_blocks = _blocks._in_blocks
    monkeypatch.setattr(
        _blocks, "_in_blocks", lambda *args: calls.append(0) or in_blocks(*args)
    )
    rtol = 1e-4 if dtype == jnp.float32 else 0.02
    chex.assert_trees_all_close(results(), expected, rtol=rtol, atol=1e-5)
    assert calls


def test_half_a_million_coordinates_need_little_memory(key):
    """Blocks reuse one buffer: the gates of all would take 640 bytes a coordinate."""
    tx = jm.optimizers.lstm().transform(jm.optimizers.lstm().init(key))
    grads = jax.ShapeDtypeStruct((2**19,), jnp.float32)
    state = jax.eval_shape(tx.init, grads)
    compiled = jax.jit(tx.update, donate_argnums=1).lower(grads, state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 32 * 2**19


# Averaging cells and memory.


def test_gac_without_averages_is_the_lstm(key):
    """All cells of a tree of one coordinate average over nothing else."""
    params = jnp.array([0.7])
    gac, plain = jm.optimizers.lstm_gac(4, num_averaged=4), jm.optimizers.lstm(4)
    theta = plain.init(key)
    got, _ = _run(gac.transform(theta), params)
    expected, _ = _run(plain.transform(theta), params)
    chex.assert_trees_all_close(got, expected, rtol=1e-6)


@pytest.mark.parametrize("make", [jm.optimizers.lstm, jm.optimizers.lstm_gac])
def test_lstm_starts_with_small_updates_in_proportion(make, key):
    grads = jnp.array([1.0, -0.3, 1e-4])
    updates, thetas = [], []
    for init_scale in (1.0, 0.1):
        lopt = make(3, 1, init_scale=init_scale)
        thetas.append(lopt.init(key))
        tx = lopt.transform(thetas[-1])
        updates.append(tx.update(grads, tx.init(grads))[0])
    assert float(jnp.abs(updates[0]).min()) > 1e-6
    np.testing.assert_allclose(updates[1], 0.1 * updates[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, thetas[0].layers, thetas[1].layers)


def test_gac_averages_over_the_coordinates_of_all_leaves(key):
    """One layer, by hand."""
    lopt = jm.optimizers.lstm_gac(
        3, 1, num_averaged=2, preprocess=jm.optimizers.scaled_gradient(), output_scale=1
    )
    theta = lopt.init(key)
    params = _params()
    tx = lopt.transform(theta)
    state = tx.init(params)
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    hidden = cell = jnp.zeros((flat.size, 3))
    for _ in range(2):
        updates, state = _update(tx, params, state)
        joined = jnp.concatenate([flat[:, None], hidden], 1)
        gates = joined @ theta.layers[0].kernel + theta.layers[0].bias[None]
        i, f, o, candidate = jnp.split(gates, 4, 1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        hidden = hidden.at[:, :2].set(hidden[:, :2].mean(0, keepdims=True))
        expected = (hidden @ theta.head.kernel)[:, 0] + theta.head.bias.item()
        got = jnp.concatenate([x.ravel() for x in jax.tree.leaves(updates)])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_too_many_averaged_cells_are_named():
    with pytest.raises(
        ValueError, match="`num_averaged` must be at most `hidden_size`"
    ):
        jm.optimizers.lstm_gac(4, num_averaged=5)


@pytest.mark.parametrize("window", [None, 5])
def test_memory_fed_with_bfgs_vectors_is_the_inverse_hessian(window, key):
    """BFGS as three writes a step, on a quadratic, against numpy's matrices."""
    with jax.enable_x64(True):
        memory = _memory.dense() if window is None else _memory.sliding(window, 3)
        tree = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(())}
        flat, unravel = jax.flatten_util.ravel_pytree(tree)
        n = flat.size
        ravel = lambda tree: np.asarray(jax.flatten_util.ravel_pytree(tree)[0])
        root = np.asarray(jax.random.normal(key, (n, n)))
        hessian = root @ root.T + np.eye(n)
        state = memory.init(tree, flat.dtype)
        h, x = np.eye(n), np.ones(n)
        for _ in range(5):
            step = -0.05 * h @ hessian @ x
            y = hessian @ step
            rho, hy = 1 / (y @ step), ravel(memory.read(state, unravel(y)))
            np.testing.assert_allclose(hy, h @ y, rtol=1e-9)
            # H + (rho^2 y'Hy + rho) s s' - rho s (Hy)' - rho (Hy) s'.
            a = [(rho**2 * y @ hy + rho) * step, -rho * step, -rho * hy]
            b = [step, hy, step]
            stack = lambda vectors: jax.tree.map(
                lambda *leaves: jnp.stack(leaves, -1), *map(unravel, vectors)
            )
            state = memory.write(state, stack(a), stack(b))
            left = np.eye(n) - rho * np.outer(step, y)
            h = left @ h @ left.T + rho * np.outer(step, step)
            x = x + step
        gradient = hessian @ x
        got = ravel(memory.read(state, unravel(jnp.asarray(gradient))))
        np.testing.assert_allclose(got, h @ gradient, rtol=1e-9)


def test_limited_memory_is_the_whole_one_within_its_window(key):
    params = _params()
    whole = jm.optimizers.ntm_bfgs(4, output_scale=1.0)
    theta = jax.tree.map(lambda x: 3 * x, whole.init(key))
    run = lambda lopt, steps: _run(lopt.transform(theta), params, steps)[0]
    for steps in range(1, 6):
        limited = jm.optimizers.ntm_bfgs(4, output_scale=1.0, window=3)
        is_same = np.allclose(
            run(limited, steps)["w"], run(whole, steps)["w"], rtol=1e-5, atol=0
        )
        # What the write after step 4 forgets is read at step 5, and seen at the sixth.
        assert is_same == (steps <= 5)
    difference = run(limited, 6)["w"] - run(whole, 6)["w"]
    assert jnp.abs(difference).max() > 1e-5


# Other rules.


def test_rnnprop_does_not_know_the_scale(key):
    lopt = jm.optimizers.rnnprop(4)
    tx = lopt.transform(lopt.init(key))
    params = _params()
    state = tx.init(params)
    scaled_state = state
    for _ in range(3):
        updates, state = _update(tx, params, state)
        scaled = jax.tree.map(lambda x: 1000 * x, params)
        scaled_updates, scaled_state = _update(tx, scaled, scaled_state)
    chex.assert_trees_all_close(scaled_updates, updates, rtol=1e-5)
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(updates)) < 0.1


def test_rnnprop_sees_the_directions_of_adam_and_rmsprop(key):
    """Its first step: both directions are signs."""
    lopt = jm.optimizers.rnnprop(4, 1)
    theta = lopt.init(key)
    tx = lopt.transform(theta)
    grads = jnp.array([0.3, -20.0])
    updates, _ = tx.update(grads, tx.init(grads))
    signs = jnp.sign(grads)[:, None]
    x = jax.nn.elu(jnp.concatenate([signs, signs], 1) @ theta.embedding.kernel)
    layer, head = theta.lstm.layers[0], theta.lstm.head
    gates = x @ layer.kernel[:4] + layer.bias[None]
    i, _, o, candidate = jnp.split(gates, 4, 1)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(jax.nn.sigmoid(i) * jnp.tanh(candidate))
    expected = 0.1 * jnp.tanh(hidden @ head.kernel)[:, 0]
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_rnnprop_is_its_formula(key):
    """Three steps of one layer, by NumPy in float64."""
    with jax.enable_x64(True):
        lopt = jm.optimizers.rnnprop(4, 1, decay=0.9)
        theta = lopt.init(key)
        tx = lopt.transform(theta)
        trajectory = np.array([[0.3, -20.0], [0.1, 5.0], [-0.4, 1.0]])
        state = tx.init(jnp.zeros(2))
        theta = jax.tree.map(np.asarray, theta)
        layer, head = theta.lstm.layers[0], theta.lstm.head
        sigmoid = lambda x: 1 / (1 + np.exp(-x))
        mu = nu = np.zeros(2)
        hidden = cell = np.zeros((2, 4))
        for t, grads in enumerate(trajectory, 1):
            mu, nu = 0.9 * mu + 0.1 * grads, 0.9 * nu + 0.1 * grads**2
            root = np.sqrt(nu / (1 - 0.9**t)) + 1e-8
            seen = np.stack([mu / (1 - 0.9**t) / root, grads / root], 1)
            x = seen @ theta.embedding.kernel + theta.embedding.bias
            x = np.where(x > 0, x, np.expm1(x))
            gates = np.concatenate([x, hidden], 1) @ layer.kernel + layer.bias
            i, f, o, candidate = np.split(gates, 4, 1)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(candidate)
            hidden = sigmoid(o) * np.tanh(cell)
            expected = 0.1 * np.tanh(hidden @ head.kernel + head.bias)[:, 0]
            updates, state = tx.update(jnp.asarray(grads), state)
            np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_mlp_is_its_formula(key):
    """Three steps by NumPy in float64: 19 features of each parameter."""
    with jax.enable_x64(True):
        lopt = jm.optimizers.mlp(4)
        theta = lopt.init(key)
        tx = lopt.transform(theta)
        params = np.array([0.5, -2.0])
        trajectory = np.array([[0.3, -20.0], [0.1, 5.0], [-0.4, 1.0]])
        state = tx.init(jnp.asarray(params))
        layers = [[np.asarray(x) for x in layer] for layer in theta]
        decays = np.array([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
        scales = np.array([10**k * m for k in range(5) for m in (1, 3)] + [10**5])
        momenta = np.zeros((2, 6))
        for t, grads in enumerate(trajectory):
            momenta = decays * momenta + (1 - decays) * grads[:, None]
            x = np.concatenate([grads[:, None], momenta, params[:, None]], 1)
            x = x / np.sqrt((x**2).mean(0) + 1e-10)
            time = np.broadcast_to(np.tanh(t / scales - 1), (2, 11))
            x = np.concatenate([x, time], 1)
            for kernel, bias in layers[:-1]:
                x = np.maximum(x @ kernel + bias, 0)
            direction, length = (x @ layers[-1][0] + layers[-1][1]).T
            expected = 1e-3 * direction * np.exp(1e-3 * length)
            updates, state = tx.update(jnp.asarray(grads), state, jnp.asarray(params))
            np.testing.assert_allclose(updates, expected, rtol=1e-9)


def test_mlp_does_not_know_the_scale(key):
    lopt = jm.optimizers.mlp(4)
    tx = lopt.transform(lopt.init(key))
    params = _params()
    one, other = (
        _update(tx, jax.tree.map(lambda x: scale * x, params), tx.init(params), params)
        for scale in (1e2, 1e5)
    )
    chex.assert_trees_all_close(one[0], other[0], rtol=1e-4)


def test_mlp_needs_the_parameters(key):
    lopt = jm.optimizers.mlp(4)
    tx = lopt.transform(lopt.init(key))
    with pytest.raises(ValueError, match=r"The update of `.*` requires `params`"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize("shared_by", ["all", "leaf", "none"])
def test_learned_sgd_is_sgd_at_first(shared_by, key):
    lopt = jm.optimizers.learned_sgd(0.1, shared_by=shared_by, num_steps=2)
    params = _params()
    got, _ = _run(lopt.transform(lopt.init(key, params)), params, steps=4)
    chex.assert_trees_all_close(got, _run(optax.sgd(0.1), params, steps=4)[0])


def test_learned_sgd_takes_the_rate_of_its_step(key):
    lopt = jm.optimizers.learned_sgd(num_steps=2)
    tx = lopt.transform(jnp.array([0.5, 0.25]))
    grads = jnp.ones(1)
    state = tx.init(grads)
    for expected in (-0.5, -0.25, -0.25):
        updates, state = tx.update(grads, state)
        assert updates[0] == expected


def test_learned_rate_names_a_theta_that_is_no_rate():
    lopt = jm.optimizers.learned_rate(optax.sgd)
    with pytest.raises(
        ValueError, match=r"`theta` does not match this architecture.*init"
    ):
        lopt.transform(jnp.ones(2))


def test_learned_rate_names_what_makes_no_rule(key):
    with pytest.raises(ValueError, match="`make_tx` must be a function"):
        jm.optimizers.learned_rate(optax.sgd(0.1))
    lopt = jm.optimizers.learned_rate(jm.optimizers.learned_sgd)
    with pytest.raises(
        ValueError, match=r"`make_tx\(learning_rate\)` must be an optax"
    ):
        lopt.transform(0.1)


def test_learned_sgd_names_what_is_missing(key):
    lopt = jm.optimizers.learned_sgd(shared_by="leaf")
    with pytest.raises(ValueError, match="`init` requires `params`"):
        lopt.init(key)
    with pytest.raises(ValueError, match="`shared_by` must be one of"):
        jm.optimizers.learned_sgd(shared_by="layer")


def test_meta_lstm_is_the_papers_cell(key):
    """Two steps of one coordinate, by hand from the paper's equations."""
    lopt = jm.optimizers.meta_lstm(3)
    theta = jax.tree.map(lambda x: 5 * x, lopt.init(key))
    tx = lopt.transform(theta)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    see = lambda x: np.asarray(jm.optimizers.log_gradient()(jnp.asarray(x)))
    dense = lambda layer, x: x @ np.asarray(layer.kernel) + np.asarray(layer.bias)
    c = 0.8
    hidden = cell = np.zeros(3)
    f_before = i_before = 0.0
    params, state = jnp.array([c]), tx.init(jnp.array([c]))
    for grad, loss in ((0.5, 2.0), (-0.01, 1.5)):
        x = np.concatenate([see(grad), see(loss), hidden])
        i, f, o, candidate = np.split(dense(theta.lstm, x), 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(candidate)
        hidden = sigmoid(o) * np.tanh(cell)
        f_before = dense(theta.forget_gate, [*hidden, c, f_before])[0]
        i_before = dense(theta.input_gate, [*hidden, c, i_before])[0]
        c = sigmoid(f_before) * c - sigmoid(i_before) * grad
        grads, value = jnp.array([grad]), jnp.array(loss)
        updates, state = tx.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params[0], c, rtol=1e-5)


def test_meta_lstm_starts_as_gradient_descent(key):
    lopt = jm.optimizers.meta_lstm()
    theta = lopt.init(key)
    assert (theta.forget_gate.bias >= 4).all()
    assert (theta.input_gate.bias <= -4).all()
    params = jnp.full(3, 1e-3)
    tx = lopt.transform(theta)
    updates, _ = _update(tx, jnp.ones(3), tx.init(params), params)
    assert (jnp.abs(updates + 0.01) < 0.01).all()
