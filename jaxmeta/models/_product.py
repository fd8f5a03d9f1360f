"""A matrix product whose derivatives transpose as little as possible.

The gradient of a kernel contracts the many rows of its two factors, patches and
cotangents, and a CPU's product transposes the first of them. JAX always puts the
cotangents first; if patches are narrower, as for an image's few channels, that copies
several times as much. The derivatives of this product are this product again.
"""

from collections.abc import Callable

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

_product_p = core.Primitive("jaxmeta_product")
_DIMENSION_NUMBERS = (((1,), (0,)), ((), ()))


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `x @ y`, [M, N], of matrices [M, K] and [K, N] of one dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> product(jnp.ones((2, 3)), jnp.ones((3, 1))).tolist()
      [[3.0], [3.0]]
    """
    if not are_local(_dot, x, y):
        return _dot(x, y)
    # The compiler drops the factor 1. It is for checkify, which knows only JAX's own
    # operations and would miss a NaN here.
    return _product_p.bind(x, y) * 1


def are_local(multiply: Callable[..., jax.Array], x: jax.Array, y: jax.Array) -> bool:
    """Whether no derivative must sum over devices; otherwise JAX's rules are used."""
    over_devices = (*jax.typeof(x).sharding.spec, *jax.typeof(y).sharding.spec)
    if any(axis is not None for axis in over_devices):
        return False
    # In `shard_map`, if only one factor varies over devices, JAX inserts a cast.
    return len(jax.make_jaxpr(multiply)(x, y).eqns) == 1


def _dot(x, y):
    return lax.dot_general(x, y, _DIMENSION_NUMBERS)


def _abstract_dot(x, y):
    return jax.make_jaxpr(_dot)(x, y).out_avals[0]


def _transpose_x(cotangents, x, y):
    del x
    return product(cotangents, y.T)


def _transpose_y(cotangents, x, y):
    del y
    # y_bar = x^T c = (c^T x)^T: lay out fewer entries anew, those of the first factor
    # and of the product, if it is turned.
    (m, k), n = x.shape, cotangents.shape[1]
    if m * k < m * n + k * n:
        return product(x.T, cotangents)
    return product(cotangents.T, x).T


def _batch(factors, axes):
    return jax.vmap(_dot, axes)(*factors), 0


_product_p.def_impl(_dot)
_product_p.def_abstract_eval(_abstract_dot)
mlir.register_lowering(_product_p, mlir.lower_fun(_dot, multiple_results=False))
ad.defbilinear(_product_p, _transpose_x, _transpose_y)
batching.primitive_batchers[_product_p] = _batch
