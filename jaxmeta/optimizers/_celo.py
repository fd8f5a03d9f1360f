"""Celo: a small network per parameter, and a recurrent one that schedules it.

References:
  Moudgil et al., "Celo: Training versatile learned optimizers on a compute diet", TMLR
  2025. https://arxiv.org/abs/2501.12670
  Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
  optimizers", CoLLAs 2022: the features of a parameter.
  https://arxiv.org/abs/2203.11860
  Metz et al., "VeLO: Training versatile learned optimizers by scaling up", 2022: the
  features of the loss. https://arxiv.org/abs/2211.09760
"""

import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _coordinates, _rule

_DECAYS = (0.9, 0.99, 0.999)  # of momenta and of factored second moments
_SQUARE_DECAY = 0.999
_NUM_MOMENTS = 3 * len(_DECAYS) + 1
# Features of progress: tanh(10 (t / T - c)).
_PROGRESS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
_NUM_MEANS = 10  # running means of the loss
_WIDTHS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)  # of features of a parameter
_HIDDEN, _UNITS = 4, 64
# The published names of `pooled`, `inputs`, `lstm` and `rate`.
_RECURRENT = ("linear_1", "linear_2", "rnn/linear", "step_size")


class CeloTheta(NamedTuple):
    """Meta-parameters of `celo`."""

    direction: tuple[_coordinates.Linear, ...]  # kernels [30, 4], [4, 4], [4, 3]
    pooled: _coordinates.Linear  # kernel [18, 64], its maximum over tensors is added
    inputs: _coordinates.Linear  # kernel [18, 64]
    lstm: _coordinates.Linear  # kernel [128, 256]
    rate: _coordinates.Linear  # kernel [64, 1]
    hidden: jax.Array  # [64], at the start
    cell: jax.Array  # [64]


class CeloState(NamedTuple):
    """State of `celo`; trees like the parameters, their leaves [...] unless stated."""

    count: jax.Array  # [] int32
    mu: tuple[Any, ...]  # momenta, decays 0.9, 0.99 and 0.999
    nu: Any  # second moment, decay 0.999
    rows: tuple[Any, ...]  # factored ones: means over the largest axis
    columns: tuple[Any, ...]  # over the second largest; 0 for vectors
    scheduler: jax.Array  # [148]: the LSTM's hidden vector and cell, means, minima


