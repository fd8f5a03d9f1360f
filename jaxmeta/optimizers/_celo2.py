"""Celo2: a small network per parameter, whose update of a matrix is orthogonalised.

References:
  Moudgil, Knyazev, Belilovsky, "Celo2: Towards learned optimization free lunch", ICLR
  2026. https://arxiv.org/abs/2602.19142
  Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024: the
  iteration of Newton and Schulz. https://kellerjordan.github.io/posts/muon/
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxmeta import _describe, base
from jaxmeta.optimizers import _coordinates, _factored, _published, _rule

_DECAYS = _factored.Decays(nu=0.95)
_UNITS = 8  # of both layers
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# What vectors have of the features, in the order of the weights.
_OF_VECTORS = tuple(_factored.WIDTHS)[: tuple(_factored.WIDTHS).index("rows")]


class Celo2Theta(NamedTuple):
    """Meta-parameters of `celo2`."""

    layers: tuple[_coordinates.Linear, ...]  # kernels [30, 8], [8, 8], [8, 3]


class Celo2State(NamedTuple):
    """State of `celo2`."""

    count: jax.Array  # [] int32
    moments: _factored.Moments  # trees like the parameters; nu has a decay of 0.95


def celo2(
    learning_rate: float | Callable[[jax.Array], ArrayLike],
    *,
    weight_decay: float = 0.0,
    orthogonalize: bool = True,
) -> base.LearnedOptimizer:
    r"""Celo2: the direction is learned, rate and schedule are yours.

    .. math::
      u = -\eta_t \left(\frac{o(d)}{\mathrm{rms}(o(d))} + \lambda p\right)

    A network of two layers of eight units computes d for each parameter, from the
    thirty features that `celo` has, too, each over its root mean square in the matrix;
    o makes the matrix d orthogonal. Matrices are the last two axes of a tensor; vectors
    get AdamW's update with decays 0.9 and 0.95. The authors give AdamW's to embeddings,
    too: see `optax.multi_transform`.

    The update requires the parameters: `tx.update(grads, state, params)`. Gradients are
    clipped to 1,000. A NaN stays in its tensor's state.

    Args:
      learning_rate: :math:`\eta`, or a schedule of the number of updates.
      weight_decay: :math:`\lambda`.
      orthogonalize: False is Celo2-base: d as it is, also for vectors. Static.

    Returns:
      A `LearnedOptimizer` with 347 meta-parameters. Its state is 4 numbers per
      parameter and 3 per row and column. `load_celo2` reads the published weights.

    Raises:
      ValueError: if `weight_decay` is negative; from `transform`, if `theta` does not
        match this architecture; from the transformation, if parameters are complex or
        `params` is missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = celo2(1e-3)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> params = jnp.ones((3, 2))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates.shape
      (3, 2)
    """
    description = _describe.describe(celo2, locals())
    if not weight_decay >= 0:
        raise ValueError(f"`weight_decay` must be at least 0, got {weight_decay}.")
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate

    def init(key):
        sizes = (sum(_factored.WIDTHS.values()), _UNITS, _UNITS, 3)
        return Celo2Theta(_factored.init_network(key, sizes))

    def init_state(theta, params, compute):
        del theta
        return Celo2State(jnp.zeros((), jnp.int32), _factored.init(params, compute))

    def update(theta, grads, state, *, params):
        rate = jnp.asarray(schedule(state.count), theta.layers[0].bias.dtype)
        count = jnp.asarray(optax.safe_increment(state.count))

        def move(grads, params, moments):
            grads = _factored.clipped(grads)
            moments = _factored.accumulate(_DECAYS, grads, moments)
            if orthogonalize and grads.ndim < 2:
                direction = _adam(moments, count)
            else:
                direction = _direction(theta, grads, params, moments, orthogonalize)
            return -rate * (direction + weight_decay * params), moments

        steps, moments = _factored.map_tensors(move, grads, params, state.moments)
        return steps, Celo2State(count, moments)

    return _rule.from_network(description, init, init_state, update, needs=("params",))


def load_celo2(
    path: str | os.PathLike[str],
    learning_rate: float | Callable[[jax.Array], ArrayLike],
    *,
    weight_decay: float = 0.0,
    orthogonalize: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Returns Celo2 with the weights that its authors publish.

    Args:
      path: their file `theta.state`, flax's msgpack.
      learning_rate: as for `celo2`.
      weight_decay: as for `celo2`.
      orthogonalize: as for `celo2`; False for the weights of Celo2-base.

    Raises:
      ValueError: if `path` is no such file.

    Example:
      >>> load_celo2("no such file", 1e-3)
      Traceback (most recent call last):
      ...
      ValueError: `path` must be a file with Celo2's weights, got no such file: ...
    """
    lopt = celo2(learning_rate, weight_decay=weight_decay, orthogonalize=orthogonalize)
    parse = lambda tree: Celo2Theta(_factored.read_networks(tree["ff_mod_stack"]))
    theta, _ = _published.read(path, "Celo2", lambda tree: (parse(tree), lopt))
    return lopt.transform(theta)


def _adam(moments, count):
    """Adam's direction, from the first of the momenta."""
    corrected = lambda x, decay: x / (1 - jnp.asarray(decay, x.dtype) ** count)
    square = corrected(moments.nu, _DECAYS.nu)
    return corrected(moments.mu[0], _DECAYS.mu[0]) * _inverse(square)


def _inverse(square):
    """1 / (sqrt(square) + 1e-8), with finite derivatives also at zero."""
    root = _coordinates.inverse_root(square)
    return root / (1 + 1e-8 * root)


def _direction(theta, grads, params, moments, orthogonalize):
    """What the network says of a tensor, over its root mean square in a matrix."""
    kinds = _factored.features(grads, params, moments, root_least=1e-8)
    names = kinds if grads.ndim > 1 else _OF_VECTORS
    x = jnp.stack([plane for name in names for plane in kinds[name]], -1)
    axes = tuple(range(grads.ndim))[-2:]
    first, *others = theta.layers
    first = first._replace(kernel=first.kernel[: x.shape[-1]])
    direction = _factored.mlp((first, *others), _over_size(x, axes))[..., 0]
    if orthogonalize:
        direction = _orthogonal(direction)
    return _over_size(direction, axes)


def _over_size(x, axes):
    if not x.size:
        return x
    return x * jax.lax.rsqrt(jnp.mean(x**2, axes, keepdims=True) + 1e-9)


def _orthogonal(x):
    """About the nearest matrices [..., m, n] with orthogonal rows or columns."""
    spec = jax.typeof(x).sharding.spec
    if any(spec):  # Products of matrices would have to be told their shardings.
        return jax.sharding.auto_axes(_orthogonal, out_sharding=spec)(x)
    transpose = functools.partial(jnp.swapaxes, axis1=-2, axis2=-1)
    is_tall = x.shape[-2] > x.shape[-1]
    x = transpose(x) if is_tall else x
    x = x * _inverse(jnp.sum(x**2, (-2, -1), keepdims=True))
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        square = x @ transpose(x)
        x = a * x + (b * square + c * square @ square) @ x
    return transpose(x) if is_tall else x
