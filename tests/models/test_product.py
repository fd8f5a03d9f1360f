"""The convolutions' matrix product against `@`, and what it is for."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, PartitionSpec

from jaxmeta.models._product import product

WIDTHS = {"narrow": (3, 7), "wide": (7, 3)}  # of x, and of the product


def _factors(widths, *leading):
    rng = np.random.default_rng(0)
    k, n = WIDTHS[widths]
    shapes = (*leading, 6, k), (*leading, k, n)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


def _loss(multiply, x, y):
    return jnp.sum(jnp.sin(multiply(x, y)))


@pytest.mark.parametrize("widths", WIDTHS)
def test_derivatives_are_those_of_the_operator(widths, x64):
    """To third order, forward, reverse and both."""
    x, y = _factors(widths)

    def derivatives(multiply):
        loss = functools.partial(_loss, multiply)
        hessian = jax.hessian(loss, (0, 1))

        def both(x, y):
            return jax.grad(lambda *at: jax.jvp(loss, at, (x, y))[1], (0, 1))(x, y)

        twice = jax.jacrev(jax.grad(loss, (0, 1)), (0, 1))
        third = jax.grad(lambda x, y: jnp.sum(hessian(x, y)[0][1] ** 2), (0, 1))
        return jax.jit(lambda x, y: [f(x, y) for f in (hessian, both, twice, third)])

    got = derivatives(product)(x, y)
    chex.assert_trees_all_close(got, derivatives(operator.matmul)(x, y), rtol=1e-11)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=str)
@pytest.mark.parametrize("widths", WIDTHS)
def test_vmap_inside_and_outside_of_grad(widths, axes, x64):
    factors = [
        factor if axis == 0 else factor[0]
        for factor, axis in zip(_factors(widths, 4), axes, strict=True)
    ]

    def derivatives(multiply):
        grad = jax.vmap(jax.grad(functools.partial(_loss, multiply), (0, 1)), axes)
        batched = jax.vmap(multiply, axes)
        return grad(*factors), jax.grad(functools.partial(_loss, batched), (0, 1))(
            *factors
        )

    got, expected = derivatives(product), derivatives(operator.matmul)
    chex.assert_trees_all_close(got, expected, rtol=1e-12)


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_narrower_factor_is_laid_out_anew(widths):
    """Of the two whose rows the derivative by `y` contracts."""
    x, y = _factors(widths)
    jaxpr = jax.make_jaxpr(jax.grad(functools.partial(_loss, product), 1))(x, y)
    turned = [
        equation.invars[0].aval.shape
        for equation in jaxpr.eqns
        if equation.primitive.name == "transpose"
    ]
    assert (6, min(WIDTHS[widths])) in turned
    assert (6, max(WIDTHS[widths])) not in turned


def test_checkify_sees_what_is_no_number():
    checked = checkify.checkify(product, errors=checkify.float_checks)
    error, _ = jax.jit(checked)(jnp.zeros((2, 1)), jnp.full((1, 3), jnp.inf))
    assert "nan generated" in error.get()
    assert "_product.py" in str(error.get_exception().traceback_info)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("widths", WIDTHS)
def test_gradients_are_summed_over_devices(widths, kind, x64):
    """Rows of `x` on two devices, by JAX's checked `shard_map` and explicit axes."""
    x, y = _factors(widths)
    mesh = jax.make_mesh((2,), ("rows",), (kind,), devices=jax.devices()[:2])
    rows, everywhere = PartitionSpec("rows"), PartitionSpec()
    grad = jax.grad(functools.partial(_loss, product), (0, 1))
    expected = jax.grad(functools.partial(_loss, operator.matmul), (0, 1))(x, y)
    if kind == AxisType.Explicit:
        with jax.set_mesh(mesh):
            placed = jax.device_put((x, y), (rows, everywhere))
            got = jax.jit(grad)(*placed)
    else:
        specs = (rows, everywhere)
        got = jax.jit(jax.shard_map(grad, mesh=mesh, in_specs=specs, out_specs=specs))(
            x, y
        )
    chex.assert_trees_all_close(jax.device_get(got), expected, rtol=1e-12)
