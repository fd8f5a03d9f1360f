"""RNNprop: an LSTM on normalised gradients.

References:
  Lv, Jiang, Li, "Learning gradient descent: better generalization and longer horizons",
  ICML 2017, Section 4. https://arxiv.org/abs/1703.03633
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _coordinates, _rule


class RnnpropTheta(NamedTuple):
    """Meta-parameters of `rnnprop` with H hidden units."""

    embedding: _coordinates.Linear  # kernel [2, H]
    lstm: _coordinates.LstmTheta


class RnnpropState(NamedTuple):
    """State of `rnnprop`; trees like the parameters."""

    count: jax.Array  # [] int32
    mu: Any  # first moments
    nu: Any  # second moments
    lstm: _coordinates.LstmState


def rnnprop(
    hidden_size: int = 20,
    num_layers: int = 2,
    *,
    decay: float = 0.95,
    output_scale: float | jax.Array = 0.1,
    eps: float = 1e-8,
    state_dtype: DTypeLike | None = None,
) -> base.LearnedOptimizer:
    r"""An LSTM over Adam's and RMSprop's directions, with bounded updates.

    With the bias-corrected moments :math:`\hat m_t`, :math:`\hat v_t` of the gradient
    :math:`g_t`, both with decay 0.95,

    .. math::
      \theta_{t+1} = \theta_t + \alpha \tanh\!\left(m\!\left(
        \hat m_t / \sqrt{\hat v_t},\ g_t / \sqrt{\hat v_t}\right)\right)

    so the rule is invariant to the scale of the loss. As in `jaxmeta.optimizers.adam`,
    a direction is a constant to the derivative where :math:`\sqrt{\hat v}` is below
    1e-5, so its derivative is bounded everywhere.

    A non-finite gradient makes the moments of its coordinate, and all its later
    updates, NaN; `optax.apply_if_finite` skips such steps.

    Args:
      hidden_size: H, units of the embedding (a dense layer with ELU) and of each LSTM
        layer. Static.
      num_layers: LSTM layers. Static.
      decay: decay of both moments.
      output_scale: :math:`\alpha`, the maximum update.
      eps: added to the square root of the second moment.
      state_dtype: dtype of the LSTM's state; None is that of the meta-parameters.

    Returns:
      A `LearnedOptimizer`. Its state is 2 + 2 H num_layers numbers per parameter.

    Raises:
      ValueError: if a size is not a positive int; from `transform`, if `theta` does not
        match this architecture; from the transformation's `init`, if parameters are
        complex.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = rnnprop(hidden_size=4)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> grads = jnp.array([1.0, -2.0])
      >>> small, _ = tx.update(grads, tx.init(grads))
      >>> large, _ = tx.update(1000 * grads, tx.init(grads))
      >>> bool(jnp.allclose(small, large))
      True
    """
    description = _describe.describe(rnnprop, locals())
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_int("num_layers", num_layers)

    def init(key):
        embedding_key, lstm_key = jax.random.split(key)
        return RnnpropTheta(
            embedding=_coordinates.init_linear(embedding_key, 2, hidden_size),
            lstm=_coordinates.init_stack(
                lstm_key, hidden_size, hidden_size, num_layers
            ),
        )

    def init_state(theta, params, compute):
        dtype = theta.lstm.head.kernel.dtype if state_dtype is None else state_dtype
        return RnnpropState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, compute),
            nu=optax.tree.zeros_like(params, compute),
            lstm=_coordinates.init_stack_state(params, theta.lstm, dtype),
        )

    def embed(layer, grads, mu, nu):
        directions = [_coordinates.normalize(x, nu, eps) for x in (mu, grads)]
        axis = _coordinates.feature_axis(grads)
        directions = jnp.stack(directions, axis)  # [..., 2], or [2, N]
        outputs = jax.nn.elu(_coordinates.apply_linear(layer, directions, axis))
        return outputs.T if axis == 0 else outputs

    def update(theta, grads, state):
        mu = optax.tree.update_moment(grads, state.mu, decay, 1)
        nu = optax.tree.update_moment(grads, state.nu, decay, 2)
        count = jnp.asarray(optax.safe_increment(state.count))
        mu_hat = optax.tree.bias_correction(mu, decay, count)
        nu_hat = optax.tree.bias_correction(nu, decay, count)
        embed_leaf = functools.partial(embed, theta.embedding)
        inputs = jax.tree.map(embed_leaf, grads, mu_hat, nu_hat)
        outputs, lstm = _coordinates.apply_stack(theta.lstm, inputs, state.lstm)
        steps = jax.tree.map(lambda x: output_scale * jnp.tanh(x[..., 0]), outputs)
        return steps, RnnpropState(count, mu, nu, lstm)

    return _rule.from_network(
        description, init, init_state, update, coordinatewise=True
    )
