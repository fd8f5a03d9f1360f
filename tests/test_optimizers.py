"""Every learned optimizer is a good optax citizen: a row in `OPTIMIZERS`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

OPTIMIZERS = {
    "lstm": lambda: jm.optimizers.lstm(4),
    "lstm, one layer, scaled": lambda: jm.optimizers.lstm(
        3, 1, preprocess=jm.optimizers.scaled_gradient(2.0), output_scale=1.0
    ),
    "lstm, bfloat16 state": lambda: jm.optimizers.lstm(4, state_dtype=jnp.bfloat16),
}


@pytest.fixture(params=OPTIMIZERS)
def lopt(request):
    return OPTIMIZERS[request.param]()


@pytest.fixture
def tx(lopt, key):
    return lopt.transform(lopt.init(key, _params()))


def _params(dtype=jnp.float32):
    return {
        "w": jnp.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3),
        "b": jnp.array([0.5, -0.25, 1.5], dtype),
        "s": jnp.array(2.0, dtype),
    }


def _run(tx, params, steps=3, **extra):
    """Minimises the sum of squares; returns the parameters and the state."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(params, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def test_updates_are_shaped_like_gradients_and_move(tx):
    params = _params()
    updates, state = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert optax.tree.norm(updates) > 0
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_dtypes(tx, dtype):
    params = _params(dtype)
    updates, state = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_equal_dtypes(updates, params)
    _, after = tx.update(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_keeps_float64(lopt, key):
    with jax.enable_x64(True):
        params = _params(jnp.float64)
        tx = lopt.transform(lopt.init(key, params))
        updates, _ = tx.update(params, tx.init(params), params)
        chex.assert_trees_all_equal_dtypes(updates, params)


def test_jit_agrees_with_eager_and_traces_once(tx):
    params = _params()
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    eager = jitted = params
    eager_state, jitted_state = tx.init(params), jax.jit(tx.init)(params)
    for _ in range(3):
        updates, eager_state = tx.update(eager, eager_state, eager)
        eager = optax.apply_updates(eager, updates)
        updates, jitted_state = update(jitted, jitted_state, jitted)
        jitted = optax.apply_updates(jitted, updates)
    chex.assert_trees_all_close(jitted, eager, rtol=1e-5)


def test_ignores_extra_arguments(tx):
    alone, _ = _run(tx, _params())
    told, _ = _run(tx, _params(), value=jnp.array(1.0), other="x")
    chex.assert_trees_all_equal(told, alone)


def test_coordinates_do_not_see_each_other(tx):
    params = _params()
    whole, _ = _run(tx, params)
    chex.assert_trees_all_close(_run(tx, {"b": params["b"]})[0]["b"], whole["b"])


def test_in_a_chain(tx):
    halved, _ = _run(optax.chain(tx, optax.scale(0.5)), _params(), steps=1)
    whole, _ = _run(tx, _params(), steps=1)
    half = jax.tree.map(lambda a, b: (a + b) / 2, _params(), whole)
    chex.assert_trees_all_close(halved, half, rtol=1e-6)


def test_masked_leaves_pass_unchanged(tx):
    params = _params()
    masked = optax.masked(tx, {"w": True, "b": False, "s": True})
    updates, _ = masked.update(params, masked.init(params), params)
    expected, _ = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_close(updates, expected | {"b": params["b"]}, rtol=1e-6)


def test_partition_gives_groups_their_own(lopt, key):
    params = _params()
    thetas = [lopt.init(k, params) for k in jax.random.split(key)]
    first, second = map(lopt.transform, thetas)
    tx = optax.partition({"1": first, "2": second}, {"w": "1", "b": "2", "s": "2"})
    got, _ = _run(tx, params)
    chex.assert_trees_all_close(got["w"], _run(first, params)[0]["w"], rtol=1e-6)
    chex.assert_trees_all_close(got["b"], _run(second, params)[0]["b"], rtol=1e-6)


def test_multi_steps_update_with_the_mean(tx):
    params = _params()
    every_2 = optax.MultiSteps(tx, 2)
    state = every_2.init(params)
    updates, state = every_2.update(params, state, params)
    assert optax.tree.norm(updates) == 0
    thrice = jax.tree.map(lambda x: 3 * x, params)
    updates, _ = every_2.update(thrice, state, params)
    twice = jax.tree.map(lambda x: 2 * x, params)
    expected, _ = tx.update(twice, tx.init(params), params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_inject_hyperparams_reaches_a_scale(lopt, key):
    theta = lopt.init(key, _params())

    def make(theta, scale):
        return optax.chain(lopt.transform(theta), optax.scale(scale))

    params = _params()
    tx = optax.inject_hyperparams(make)(theta=theta, scale=0.5)
    state = tx.init(params)
    half, _ = tx.update(params, state, params)
    state.hyperparams["scale"] = jnp.array(1.0)
    whole, _ = tx.update(params, state, params)
    chex.assert_trees_all_close(jax.tree.map(lambda x: 2 * x, half), whole, rtol=1e-6)


def test_apply_if_finite_keeps_a_nan_out(tx):
    params = _params()
    safe = optax.apply_if_finite(tx, 5)
    state = safe.init(params)
    bad = params | {"b": params["b"].at[1].set(jnp.nan)}
    updates, state = safe.update(bad, state, params)
    assert optax.tree.norm(updates) == 0
    chex.assert_trees_all_equal(state.inner_state, tx.init(params))
    updates, _ = safe.update(params, state, params)
    expected, _ = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_close(updates, expected)


def test_a_nan_stays_in_its_coordinate(tx):
    params = _params()
    bad = params | {"b": params["b"].at[1].set(jnp.nan)}
    state = tx.init(params)
    _, state = tx.update(bad, state, params)
    updates, _ = tx.update(params, state, params)
    np.testing.assert_array_equal(np.isnan(updates["b"]), [False, True, False])
    chex.assert_tree_all_finite((updates["w"], updates["s"]))


def test_reduce_on_plateau_is_told_the_value(tx):
    chained = optax.chain(tx, optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    params = _params()
    state = chained.init(params)
    for _ in range(4):
        updates, state = chained.update(params, state, params, value=jnp.array(1.0))
    assert state[1].scale < 1
    chex.assert_tree_all_finite(updates)


def test_map_params_reaches_the_parameters_state_alone(tx):
    params = _params()
    state = tx.init(params)
    seen = optax.tree.map_params(tx, lambda x: "p", state)
    shaped = [x for x in jax.tree.leaves(state) if x.ndim > 0]
    assert jax.tree.leaves(seen).count("p") >= len(shaped)


def test_states_are_sharded_like_the_parameters(tx):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spec = jax.P("x", None)
        params = {"w": jax.device_put(jnp.ones((8, 3)), spec)}
        state = jax.jit(tx.init)(params)
        updates, after = jax.jit(tx.update)(params, state, params)
        assert jax.typeof(updates["w"]).sharding.spec == spec
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert jax.typeof(x) == jax.typeof(y)
            if x.ndim > 1:
                assert jax.typeof(x).sharding.spec[0] == "x"


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
    tx = lopt.transform(lopt.init(key, params))
    updates, state = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_equal_shapes(updates, params)
    chex.assert_trees_all_equal_shapes(state, tx.init(params))


def test_complex_parameters_are_named(tx):
    with pytest.raises(ValueError, match=r"complex leaves.*split_real_and_imaginary"):
        tx.init({"w": jnp.ones(2, jnp.complex64)})


def test_complex_parameters_work_when_split(tx):
    params = {"w": jnp.array([1.0 + 2.0j, -0.5j])}
    split = optax.contrib.split_real_and_imaginary(tx)
    updates, _ = split.update(params, split.init(params), params)
    assert updates["w"].dtype == jnp.complex64


def test_vmap_agrees_with_a_loop(tx):
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), _params())
    together = jax.vmap(lambda p: _run(tx, p)[0])(many)
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
        theta = lopt.init(key, params)
        if "bfloat16" in str(
            [x.dtype for x in jax.tree.leaves(lopt.transform(theta).init(params))]
        ):
            pytest.skip("finite differences see the rounding of the state")

        def final(theta):
            tx = lopt.transform(theta)

            def step(carry, _):
                p, s = carry
                updates, s = tx.update(p, s, p)
                return (optax.apply_updates(p, updates), s), None

            (p, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=4)
            return optax.tree.norm(p, squared=True)

        direction = optax.tree.random_like(key, theta)
        move = lambda h: optax.tree.add_scale(theta, h, direction)
        expected = (final(move(1e-5)) - final(move(-1e-5))) / 2e-5
        got = optax.tree.vdot(jax.grad(final)(theta), direction)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_second_derivatives_are_finite_at_zero_gradients(lopt, key):
    params = jax.tree.map(jnp.zeros_like, _params())
    theta = lopt.init(key, params)

    def after_two(params):
        tx = lopt.transform(theta)
        return optax.tree.norm(_run(tx, params, steps=2)[0], squared=True)

    chex.assert_tree_all_finite(jax.grad(after_two)(params))


def test_theta_of_another_architecture_is_named(lopt, key):
    other = jm.optimizers.lstm(7).init(key)
    with pytest.raises(ValueError, match="`theta` is of another architecture"):
        lopt.transform(other)


def test_a_maml_learns_it_together_with_the_initialisation(lopt, key):
    learner = jm.maml(
        jm.models.MLP([4, 1]), jm.losses.squared_error, inner_tx=lopt, inner_steps=2
    )
    task = jm.tasks.sinusoid(shots=3, queries=3)(key)
    meta_params = learner.init(key, task)
    grads, _ = learner.meta_grad(key, meta_params, task)
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


@pytest.mark.parametrize("name", ["hidden_size", "num_layers"])
def test_lstm_sizes_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be an int >= 1, got 0"):
        jm.optimizers.lstm(**{name: 0})
