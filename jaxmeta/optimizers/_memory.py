r"""External memory with low-rank updates: a matrix over all coordinates.

It starts as the identity; a write adds :math:`\sum_j a_j b_j^\top`, a read multiplies
it by a vector. Vectors are trees like the parameters.

References:
  Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
  NeurIPS 2016, Appendix D. https://arxiv.org/abs/1606.04474
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxmeta.optimizers import _coordinates


class Memory(NamedTuple):
    """Pure functions of a memory's state.

    Attributes:
      init: `(params, dtype) -> state`.
      read: `(state, vector) -> vector`.
      write: `(state, a, b) -> state`, leaves of a and b [..., W], one pair per head.
    """

    init: Callable[[Any, DTypeLike], Any]
    read: Callable[[Any, Any], Any]
    write: Callable[[Any, Any, Any], Any]


class Pairs(NamedTuple):
    """The last M writes of W pairs each."""

    count: jax.Array  # [] int32, writes so far
    a: Any  # a tree like the parameters, leaves [..., M * W]
    b: Any


def dense() -> Memory:
    """The whole matrix, [n, n] for n coordinates."""

    def init(params, dtype):
        size = sum(p.size for p in jax.tree.leaves(params))
        return jnp.eye(size, dtype=dtype)

    def read(matrix, vector):
        if not matrix.size:
            return vector
        return _unravel(matrix @ _ravel(vector, 0), vector)

    def write(matrix, a, b):
        if not matrix.size:
            return matrix
        # [n, W] @ [W, n]: the outer products of all W pairs at once.
        return matrix + _ravel(a, 1) @ _ravel(b, 1).T

    return Memory(init, read, write)


def sliding(window: int, num_pairs: int) -> Memory:
    """The pairs of the last `window` writes, without older ones.

    Reading and writing take time and space linear in the number of coordinates.
    """

    def init(params, dtype):
        empty = lambda: _coordinates.hidden_like(params, window * num_pairs, dtype)
        return Pairs(count=jnp.zeros((), jnp.int32), a=empty(), b=empty())

    def read(pairs, vector):
        # (I + A B^T) r = r + A (B^T r), with the sum over coordinates across leaves.
        def product(b, r):  # [M * W]
            return jnp.sum(b * r[..., None], tuple(range(r.ndim)))

        products = jax.tree.leaves(jax.tree.map(product, pairs.b, vector))
        if not products:
            return vector
        total = sum(products[1:], products[0])
        return jax.tree.map(lambda a, r: r + a @ total, pairs.a, vector)

    def write(pairs, a, b):
        slot = num_pairs * (pairs.count % window)  # ring buffer: overwrites the oldest

        def put(old, new):
            axis = old.ndim - 1
            return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)

        return Pairs(
            count=pairs.count + 1,
            a=jax.tree.map(put, pairs.a, a),
            b=jax.tree.map(put, pairs.b, b),
        )

    return Memory(init, read, write)


def _ravel(tree: Any, num_trailing: int) -> jax.Array:
    """Joins leaves into [n, ...]; sharded leaves are gathered."""

    def flat(x):
        if jax.typeof(x).sharding.mesh.are_all_axes_explicit:
            x = jax.sharding.reshard(x, jax.P())
        return x.reshape(-1, *x.shape[x.ndim - num_trailing :])

    return jnp.concatenate([flat(x) for x in jax.tree.leaves(tree)])


def _unravel(vector: jax.Array, like: Any) -> Any:
    """Undoes `_ravel(like, 0)`."""
    leaves, treedef = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        part = vector[start : start + leaf.size].reshape(leaf.shape)
        sharding = jax.typeof(leaf).sharding
        if sharding.mesh.are_all_axes_explicit:
            part = jax.sharding.reshard(part, sharding)
        parts.append(part)
        start += leaf.size
    return treedef.unflatten(parts)
