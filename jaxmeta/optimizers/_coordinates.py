"""What coordinatewise rules share: maps over trees, and the LSTM cell."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Linear(NamedTuple):
    """A dense layer's weights."""

    kernel: jax.Array  # [I, O]
    bias: jax.Array  # [O]


def map_unzipped(
    fn: Callable[..., tuple[Any, ...]], num_results: int, tree: Any, *rest: Any
) -> tuple[Any, ...]:
    """Maps `fn` over leaves; returns a tuple of trees instead of a tree of tuples.

    Leaves of `tree` decide: what a masked tree leaves out is left out, and `rest` may
    have whole subtrees at their places.
    """
    leaves, treedef = jax.tree.flatten(tree)
    others = [treedef.flatten_up_to(other) for other in rest]
    results = [fn(*xs) for xs in zip(leaves, *others, strict=True)]
    columns = zip(*results, strict=True) if results else [()] * num_results
    return tuple(treedef.unflatten(column) for column in columns)


def hidden_like(params: Any, size: int, dtype: DTypeLike) -> Any:
    """Zeros of a hidden vector a coordinate: leaves [..., size].

    A broadcast, not a reshape, so that a parameter's sharding carries over.
    """

    def zeros(p):
        return jnp.broadcast_to(jnp.zeros_like(p, dtype)[..., None], (*p.shape, size))

    return jax.tree.map(zeros, params)


def init_linear(key: jax.Array, num_inputs: int, num_outputs: int) -> Linear:
    """Weights of variance 1 / num_inputs, truncated normal; no bias."""
    initializer = jax.nn.initializers.lecun_normal()
    dtype = jnp.result_type(float)
    kernel = initializer(key, (num_inputs, num_outputs), dtype)
    return Linear(kernel, jnp.zeros(num_outputs, dtype))


def init_lstm(key: jax.Array, num_inputs: int, hidden_size: int) -> Linear:
    """One layer's weights, gates in the order of `lstm_cell`; forget bias of 1."""
    layer = init_linear(key, num_inputs + hidden_size, 4 * hidden_size)
    return layer._replace(bias=layer.bias.at[hidden_size : 2 * hidden_size].set(1.0))


def lstm_cell(
    layer: Linear, inputs: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of an LSTM with forget gates, over any leading axes.

    Args:
      layer: kernel [I + H, 4 H] and bias; input, forget, output gate and candidate.
      inputs: [..., I].
      hidden: [..., H].
      cell: [..., H].

    Returns:
      The new hidden vector and cell.
    """
    joined = jnp.concatenate([inputs, hidden], -1)
    i, f, o, candidate = jnp.split(apply_linear(layer, joined), 4, -1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def apply_linear(layer: Linear, inputs: jax.Array) -> jax.Array:
    """Applies a dense layer to [..., I]."""
    outputs = inputs @ layer.kernel
    return outputs + jnp.broadcast_to(layer.bias, outputs.shape)
