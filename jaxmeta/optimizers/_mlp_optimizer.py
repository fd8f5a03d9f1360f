"""A small network per parameter, over normalised features.

References:
  Metz et al., "Tasks, stability, architecture, and compute: training more effective
  learned optimizers, and using them to train themselves", 2020.
  https://arxiv.org/abs/2009.11243
  Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
  optimizers", CoLLAs 2022, Section 3. https://arxiv.org/abs/2203.11860
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _blocks, _coordinates, _rule

_MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
# Training-progress features: tanh(t / T - 1) for these T.
_TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
_NUM_FEATURES = 2 + len(_MOMENTUM_DECAYS) + len(_TIME_SCALES)


class MlpState(NamedTuple):
    """State of `mlp`."""

    count: jax.Array  # [] int32
    momenta: Any  # a tree like the parameters, leaves [..., 6]


def mlp(
    hidden_size: int = 32,
    num_layers: int = 2,
    *,
    step_scale: float = 1e-3,
) -> base.LearnedOptimizer:
    r"""A multilayer perceptron that computes the update of each parameter.

    It sees the gradient, six momenta with decays 0.1 ... 0.9999 and the parameter, each
    over its root mean square in the leaf, and eleven features of time; it outputs a
    direction d and log-magnitude m, for an update of
    :math:`10^{-3}\, d\, e^{10^{-3} m}`. It needs a third of the arithmetic and a
    thirteenth of the state of an LSTM with 20 units, and is invariant to the scale of
    the loss. A NaN gradient makes its whole leaf NaN, an infinite one its own
    parameter; both stay in the momenta. `optax.apply_if_finite` skips such steps.

    Args:
      hidden_size: units per hidden layer (ReLU). Static.
      num_layers: hidden layers. Static.
      step_scale: both factors :math:`10^{-3}`.

    Returns:
      A `LearnedOptimizer`. Its state is 6 numbers per parameter; its update requires
      the parameters.

    Raises:
      ValueError: if a size is not positive; from `transform`, if `theta` does not
        match this architecture; from the transformation, if parameters are complex, or
        `params` is missing.

    Differs from the reference:
      The output is added, not subtracted; 1e-10 is added to mean squares instead of
      1e-5.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = mlp()
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> params = jnp.ones(3)
      >>> updates, _ = tx.update(2 * params, tx.init(params), params)
      >>> bool((jnp.abs(updates) < 0.01).all())
      True
    """
    description = _describe.describe(mlp, locals())
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_int("num_layers", num_layers)
    _checks.check_positive("step_scale", step_scale)
    sizes = [_NUM_FEATURES, *[hidden_size] * num_layers, 2]

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return tuple(_coordinates.init_linear(*pair) for pair in pairs)

    def init_state(theta, params, compute):
        del theta
        momenta = _coordinates.hidden_like(params, len(_MOMENTUM_DECAYS), compute)
        return MlpState(count=jnp.zeros((), jnp.int32), momenta=momenta)

    def leaf_step(theta, time, grads, momenta, params):
        decay = jnp.broadcast_to(
            jnp.array(_MOMENTUM_DECAYS, momenta.dtype), momenta.shape
        )
        momenta = decay * momenta + (1 - decay) * grads[..., None]
        joined = [grads[..., None], momenta, params[..., None]]
        features = jnp.concatenate(joined, -1)
        network = _with_folded(theta, _scales(features), time)
        no_state = features[..., :0]
        out, _ = _blocks.at_coordinates(_apply, None, network, features, no_state)
        return step_scale * out[..., 0] * jnp.exp(step_scale * out[..., 1]), momenta

    def update(theta, grads, state, *, params):
        scales = jnp.array(_TIME_SCALES, theta[0].bias.dtype)
        time = jnp.tanh(state.count / scales - 1)
        step = functools.partial(leaf_step, theta, time)
        steps, momenta = _coordinates.map_unzipped(
            step, 2, grads, state.momenta, params
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, MlpState(count, momenta)

    return _rule.from_network(description, init, init_state, update, needs=("params",))


def _scales(features: jax.Array) -> jax.Array:
    """The inverse root mean squares [F] of features [..., F] in a leaf."""
    if not features.size:  # An empty mean is NaN.
        return jnp.ones(features.shape[-1], features.dtype)
    mean_square = jnp.mean(jnp.square(features), tuple(range(features.ndim - 1)))
    # 1e-10 inside the root bounds its derivative for a leaf of zeros.
    return jax.lax.rsqrt(mean_square + 1e-10)


def _with_folded(layers, scales, time):
    """The network for features before they are scaled, and without those of time.

    Both are the same at all parameters: W [x * scales, time] + b
    = (W_x * scales) x + (b + W_time time).
    """
    first, *others = layers
    of_features, of_time = jnp.split(first.kernel, [len(scales)])
    bias = first.bias + time @ of_time
    return _coordinates.Linear(scales[:, None] * of_features, bias), *others


def _apply(layers, features, state, axis=-1):
    """The network at every coordinate; `axis` is the feature axis."""
    for layer in layers[:-1]:
        features = jax.nn.relu(_coordinates.apply_linear(layer, features, axis))
    return _coordinates.apply_linear(layers[-1], features, axis), state
