"""A small network per parameter that sees what Adam and Adafactor keep.

References:
  Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
  optimizers", CoLLAs 2022: `small_fc_mlp`. https://arxiv.org/abs/2203.11860
"""

import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _coordinates, _factored, _published, _rule

# Of `_factored.features`, in the order of the published weights.
_SEEN = tuple(
    name for name in _factored.WIDTHS if name not in ("clipped", "grads over root")
)
# Features of time: tanh(t / T - 1).
_TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


class SmallFcMlpTheta(NamedTuple):
    """Meta-parameters of `small_fc_mlp` with H units a layer."""

    layers: tuple[_coordinates.Linear, ...]  # kernels [39, H], [H, H] ..., [H, 2]
    mu_decays: jax.Array  # [3], by which decays of momenta differ, see `small_fc_mlp`
    nu_decays: jax.Array  # [1]
    factored_decays: jax.Array  # [3]


class SmallFcMlpState(NamedTuple):
    """State of `small_fc_mlp`."""

    count: jax.Array  # [] int32
    moments: _factored.Moments  # trees like the parameters


def small_fc_mlp(hidden_size: int = 4, num_layers: int = 2) -> base.LearnedOptimizer:
    r"""learned_optimization's `AdafacMLPLOpt`, a network for every parameter.

    .. math::
      u = -10^{-3}\, d\, e^{10^{-3} a}

    ReLU layers compute d and a from 28 features of a parameter, each over its root mean
    square in the tensor: the gradient, the parameter, momenta, second moments and
    factored ones; and from eleven of the number of updates. Decays of moments are
    meta-parameters: :math:`1 - (1 - \beta)\, e^{10 \theta}` of 0.9, 0.99 and 0.999.

    The update requires the parameters: `tx.update(grads, state, params)`. A gradient
    that is infinite or NaN stays in its tensor's state.

    Args:
      hidden_size: H, units of a hidden layer. Static.
      num_layers: hidden layers. Static.

    Returns:
      A `LearnedOptimizer` with 197 meta-parameters. Its state is 4 numbers per
      parameter and 3 per row and column. `load_small_fc_mlp` reads weights that
      learned_optimization saved.

    Raises:
      ValueError: if a size is not positive; from `transform`, if `theta` does not match
        this architecture; from the transformation, if parameters are complex or
        `params` is missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = small_fc_mlp()
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> params = jnp.ones((3, 2))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates.shape
      (3, 2)
    """
    description = _describe.describe(small_fc_mlp, locals())
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_int("num_layers", num_layers)
    num_features = sum(_factored.WIDTHS[name] for name in _SEEN) + len(_TIMES)

    def init(key):
        sizes = (num_features, *[hidden_size] * num_layers, 2)
        layers = _factored.init_network(key, sizes)
        return SmallFcMlpTheta(layers, jnp.zeros(3), jnp.zeros(1), jnp.zeros(3))

    def init_state(theta, params, compute):
        del theta
        return SmallFcMlpState(
            jnp.zeros((), jnp.int32), _factored.init(params, compute)
        )

    def update(theta, grads, state, *, params):
        dtype = theta.mu_decays.dtype
        times = jnp.array(_TIMES, dtype)
        step = functools.partial(
            _move, theta.layers, _decays(theta), jnp.tanh(state.count / times - 1)
        )
        steps, moments = _factored.map_tensors(step, grads, params, state.moments)
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, SmallFcMlpState(count, moments)

    return _rule.from_network(description, init, init_state, update, needs=("params",))


def load_small_fc_mlp(
    path: str | os.PathLike[str],
) -> optax.GradientTransformationExtraArgs:
    """Returns `small_fc_mlp` with weights that learned_optimization saved.

    Args:
      path: a checkpoint of its `AdafacMLPLOpt`, or the meta-parameters alone; flax's
        msgpack.

    Raises:
      ValueError: if `path` is no such file.

    Example:
      >>> load_small_fc_mlp("no such file")
      Traceback (most recent call last):
      ...
      ValueError: `path` must be a file with AdafacMLPLOpt's weights, got no such ...
    """

    def parse(tree):
        tree = tree.get("params", tree)
        network = tree["nn"]["~"]
        layers = tuple(
            _published.linear({"w": network[f"w{i}"], "b": network[f"b{i}"]})
            for i in range(len(network) // 2)
        )
        decays = (
            jnp.asarray(tree[f"{name}_decays"])
            for name in ("momentum", "rms", "adafactor")
        )
        hidden = [layer.bias.size for layer in layers[:-1]]
        return SmallFcMlpTheta(layers, *decays), small_fc_mlp(hidden[0], len(hidden))

    theta, lopt = _published.read(path, "AdafacMLPLOpt", parse)
    return lopt.transform(theta)


def _decays(theta):
    """Decays of moments; those of second moments stay within 0 and 1."""
    moved = lambda decays, by: 1 - (1 - jnp.array(decays, by.dtype)) * jnp.exp(10 * by)
    within = lambda decays, by: jnp.clip(moved(decays, by), 0, 1)
    return _factored.Decays(
        mu=moved(_factored.DECAYS, theta.mu_decays),
        nu=within((_factored.SQUARE_DECAY,), theta.nu_decays)[0],
        factored=within(_factored.DECAYS, theta.factored_decays),
    )


def _move(layers, decays, time, grads, params, moments):
    """The update of a tensor, and its moments."""
    moments = _factored.accumulate(decays, grads, moments)
    seen = _factored.features(grads, params, moments, least=1e-6)
    planes = [plane for name in _SEEN for plane in seen[name]]
    x = _factored.network(layers, planes, told=time)
    return -1e-3 * x[..., 0] * jnp.exp(1e-3 * x[..., 1]), moments
