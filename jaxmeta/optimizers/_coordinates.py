"""Shared by coordinatewise rules: maps over trees, dense layers, LSTM stacks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxmeta import _replay
from jaxmeta.optimizers import _blocks


class Linear(NamedTuple):
    """A dense layer's weights."""

    kernel: jax.Array  # [I, O]
    bias: jax.Array  # [O]


class LstmTheta(NamedTuple):
    """A stack of LSTM layers with H units, and its output layer."""

    layers: tuple[Linear, ...]  # kernels [I + H, 4 H]
    head: Linear  # kernel [H, O]


class LstmState(NamedTuple):
    """State of a stack of L LSTM layers with H units."""

    hidden_and_cell: Any  # a tree like the parameters, leaves [..., 2 L H]


OTHER_PARAMETERS = (
    "`updates`, `state` and `params` must match, with a state of this optimizer: use "
    "`state = tx.init(params)`."
)


def map_unzipped(
    fn: Callable[..., tuple[Any, ...]], num_results: int, tree: Any, *rest: Any
) -> tuple[Any, ...]:
    """Maps `fn` over leaves; returns a tuple of trees instead of a tree of tuples.

    The leaves of `tree` decide: masked nodes stay masked, and `rest` may have whole
    subtrees in place of them.
    """
    leaves, treedef = jax.tree.flatten(tree)
    others = [_leaves_like(treedef, other) for other in rest]
    results = [fn(*xs) for xs in zip(leaves, *others, strict=True)]
    columns = zip(*results, strict=True) if results else [()] * num_results
    return tuple(treedef.unflatten(column) for column in columns)


def without_masked(tree: Any, other: Any) -> Any:
    """`other` at the leaves of `tree`, without masked nodes."""
    treedef = jax.tree.structure(tree)
    return treedef.unflatten(_leaves_like(treedef, other))


def _leaves_like(treedef: Any, other: Any) -> list[Any]:
    """Flattens a tree that matches the updates: their state, or the parameters."""
    try:
        return treedef.flatten_up_to(other)
    except (TypeError, ValueError) as error:
        raise ValueError(OTHER_PARAMETERS) from error


def hidden_like(params: Any, size: int, dtype: DTypeLike) -> Any:
    """A zero hidden vector per coordinate: leaves [..., size].

    By broadcasting instead of reshaping, to keep a parameter's sharding.
    """

    def zeros(p):
        return jnp.broadcast_to(
            jnp.zeros_like(p, dtype)[..., None], (*jnp.shape(p), size)
        )

    return jax.tree.map(zeros, params)


def over_coordinates(features: jax.Array, like: jax.Array) -> jax.Array:
    """The same features [F] at every coordinate of `like`, sharded like it."""
    zeros = jnp.zeros_like(like, features.dtype)[..., None]
    return zeros + features.reshape(*[1] * like.ndim, -1)


def feature_axis(leaf: jax.Array) -> int:
    """Where features of a leaf's coordinates lie in the products of a network.

    First in a block of `_replay`, whose states lie so: transposes cancel, and products
    and gates are 1.7 times as fast on a CPU.
    """
    return 0 if leaf.ndim == 1 and len(leaf) <= _replay.BLOCK else -1


def init_linear(key: jax.Array, num_inputs: int, num_outputs: int) -> Linear:
    """Truncated normal weights with variance 1 / num_inputs; zero bias."""
    initializer = jax.nn.initializers.lecun_normal()
    dtype = jnp.result_type(float)
    kernel = initializer(key, (num_inputs, num_outputs), dtype)
    return Linear(kernel, jnp.zeros(num_outputs, dtype))


def apply_linear(layer: Linear, inputs: jax.Array, axis: int = -1) -> jax.Array:
    """Applies a dense layer to [..., I], or with `axis` 0 to [I, N]."""
    if axis == 0:
        return layer.kernel.T @ inputs + layer.bias[:, None]
    outputs = inputs @ layer.kernel
    return outputs + jnp.broadcast_to(layer.bias, outputs.shape)


def normalize(
    values: jax.Array, second_moment: jax.Array, eps: float, floor: float = 1e-5
) -> jax.Array:
    """Values over the root of a second moment, with a bounded derivative.

    Where the root is below `floor`, the quotient is a constant to the derivative.
    """
    smooth = second_moment >= floor**2
    # A double where: the branch not taken must have a finite derivative too, and that
    # of sqrt is infinite at 0.
    root = jnp.sqrt(jnp.where(smooth, second_moment, 1))
    # Below the floor: the same value, but constant.
    root_of_constant = jnp.sqrt(jax.lax.stop_gradient(second_moment))
    constant = jax.lax.stop_gradient(values) / (root_of_constant + eps)
    return jnp.where(smooth, values / (root + eps), constant)


def inverse_root(square: jax.Array) -> jax.Array:
    """1 / sqrt(square), with a bounded derivative and value."""
    # A double where: under 1e-7 the root is a constant to the derivative, whose own
    # derivative would overflow.
    is_smooth = square > 1e-14
    root = jax.lax.rsqrt(jnp.where(is_smooth, square, 1))
    # Gradients under 1e-15 count as zero.
    constant = jax.lax.rsqrt(jax.lax.stop_gradient(square) + 1e-30)
    return jnp.where(is_smooth, root, constant)


def init_lstm(key: jax.Array, num_inputs: int, hidden_size: int) -> Linear:
    """One layer's weights, gates ordered as in `lstm_cell`; forget bias 1."""
    layer = init_linear(key, num_inputs + hidden_size, 4 * hidden_size)
    return layer._replace(bias=layer.bias.at[hidden_size : 2 * hidden_size].set(1.0))


