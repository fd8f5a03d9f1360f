"""The recurrent network that VeLO and Celo have for each tensor, and what it sees.

References:
  Metz et al., "VeLO: Training versatile learned optimizers by scaling up", 2022,
  Appendix B. https://arxiv.org/abs/2211.09760
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxmeta.optimizers import _coordinates, _published

NUM_MEANS = 10  # running means of the loss
# Features of progress: tanh(10 (t / T - c)).
_PROGRESS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
NUM_GLOBAL = len(_PROGRESS) + NUM_MEANS - 1
# Published names of the layers.
_LAYERS = {
    "pooled": "linear_1",
    "inputs": "linear_2",
    "lstm": "rnn/linear",
    "rate": "step_size",
}


class RecurrentScheduler(NamedTuple):
    """Meta-parameters: F features of a tensor, H units."""

    pooled: _coordinates.Linear  # kernel [F, H], its maximum over tensors is added
    inputs: _coordinates.Linear  # kernel [F, H]
    lstm: _coordinates.Linear  # kernel [2 H, 4 H]
    rate: _coordinates.Linear  # kernel [H, 1]
    hidden: jax.Array  # [H], at the start
    cell: jax.Array  # [H]


class LossTrend(NamedTuple):
    """Running means of the loss over 10 to T updates, and their minima; [10] each."""

    means: jax.Array
    minima: jax.Array


def init(key: jax.Array, num_features: int, units: int) -> RecurrentScheduler:
    """Draws the weights; the LSTM starts from zero."""
    keys = jax.random.split(key, 4)
    linear = _coordinates.init_linear
    return RecurrentScheduler(
        pooled=linear(keys[0], num_features, units),
        inputs=linear(keys[1], num_features, units),
        lstm=linear(keys[2], 2 * units, 4 * units),
        rate=linear(keys[3], units, 1),
        hidden=jnp.zeros(units),
        cell=jnp.zeros(units),
    )


def read(tree: Mapping[str, Any]) -> RecurrentScheduler:
    """The published weights; raises whatever `tree` lacks."""
    recurrent, start = tree["rnn_params"], tree["lstm_init_state"]
    layers = {field: _published.linear(recurrent[x]) for field, x in _LAYERS.items()}
    hidden, cell = (jnp.asarray(start[name][0]) for name in ("hidden", "cell"))
    return RecurrentScheduler(**layers, hidden=hidden, cell=cell)


def init_trend(dtype: DTypeLike) -> LossTrend:
    """Before the first update."""
    return LossTrend(jnp.zeros(NUM_MEANS, dtype), jnp.full(NUM_MEANS, 1e12, dtype))


def see_time(
    trend: LossTrend, count: jax.Array, value: jax.Array, total_steps: ArrayLike
) -> tuple[jax.Array, LossTrend]:
    """What all tensors see of progress and of the loss, [18]; and the trend after it.

    Args:
      trend: of the losses before.
      count: updates before this one.
      value: the loss; at most twice the largest mean counts.
      total_steps: T.
    """
    dtype = trend.means.dtype
    total = jnp.asarray(total_steps, dtype)
    lengths = 10 ** jnp.linspace(1, jnp.log10(total), NUM_MEANS)
    decays = jnp.exp(-1 / lengths).astype(dtype)
    step = (count + 1).astype(dtype)
    correction = 1 - decays**step
    most = 2 * jnp.abs(jnp.max(trend.means / correction))
    value = jnp.minimum(value, jnp.where(count == 0, value, most))
    means = decays * trend.means + (1 - decays) * value
    corrected = means / correction
    minima = jnp.minimum(trend.minima, corrected)
    shorter, longer = corrected[:-1] - minima[:-1], corrected[1:] - minima[:-1]
    falling = jnp.clip(shorter / jnp.maximum(longer, 1e-8) - 1, -1, 1)
    falling = jnp.where(step <= 2, 0, falling)  # The first means are not yet apart.
    progress = jnp.tanh(10 * (count / total - jnp.array(_PROGRESS, dtype)))
    seen = jnp.concatenate([progress, falling]).astype(dtype)
    return seen, LossTrend(means, minima)


def recur(
    theta: RecurrentScheduler, seen: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Hidden vectors and cells after a step: from [n, F], [n, H] and [n, H]."""
    pooled = jax.nn.relu(_coordinates.apply_linear(theta.pooled, seen))
    x = _coordinates.apply_linear(theta.inputs, seen)
    x = x + jnp.max(pooled, 0, keepdims=True)
    gates = _coordinates.apply_linear(theta.lstm, jnp.concatenate([x, hidden], -1))
    i, candidate, f, o = jnp.split(gates, 4, -1)
    cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell
