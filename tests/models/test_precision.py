"""Computing in bfloat16 with parameters in float32."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta import recipes, runs


def _products(fn, *args):
    """The types of the operands of all matrix products and convolutions."""
    found = set()
    is_jaxpr = lambda x: hasattr(x, "eqns")

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.update(str(x.aval.dtype) for x in equation.invars)
            for sub in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
                if is_jaxpr(sub):
                    look(sub)

    look(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def _maml(model):
    return jm.maml(
        model, jm.losses.squared_error, inner_tx=optax.sgd(0.01), inner_steps=2
    )


def test_products_are_narrow_and_all_else_is_not(key):
    net = jm.models.MLP([40, 40, 1])
    task = jm.tasks.sinusoid()(key)
    wide, narrow = _maml(net), _maml(jm.models.with_compute_dtype(net))
    params = wide.init(key, task)
    chex.assert_trees_all_equal(params, narrow.init(key, task))
    assert _products(wide.meta_grad, key, params, task) == {"float32"}
    assert _products(narrow.meta_grad, key, params, task) == {"bfloat16"}
    expected, _ = jax.jit(wide.meta_grad)(key, params, task)
    grads, info = jax.jit(narrow.meta_grad)(key, params, task)
    chex.assert_trees_all_equal_dtypes(grads, params)
    assert info.loss.dtype == jnp.float32
    error = optax.tree.norm(optax.tree.sub(grads, expected))
    assert 0 < error < 0.1 * optax.tree.norm(expected)
    adapted, _ = narrow.adapt(key, params, task.support)
    chex.assert_trees_all_equal_dtypes(adapted, params)


def test_integers_and_wide_parameters_stay_what_they_are(key):
    seen = []

    def apply(params, inputs):
        seen.append((params["w"].dtype, inputs["x"].dtype, inputs["i"].dtype))
        return params["w"] * inputs["x"] + inputs["i"]

    model = jm.models.with_compute_dtype(jm.Model(lambda key, x: {}, apply))
    inputs = {"x": jnp.ones(2), "i": jnp.ones(2, int)}
    with jax.enable_x64(True):
        params = {"w": jnp.ones((), jnp.float64)}
        assert model.apply(params, inputs).dtype == jnp.float64
    assert [jnp.dtype(x).name for x in seen[0][:2]] == ["bfloat16", "bfloat16"]
    assert jnp.issubdtype(seen[0][2], jnp.integer)


def test_statistics_are_computed_anew(key):
    """Beside parameters, and where a model has them among its own."""
    net = jm.models.MLP([8, 2], norm="batch", statistics="support")
    model = jm.models.with_compute_dtype(net, jnp.float32)
    x = jax.random.normal(key, (16, 3))
    params = net.init(key, x)
    for inputs in (x, 5 * x + 3):
        params = model.with_support_statistics(params, inputs)
    chex.assert_trees_all_equal(params, net.with_support_statistics(params, 5 * x + 3))

    def with_support_statistics(params, inputs):
        return {**params, "mean": inputs.mean()}

    own = jm.Model(lambda key, x: {}, lambda params, x: x, with_support_statistics)
    third = jnp.float32(1 / 3)
    found = jm.models.with_compute_dtype(own).with_support_statistics(
        {"w": third, "mean": jnp.zeros(())}, x + 1
    )
    assert found["w"] == third and found["mean"].dtype == jnp.float32
    assert found["mean"] == pytest.approx(float(x.mean()) + 1, rel=1e-2)


def test_the_support_sets_statistics_are_kept(key):
    images = jax.random.uniform(key, (6, 28, 28, 1))
    net = jm.models.Conv4(4, head=3, statistics="support")
    model = jm.models.with_compute_dtype(net)
    params = jax.jit(model.init)(key, images)
    stored = jax.jit(model.with_support_statistics)(params, images)
    chex.assert_trees_all_equal(stored["params"], params["params"])
    assert {x.dtype for x in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    predict = jax.jit(model.apply)
    np.testing.assert_allclose(
        predict(stored, images[:1]), predict(stored, images)[:1], rtol=0.05, atol=0.02
    )
    expected = net.apply(net.with_support_statistics(params, images), images)
    got = predict(stored, images)
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)


def test_recipes_compute_in_it_by_one_setting():
    recipe = recipes.RECIPES["maml-sinusoid"]
    narrow = dataclasses.replace(recipe, compute_dtype="bfloat16")
    parts = [runs.build(r) for r in (recipe, narrow)]
    assert recipes.from_json(recipes.to_json(narrow)) == narrow
    like = [jax.tree.leaves(part.like.meta_params) for part in parts]
    assert [x.dtype for x in like[0]] == [x.dtype for x in like[1]]
    found = [_products(part.train_step.step, part.like) for part in parts]
    assert found == [{"float32"}, {"bfloat16"}]


def test_types_that_do_not_float_are_named():
    with pytest.raises(ValueError, match=r"`dtype` must be floating.*got int32"):
        jm.models.with_compute_dtype(jm.models.MLP([1]), jnp.int32)