def celo(total_steps: int | jax.Array | None = None) -> base.LearnedOptimizer:
    r"""Celo's two parts: a direction per parameter, and a rate for all.

    .. math::
      u = -10^{-3}\, \alpha_t\, d\, e^{10^{-3} a} \sqrt{\overline{p^2} + 10^{-9}}

    A network of two layers of four units computes d and a for each parameter, from
    thirty features: the gradient, momenta and second moments, factored ones among them,
    each over its root mean square in the tensor. An LSTM of 64 units computes the rate
    from the share of steps done and ten running means of the loss.

    The update requires the parameters and the loss: `tx.update(grads, state, params,
    value=loss)`. Gradients are clipped to 1,000. A NaN stays in its tensor's state, or
    if it is a loss, in the state of all.

    Args:
      total_steps: T, the number of updates that are planned. None: `update` is told it
        as an extra argument, `total_steps=T`.

    Returns:
      A `LearnedOptimizer` with 37,089 meta-parameters. Its state is 4 numbers per
      parameter and 3 per row and column. `load_celo` reads the published weights.

    Raises:
      ValueError: if `total_steps` is not positive; from `transform`, if `theta` does
        not match this architecture; from the transformation, if parameters are complex,
        `params` or `value` is missing, or T is unknown.

    Differs from the published code:
      What has no effect there, another linear layer and one more output, is left out.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = celo(total_steps=100)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> params = jnp.ones((3, 2))
      >>> updates, _ = tx.update(params, tx.init(params), params, value=jnp.array(1.0))
      >>> updates.shape
      (3, 2)
    """
    description = _describe.describe(celo, locals())

    def init(key):
        keys = jax.random.split(key, 7)
        linear = _coordinates.init_linear
        num_seen = len(_PROGRESS) + _NUM_MEANS - 1
        sizes = (sum(_WIDTHS), _HIDDEN, _HIDDEN, 3)
        pairs = zip(keys[:3], sizes[:-1], sizes[1:], strict=True)
        return CeloTheta(
            direction=tuple(linear(*pair) for pair in pairs),
            pooled=linear(keys[3], num_seen, _UNITS),
            inputs=linear(keys[4], num_seen, _UNITS),
            lstm=linear(keys[5], 2 * _UNITS, 4 * _UNITS),
            rate=linear(keys[6], _UNITS, 1),
            hidden=jnp.zeros(_UNITS),
            cell=jnp.zeros(_UNITS),
        )

    def init_state(theta, params, compute):
        zeros = lambda: optax.tree.zeros_like(params, compute)
        factored = lambda axis: jax.tree.map(
            lambda p: _mean_over(jnp.zeros_like(p, compute), axis), params
        )
        largest = jnp.full(_NUM_MEANS, 1e12, compute)
        start = theta.hidden, theta.cell, jnp.zeros(_NUM_MEANS), largest
        return CeloState(
            count=jnp.zeros((), jnp.int32),
            mu=tuple(zeros() for _ in _DECAYS),
            nu=zeros(),
            rows=tuple(factored(0) for _ in _DECAYS),
            columns=tuple(factored(1) for _ in _DECAYS),
            scheduler=jnp.concatenate([jnp.asarray(x, compute) for x in start]),
        )

    def update(theta, grads, state, *, params, value, total_steps):
        rate, scheduler = _schedule(
            theta, state.scheduler, state.count, value, total_steps
        )
        steps, *moments = _coordinates.map_unzipped(
            functools.partial(_move, theta.direction, rate),
            1 + _NUM_MOMENTS,
            grads,
            params,
            *_joined(state.mu, state.nu, state.rows, state.columns),
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, CeloState(count, *_parted(moments), scheduler)

    return _rule.from_network(
        description,
        init,
        init_state,
        update,
        needs=("params", "value"),
        takes_total_steps=True,
        total_steps=total_steps,
    )


def load_celo(
    path: str | os.PathLike[str], *, total_steps: int | jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns Celo with the weights that its authors publish.

    Args:
      path: their file `theta.state`, flax's msgpack.
      total_steps: as for `celo`.

    Raises:
      ValueError: if `path` is no such file.

    Example:
      >>> load_celo("no such file")
      Traceback (most recent call last):
      ...
      ValueError: `path` must be a file with Celo's weights, got no such file: ...
    """
    return celo(total_steps).transform(read_celo(path))


def read_celo(path: str | os.PathLike[str]) -> CeloTheta:
    """Reads the published weights; raises ValueError if `path` is no such file."""
    from flax import serialization

    like = jax.eval_shape(celo().init, jax.random.key(0))
    try:
        tree = serialization.msgpack_restore(pathlib.Path(path).read_bytes())
        recurrent, network = tree["rnn_params"], tree["ff_mod_stack"]["~"]
        # A stack of one network, with a kernel per feature: [1, F, 4].
        first = np.concatenate([network[f"w0__{i}"][0] for i in range(len(_WIDTHS))])
        kernels = (first, network["w1"][0], network["w2"][0])
        biases = tuple(network[f"b{i}"][0] for i in range(3))
        layers = [recurrent[name] for name in _RECURRENT]
        start = [tree["lstm_init_state"][name][0] for name in ("hidden", "cell")]
    except Exception as error:
        raise ValueError(
            f"`path` must be a file with Celo's weights, got {path}: {error!r}"
        ) from error
    linear = lambda w, b: _coordinates.Linear(jnp.asarray(w), jnp.asarray(b))
    pooled, inputs, lstm, rate = (linear(x["w"], x["b"]) for x in layers)
    hidden, cell = map(jnp.asarray, start)
    direction = tuple(linear(*pair) for pair in zip(kernels, biases, strict=True))
    theta = CeloTheta(direction, pooled, inputs, lstm, rate, hidden, cell)
    _checks.check_like("path", theta, like)
    return theta


def _schedule(theta, state, count, value, total_steps):
    """The rate of all tensors, and the scheduler's state."""
    dtype = state.dtype
    sizes = np.cumsum([_UNITS, _UNITS, _NUM_MEANS])
    hidden, cell, means, minima = jnp.split(state, sizes)
    total = jnp.asarray(total_steps, dtype)
    # Means over 10 to T updates.
    lengths = 10 ** jnp.linspace(1, jnp.log10(total), _NUM_MEANS)
    decays = jnp.exp(-1 / lengths).astype(dtype)
    step = (count + 1).astype(dtype)
    correction = 1 - decays**step
    most = jnp.where(count == 0, value, 2 * jnp.abs(jnp.max(means / correction)))
    means = decays * means + (1 - decays) * jnp.minimum(value, most)
    corrected = means / correction
    minima = jnp.minimum(minima, corrected)
    shorter, longer = corrected[:-1] - minima[:-1], corrected[1:] - minima[:-1]
    trend = jnp.clip(shorter / jnp.maximum(longer, 1e-8) - 1, -1, 1)
    trend = jnp.where(step <= 2, 0, trend)  # The first means are not yet apart.
    progress = jnp.tanh(10 * (count / total - jnp.array(_PROGRESS, dtype)))
    seen = jnp.concatenate([progress, trend]).astype(dtype)
    # Every tensor sees the same, so that the maximum over them is its own.
    x = jax.nn.relu(_coordinates.apply_linear(theta.pooled, seen))
    x = x + _coordinates.apply_linear(theta.inputs, seen)
    gates = _coordinates.apply_linear(theta.lstm, jnp.concatenate([x, hidden]))
    i, candidate, f, o = jnp.split(gates, 4)
    cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    rate = 0.1 * jnp.exp(_coordinates.apply_linear(theta.rate, hidden)[0])
    return rate, jnp.concatenate([hidden, cell, means, minima])


def _joined(mu, nu, rows, columns):
    return *mu, nu, *rows, *columns


def _parted(moments):
    """Undoes `_joined`."""
    n = len(_DECAYS)
    mu, (nu,), rows = moments[:n], moments[n : n + 1], moments[n + 1 : 2 * n + 1]
    return tuple(mu), nu, tuple(rows), tuple(moments[2 * n + 1 :])


def _move(layers, rate, grads, params, *moments):
    """The update of a tensor, and its moments."""
    mu, nu, rows, columns = _parted(moments)
    grads = jnp.clip(grads, -1000, 1000)
    mu = tuple(d * m + (1 - d) * grads for d, m in zip(_DECAYS, mu, strict=True))
    nu = _SQUARE_DECAY * nu + (1 - _SQUARE_DECAY) * grads**2
    rows, columns = (
        tuple(
            d * x + (1 - d) * _mean_over(grads**2 + 1e-30, axis)
            for d, x in zip(_DECAYS, xs, strict=True)
        )
        for axis, xs in ((0, rows), (1, columns))
    )
    inverse = jax.lax.rsqrt(nu + 1e-6)
    spread = [_spread(*pair, grads) for pair in zip(rows, columns, strict=True)]
    row, column, scales, of_grads = zip(*spread, strict=True)
    features = [
        grads,
        jnp.clip(grads, -0.1, 0.1),
        params,
        *mu,
        nu,
        *(m * inverse for m in mu),
        inverse,
        *(grads * scale for scale in of_grads),
        grads * inverse,
        *row,
        *column,
        *(jax.lax.rsqrt(x + 1e-8) for x in row),
        *(jax.lax.rsqrt(x + 1e-8) for x in column),
        *(m * scale for m, scale in zip(mu, scales, strict=True)),
    ]
    x = jnp.stack(features, -1)  # [..., 30]
    axes = tuple(range(grads.ndim))
    # Each over its root mean square, which goes into the first layer.
    mean_squares = jnp.mean(x**2, axes) if x.size else jnp.zeros(x.shape[-1], x.dtype)
    kernel = jax.lax.rsqrt(mean_squares + 1e-5)[:, None] * layers[0].kernel
    x = _coordinates.apply_linear(layers[0]._replace(kernel=kernel), x)
    for layer in layers[1:]:
        x = _coordinates.apply_linear(layer, jax.nn.relu(x))
    size = jnp.sqrt(jnp.mean(params**2) + 1e-9) if params.size else 0.0
    step = x[..., 0] * jnp.exp(1e-3 * x[..., 1])
    return -1e-3 * rate * size * step, *_joined(mu, nu, rows, columns)


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


def _spread(rows, columns, like):
    """Factored moments over a tensor: rows, columns, and two inverse roots.

    The first root is a momentum's, the second a gradient's; they differ for vectors.
    """
    axes = _factored_axes(like)
    if axes is None:
        return rows, rows, _coordinates.inverse_root(rows), _clipped_root(rows + 1e-9)
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
