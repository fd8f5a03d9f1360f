"""Geometry of embeddings."""

import jax
import jax.numpy as jnp

from jaxmeta import _dtypes, base


def as_vectors(embeddings: jax.Array) -> jax.Array:
    """Flattens [N, ...] to [N, D], in at least 32 bits."""
    return _dtypes.widen(embeddings.reshape(embeddings.shape[0], -1))


def class_means(examples: base.Examples) -> jax.Array:
    """Returns the mean embedding [W, D] of each class; zero if it has no examples.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[0.0, 2.0], [4.0, 2.0], [1.0, 1.0]])
      >>> targets = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> class_means(base.Examples(embeddings, targets)).tolist()
      [[2.0, 2.0], [1.0, 1.0]]
    """
    counts = jnp.sum(examples.targets, 0)  # [W]
    sums = jnp.matmul(examples.targets.T, examples.inputs, precision="highest")
    # Absent classes divide 0 by 1.
    return sums / jnp.where(counts > 0, counts, 1)[:, None]


def unit(vectors: jax.Array) -> jax.Array:
    """Scales [N, D] to length one; zero stays zero, and so does its derivative."""
    squares = jnp.sum(jnp.square(vectors), -1, keepdims=True)
    # Two `where`s: the derivative of the branch not taken must be finite too, since
    # autodiff multiplies it by 0, and 0 * inf is NaN.
    is_zero = squares < 1e-12  # length < 1e-6
    length = jnp.sqrt(jnp.where(is_zero, 1, squares))
    return jnp.where(is_zero, 0, vectors / length)


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns |a_i - b_j|^2, [A, B], of [A, D] and [B, D].

    Computed from differences: |a|^2 - 2 a b + |b|^2 would cancel.
    """
    return jnp.sum(jnp.square(a[:, None] - b[None]), -1)


def cosines(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the cosine of a_i and b_j, [A, B], of [A, D] and [B, D]; 0 for zeros."""
    return jnp.matmul(unit(a), unit(b).T, precision="highest")


def without_absent(logits: jax.Array, present: jax.Array) -> jax.Array:
    """Logits [Q, W] with those of classes not `present` [W] below all others.

    They stay finite, so that 0 times them is 0.
    """
    # Relative to the lowest logit, which may itself be far below 0; a constant, so
    # absent classes have no gradient.
    lowest = jnp.min(jax.lax.stop_gradient(logits), -1, keepdims=True)
    return jnp.where(present[None], logits, lowest - 1e9)
