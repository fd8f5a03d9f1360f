"""What small networks see of a parameter: momenta, second moments, factored ones.

References:
  Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
  optimizers", CoLLAs 2022, Table 1. https://arxiv.org/abs/2203.11860
  Shazeer and Stern, "Adafactor: Adaptive learning rates with sublinear memory cost",
  ICML 2018, Algorithm 2. https://arxiv.org/abs/1804.04235
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from jaxmeta.optimizers import _coordinates

DECAYS = (0.9, 0.99, 0.999)  # of momenta and of factored second moments
SQUARE_DECAY = 0.999
# Features of each kind, in the order of `features`.
WIDTHS = {
    "grads": 1,
    "clipped": 1,
    "params": 1,
    "mu": 3,
    "nu": 1,
    "mu over root": 3,
    "inverse root": 1,
    "factored grads": 3,
    "grads over root": 1,
    "rows": 3,
    "columns": 3,
    "inverse rows": 3,
    "inverse columns": 3,
    "factored mu": 3,
}


class Moments(NamedTuple):
    """Moments of gradients, of a tensor [...] or in trees like the parameters."""

    mu: tuple[Any, ...]  # momenta, decays 0.9, 0.99 and 0.999
    nu: Any  # second moment, decay 0.999
    rows: tuple[Any, ...]  # factored ones: means over the largest axis
    columns: tuple[Any, ...]  # over the second largest; 0 for vectors


class Decays(NamedTuple):
    """Of `Moments`."""

    mu: Sequence[float] | jax.Array = DECAYS
    nu: float | jax.Array = SQUARE_DECAY
    factored: Sequence[float] | jax.Array = DECAYS


def init(params: Any, compute: DTypeLike) -> Moments:
    """Zeros; no two of them share an array."""
    zeros = lambda: optax.tree.zeros_like(params, compute)
    factored = lambda axis: jax.tree.map(
        lambda p: _mean_over(jnp.zeros_like(p, compute), axis), params
    )
    return Moments(
        mu=tuple(zeros() for _ in DECAYS),
        nu=zeros(),
        rows=tuple(factored(0) for _ in DECAYS),
        columns=tuple(factored(1) for _ in DECAYS),
    )


def map_tensors(
    fn: Callable[..., tuple[jax.Array, Moments]],
    grads: Any,
    params: Any,
    moments: Moments,
    *rest: Any,
) -> tuple[Any, Moments]:
    """Maps `fn(grads, params, moments, *rest) -> (step, moments)` over tensors."""
    parts = _joined(moments)

    def flat(grads, params, *others):
        step, moments = fn(
            grads, params, _parted(others[: len(parts)]), *others[len(parts) :]
        )
        return step, *_joined(moments)

    steps, *parts_after = _coordinates.map_unzipped(
        flat, 1 + len(parts), grads, params, *parts, *rest
    )
    return steps, _parted(parts_after)


def _joined(moments):
    return *moments.mu, moments.nu, *moments.rows, *moments.columns


def _parted(parts):
    """Undoes `_joined`."""
    n = len(DECAYS)
    mu, (nu,), rows = parts[:n], parts[n : n + 1], parts[n + 1 : 2 * n + 1]
    return Moments(tuple(mu), nu, tuple(rows), tuple(parts[2 * n + 1 :]))


def accumulate(decays: Decays, grads: jax.Array, moments: Moments) -> Moments:
    """A tensor's moments after its gradient."""
    mix = lambda decay, old, new: decay * old + (1 - decay) * new
    mixed = lambda decays, olds, new: tuple(
        mix(decays[i], old, new) for i, old in enumerate(olds)
    )
    square = grads**2 + 1e-30
    return Moments(
        mu=mixed(decays.mu, moments.mu, grads),
        nu=mix(decays.nu, moments.nu, grads**2),
        rows=mixed(decays.factored, moments.rows, _mean_over(square, 0)),
        columns=mixed(decays.factored, moments.columns, _mean_over(square, 1)),
    )


def features(
    grads: jax.Array,
    params: jax.Array,
    moments: Moments,
    *,
    least: float = 0.0,
    root_least: float = 1e-6,
) -> dict[str, list[jax.Array]]:
    """Features of every parameter of a tensor [...], by kind; see `WIDTHS`.

    Args:
      grads: [...].
      params: [...].
      moments: after the gradient.
      least: added to a vector's factored moments where they scale its momenta.
      root_least: added to second moments where their root divides.
    """
    mu, nu, rows, columns = moments
    inverse = jax.lax.rsqrt(nu + root_least)
    spread = [_spread(*pair, grads, least) for pair in zip(rows, columns, strict=True)]
    row, column, of_mu, of_grads = zip(*spread, strict=True)
    roots = lambda xs: [jax.lax.rsqrt(x + 1e-8) for x in xs]
    return {
        "grads": [grads],
        "clipped": [jnp.clip(grads, -0.1, 0.1)],
        "params": [params],
        "mu": [*mu],
        "nu": [nu],
        "mu over root": [m * inverse for m in mu],
        "inverse root": [inverse],
        "factored grads": [grads * scale for scale in of_grads],
        "grads over root": [grads * inverse],
        "rows": [*row],
        "columns": [*column],
        "inverse rows": roots(row),
        "inverse columns": roots(column),
        "factored mu": [m * scale for m, scale in zip(mu, of_mu, strict=True)],
    }


def network(
    layers: Sequence[_coordinates.Linear],
    planes: Sequence[jax.Array],
    told: jax.Array | None = None,
) -> jax.Array:
    """A ReLU network for every parameter of a tensor, [..., outputs].

    Args:
      layers: their kernels are [features, units].
      planes: features [...]; the network sees each over its root mean square.
      told: features [n] after these, the same for all parameters.
    """
    x = jnp.stack(planes, -1)
    axes = tuple(range(x.ndim - 1))
    mean_squares = jnp.mean(x**2, axes) if x.size else jnp.zeros(x.shape[-1], x.dtype)
    # What each is divided by goes into the first layer, and so does what all are told.
    first, *others = layers
    kernel, rest = jnp.split(first.kernel, [len(planes)])
    scaled = jax.lax.rsqrt(mean_squares + 1e-5)[:, None] * kernel
    bias = first.bias if told is None else first.bias + told @ rest
    return mlp((_coordinates.Linear(scaled, bias), *others), x)


def mlp(layers: Sequence[_coordinates.Linear], x: jax.Array) -> jax.Array:
    """ReLU layers along the last axis."""
    first, *others = layers
    x = _coordinates.apply_linear(first, x)
    for layer in others:
        x = _coordinates.apply_linear(layer, jax.nn.relu(x))
    return x


def move(
    grads: jax.Array,
    params: jax.Array,
    moments: Moments,
    layers: Sequence[_coordinates.Linear],
    rate: jax.Array,
) -> tuple[jax.Array, Moments]:
    """VeLO's and Celo's update of a tensor, and its moments."""
    grads = clipped(grads)
    moments = accumulate(Decays(), grads, moments)
    kinds = features(grads, params, moments).values()
    x = network(layers, [plane for kind in kinds for plane in kind])
    size = jnp.sqrt(jnp.mean(params**2) + 1e-9) if params.size else 0.0
    return -1e-3 * rate * size * x[..., 0] * jnp.exp(1e-3 * x[..., 1]), moments


def clipped(grads: jax.Array) -> jax.Array:
    """Gradients as VeLO and Celo see them."""
    return jnp.clip(grads, -1000, 1000)


def init_network(
    key: jax.Array, sizes: Sequence[int]
) -> tuple[_coordinates.Linear, ...]:
    """Layers of these sizes."""
    pairs = zip(
        jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True
    )
    return tuple(_coordinates.init_linear(*pair) for pair in pairs)


def read_networks(tree: Mapping[str, Any]) -> tuple[_coordinates.Linear, ...]:
    """A published stack of N networks: kernels [N, inputs, outputs].

    Their first layer has a kernel for each kind of feature.
    """
    network = tree["~"]
    kinds = range(len(WIDTHS))
    first = np.concatenate([network[f"w0__{i}"] for i in kinds], -2)
    kernels = first, network["w1"], network["w2"]
    return tuple(
        _coordinates.Linear(jnp.asarray(kernel), jnp.asarray(network[f"b{i}"]))
        for i, kernel in enumerate(kernels)
    )


def _factored_axes(x):
    """The largest and second largest axes, of equals the later; None of vectors."""
    if x.ndim < 2:
        return None
    order = np.argsort(x.shape, kind="stable")
    return int(order[-1]), int(order[-2])


def _mean_over(x, which):
    """The mean over one of the factored axes; of vectors, themselves or 0."""
    axes = _factored_axes(x)
    if axes is None:
        return x if which == 0 else jnp.zeros((), x.dtype)
    return jnp.mean(x, axes[which]) if x.size else jnp.sum(x, axes[which])


def _spread(rows, columns, like, least):
    """Factored moments over a tensor: rows, columns, and two inverse roots.

    The first root is a momentum's, the second a gradient's; they differ for vectors.
    """
    axes = _factored_axes(like)
    if axes is None:
        of_mu = _coordinates.inverse_root(rows + least)
        return rows, rows, of_mu, _clipped_root(rows + 1e-9)
    largest, second = axes
    # `rows` lack the largest axis.
    kept = second - (second > largest)
    share = rows / (jnp.mean(rows, kept, keepdims=True) + 1e-9)
    # Zeros, not `broadcast_to`, to keep the tensor's sharding.
    zeros = jnp.zeros_like(like)
    over = lambda x, axis: jnp.expand_dims(x, axis) + zeros
    scale = over(_clipped_root(share), largest) * over(_clipped_root(columns), second)
    return over(rows, largest), over(columns, second), scale, scale


def _clipped_root(x):
    return jax.lax.rsqrt(jnp.maximum(x, 1e-9))
