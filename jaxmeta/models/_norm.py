"""Batch normalisation for episodes, by the statistics of one set of examples.

Running statistics have no meaning in an episode. Either every set is normalised by its
own statistics, including the queries (transductive, as in MAML's published results), or
the queries are normalised by the support set's.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks

NORMS = ("batch", None)
STATISTICS = ("batch", "support")


class BatchNorm(nn.Module):
    """Normalises over all axes but one, then scales and shifts.

    Uses the collection "batch_stats" if present, else the batch; stores the batch
    statistics if that collection is mutable. Never updates a running mean.
    """

    epsilon: float = 1e-5
    axis: int = -1
    features: int | None = None

    @nn.compact
    def __call__(self, x: Any, measure: Callable[..., Any] | None = None) -> jax.Array:
        """Maps any shape, D features along `axis`, to the same shape.

        With `measure`, `(x, scale) -> (features, mean, variance)`, the features are
        what it makes of any x, and the statistics those that it measured on the way.
        """
        dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
        size = (self.features or x.shape[self.axis],)
        scale = self.param("scale", nn.initializers.ones, size, dtype)
        bias = self.param("bias", nn.initializers.zeros, size, dtype)
        measured = None
        if measure is not None:
            x, *measured = measure(x, scale)
        axes = tuple(i for i in range(x.ndim) if i != self.axis % x.ndim)
        writing = self.is_mutable_collection("batch_stats")
        if self.has_variable("batch_stats", "mean") and not writing:
            mean = self.get_variable("batch_stats", "mean")
            variance = self.get_variable("batch_stats", "variance")
        elif measured:
            mean, variance = measured
        else:
            if x.size == x.shape[self.axis] and not self.is_initializing():
                raise ValueError(
                    "Batch normalisation of a single example is a constant, got "
                    f"features of shape {x.shape}. Predict several together, or set "
                    'the model\'s `statistics="support"`.'
                )
            mean = jnp.mean(x, axes)
            # Two passes: E[x^2] - E[x]^2 cancels, and its derivatives more so.
            variance = jnp.mean(jnp.square(x - jnp.expand_dims(mean, axes)), axes)
        if writing and not self.is_initializing():
            self.put_variable("batch_stats", "mean", mean)
            self.put_variable("batch_stats", "variance", variance)
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)  # [D]
        return _affine(x, *(jnp.expand_dims(v, axes) for v in (mean, factor, bias)))


# Derivatives subtract again: fetching x - mean from memory takes longer, and keeping it
# half of the memory.
@jax.checkpoint
def _affine(x, mean, factor, bias):
    return (x - mean) * factor + bias


def normalize(norm: str | None, x: jax.Array, axis: int = -1) -> jax.Array:
    """Applies the normalisation named `norm` inside a compact module."""
    _checks.check_choice("norm", norm, NORMS)
    return BatchNorm(axis=axis)(x) if norm == "batch" else x


def with_support_statistics(module, params, inputs):
    """Adds the batch statistics of `inputs` to `params`, if `module` uses them."""
    _checks.check_choice("statistics", module.statistics, STATISTICS)
    if module.statistics == "batch" or module.norm is None:
        return params
    _, collections = module.apply(params, inputs, mutable="batch_stats")
    return {**params, **collections}
