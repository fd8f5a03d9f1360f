"""The coordinatewise LSTM optimizer.

References:
  Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
  NeurIPS 2016, Section 2.1 and Appendix A. https://arxiv.org/abs/1606.04474
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxmeta import _checks, base
from jaxmeta.optimizers import _coordinates, _preprocess


class LstmTheta(NamedTuple):
    """Meta-parameters of `lstm`, H hidden units."""

    layers: tuple[_coordinates.Linear, ...]  # kernels [I + H, 4 H]
    head: _coordinates.Linear  # kernel [H, 1]


class LstmState(NamedTuple):
    """State of `lstm`: for each layer a tree like the parameters."""

    hidden: tuple[Any, ...]  # leaves [..., H]
    cell: tuple[Any, ...]  # leaves [..., H]


def lstm(
    hidden_size: int = 20,
    num_layers: int = 2,
    *,
    preprocess: _preprocess.Preprocess | None = None,
    output_scale: float | jax.Array = 0.1,
    state_dtype: DTypeLike | None = None,
) -> base.LearnedOptimizer:
    r"""An LSTM that makes the updates, the same for every coordinate.

    .. math::
      \theta_{t+1} = \theta_t + g_t, \qquad
      (g_t, h_{t+1}) = m(\nabla f(\theta_t), h_t, \phi)

    Each coordinate has a state of its own, all share the weights :math:`\phi`. The
    update is the paper's, sign included: it is *added*. Per-group LSTMs (convolutional
    and fully connected weights) are `optax.partition` of two transformations.

    A gradient that is not finite makes the state of its coordinate, and all its later
    updates, NaN; `optax.apply_if_finite` skips such steps.

    Args:
      hidden_size: H, the units of a layer. Static.
      num_layers: layers of LSTM. Static.
      preprocess: what the network sees of a gradient, `[...] -> [..., F]`; None is
        `log_gradient(p=10)`. The paper's quadratics have `scaled_gradient()`.
      output_scale: of the update; the paper's is 0.1 on MNIST, 1 on quadratics.
      state_dtype: of the state; None is that of the meta-parameters. The network
        computes in float32, or in what the meta-parameters have if that is more.

    Returns:
      A `LearnedOptimizer`. Its state is 2 H numbers a layer and parameter.

    Raises:
      ValueError: if a size is not a positive int; from `init` and `update` of the
        transformation, if `theta` is of another architecture, or parameters are
        complex.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> lopt = lstm(hidden_size=4)
      >>> theta = lopt.init(jax.random.key(0))
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.transform(theta))
      >>> params = jnp.ones(3)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(2 * params, state, params)
      >>> optax.apply_updates(params, updates).shape
      (3,)
    """
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_int("num_layers", num_layers)
    if preprocess is None:
        preprocess = _preprocess.log_gradient()
    num_features = jax.eval_shape(preprocess, jnp.zeros(())).shape[-1]
    input_sizes = [num_features, *[hidden_size] * (num_layers - 1)]

    def init(key, params=None):
        del params
        head_key, *keys = jax.random.split(key, num_layers + 1)
        layers = [
            _coordinates.init_lstm(k, size, hidden_size)
            for k, size in zip(keys, input_sizes, strict=True)
        ]
        head = _coordinates.init_linear(head_key, hidden_size, 1)
        return LstmTheta(tuple(layers), head)

    like = jax.eval_shape(init, jax.random.key(0))

    def transform(theta):
        _checks.check_like("theta", theta, like)
        compute_dtype = jnp.promote_types(theta.head.kernel.dtype, jnp.float32)
        dtype = theta.head.kernel.dtype if state_dtype is None else state_dtype
        theta = jax.tree.map(lambda x: x.astype(compute_dtype), theta)

        def init_state(params):
            _checks.check_real("params", params)
            zeros = tuple(
                _coordinates.hidden_like(params, hidden_size, dtype)
                for _ in range(num_layers)
            )
            return LstmState(hidden=zeros, cell=zeros)

        def coordinate_step(grads, *states):
            x = preprocess(grads.astype(compute_dtype))
            hidden, cell = [], []
            for k, layer in enumerate(theta.layers):
                h, c = (s.astype(compute_dtype) for s in states[k::num_layers])
                x, c = _coordinates.lstm_cell(layer, x, h, c)
                hidden.append(x.astype(dtype))
                cell.append(c.astype(dtype))
            out = output_scale * _coordinates.apply_linear(theta.head, x)[..., 0]
            return out.astype(grads.dtype), *hidden, *cell

        def update(updates, state, params=None, **extra_args):
            del params, extra_args
            updates, *states = _coordinates.map_unzipped(
                coordinate_step,
                1 + 2 * num_layers,
                updates,
                *state.hidden,
                *state.cell,
            )
            hidden, cell = states[:num_layers], states[num_layers:]
            return updates, LstmState(hidden=tuple(hidden), cell=tuple(cell))

        return optax.GradientTransformationExtraArgs(init_state, update)

    return base.LearnedOptimizer(init, transform)