def lstm_cell(
    layer: Linear,
    inputs: jax.Array,
    hidden: jax.Array,
    cell: jax.Array,
    axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """One step of an LSTM with forget gates, over any leading axes.

    Args:
      layer: kernel [I + H, 4 H] and bias; input, forget, output gate and candidate.
      inputs: [..., I].
      hidden: [..., H].
      cell: [..., H].
      axis: axis of the features; 0 for [I, N] and [H, N].

    Returns:
      The new hidden vector and cell.
    """
    joined = jnp.concatenate([inputs, hidden], axis)
    i, f, o, candidate = jnp.split(apply_linear(layer, joined, axis), 4, axis)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def init_stack(
    key: jax.Array,
    num_inputs: int,
    hidden_size: int,
    num_layers: int,
    num_outputs: int = 1,
    head_scale: float | jax.Array = 1.0,
) -> LstmTheta:
    """Draws the weights of a stack; those of the head are scaled by `head_scale`."""
    head_key, *keys = jax.random.split(key, num_layers + 1)
    sizes = [num_inputs, *[hidden_size] * (num_layers - 1)]
    head = init_linear(head_key, hidden_size, num_outputs)
    return LstmTheta(
        layers=tuple(
            init_lstm(k, size, hidden_size) for k, size in zip(keys, sizes, strict=True)
        ),
        head=head._replace(kernel=head_scale * head.kernel),
    )


def init_stack_state(params: Any, theta: LstmTheta, dtype: DTypeLike) -> LstmState:
    """Zeros for every coordinate of `params`."""
    # Hidden vector and cell per layer; the bias [4 H] holds four gates.
    size = 2 * sum(layer.bias.size // 4 for layer in theta.layers)
    return LstmState(hidden_like(params, size, dtype))


def apply_stack(
    theta: LstmTheta,
    inputs: Any,
    state: LstmState,
    num_averaged: int = 0,
    block_size: int | None = None,
) -> tuple[Any, LstmState]:
    """One step of a stack at every coordinate.

    Args:
      theta: the weights.
      inputs: a tree with leaves [..., I], in the dtype to compute in.
      state: in any float dtype, which is kept.
      num_averaged: cells per layer that output their mean over all coordinates. Static.
      block_size: as for `_blocks.at_coordinates`.

    Returns:
      A tree with leaves [..., O], and the state.
    """
    if not num_averaged:
        at_leaf = functools.partial(_at_coordinates, block_size, theta)
        outputs, after = map_unzipped(at_leaf, 2, inputs, state.hidden_and_cell)
        return outputs, LstmState(after)
    # The state is L hidden vectors, then L cells.
    sizes = [layer.bias.size // 4 for layer in 2 * theta.layers]
    vectors = split_outputs(state.hidden_and_cell, sizes)
    hidden, cell = [], vectors[len(theta.layers) :]
    for i, (layer, h) in enumerate(zip(theta.layers, vectors, strict=False)):

        def step(x, h, c, layer=layer):
            return lstm_cell(layer, x, h.astype(x.dtype), c.astype(x.dtype))

        inputs, cell[i] = map_unzipped(step, 2, inputs, h, cell[i])
        inputs = _average_first(inputs, num_averaged)
        hidden.append(inputs)
    outputs = jax.tree.map(lambda x: apply_linear(theta.head, x), inputs)
    packed = lambda old, *new: jnp.concatenate(new, -1).astype(old.dtype)
    after = jax.tree.map(packed, state.hidden_and_cell, *hidden, *cell)
    return outputs, LstmState(after)


def _at_coordinates(block_size, theta, inputs, state):
    if feature_axis(inputs[..., 0]) == 0:
        outputs, state = _step(theta, inputs.T, state.T, axis=0)
        return outputs.T, state.T
    return _blocks.at_coordinates(_step, block_size, theta, inputs, state)


def _step(theta, inputs, state, axis=-1):
    """A stack at the coordinates of one leaf; `axis` is the feature axis."""
    num_layers = len(theta.layers)
    vectors = jnp.split(state.astype(inputs.dtype), 2 * num_layers, axis)
    for i, layer in enumerate(theta.layers):
        inputs, cell = lstm_cell(
            layer, inputs, vectors[i], vectors[num_layers + i], axis
        )
        vectors[i], vectors[num_layers + i] = inputs, cell
    state = jnp.concatenate(vectors, axis).astype(state.dtype)
    return apply_linear(theta.head, inputs, axis), state


def split_outputs(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """Splits leaves [..., O] into trees with leaves [..., size]."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [
        jax.tree.map(lambda x, a=end - size, b=end: x[..., a:b], tree)
        for size, end in zip(sizes, ends, strict=True)
    ]


def _average_first(tree: Any, count: int) -> Any:
    """Replaces the first `count` features with their means over all coordinates."""
    leaves = jax.tree.leaves(tree)
    num_coordinates = sum(x[..., 0].size for x in leaves)
    if not num_coordinates:
        return tree
    sums = [jnp.sum(x[..., :count], tuple(range(x.ndim - 1))) for x in leaves]
    total = sum(sums[1:], sums[0])

    def replace(x):
        mean = over_coordinates(total / num_coordinates, x[..., 0])
        return jnp.concatenate([mean, x[..., count:]], -1)

    return jax.tree.map(replace, tree)
