"""RNNprop: an LSTM that sees normalised gradients.

References:
  Lv, Jiang, Li, "Learning gradient descent: better generalization and longer horizons",
  ICML 2017, Section 4. https://arxiv.org/abs/1703.03633
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxmeta import _checks, base
from jaxmeta.optimizers import _coordinates


class RnnpropTheta(NamedTuple):
    """Meta-parameters of `rnnprop`, H hidden units."""

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
    r"""An LSTM over Adam's and RMSprop's directions, its update bounded.

    With the bias-corrected moments :math:`\hat m_t`, :math:`\hat v_t` of the gradient
    :math:`g_t`, both of decay 0.95,

    .. math::
      \theta_{t+1} = \theta_t + \alpha \tanh\!\left(m\!\left(
        \hat m_t / \sqrt{\hat v_t},\ g_t / \sqrt{\hat v_t}\right)\right)

    so that the rule does not know the scale of the loss. The derivative of a direction
    with respect to the gradient is taken as that of a constant where
    :math:`\sqrt{\hat v}` is under 1e-5, as `jaxmeta.optimizers.adam` does: it is
    bounded everywhere.

    A gradient that is NaN or infinite makes the moments of its coordinate, and all its
    later updates, NaN; `optax.apply_if_finite` skips such steps.

    Args:
      hidden_size: H, units of the embedding (a dense layer with ELU) and of each LSTM
        layer. Static.
      num_layers: layers of LSTM. Static.
      decay: of both moments.
      output_scale: :math:`\alpha`, the largest update.
      eps: added to the square root of the second moment.
      state_dtype: of the LSTM's state; None is that of the meta-parameters.

    Returns:
      A `LearnedOptimizer`. Its state is 2 + 2 H num_layers numbers a parameter.

    Raises:
      ValueError: if a size is not a positive int; from `transform`, if `theta` is of
        another architecture; from the transformation's `init`, if parameters are
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
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_int("num_layers", num_layers)

    def init(key, params=None):
        del params
        embedding_key, lstm_key = jax.random.split(key)
        return RnnpropTheta(
            embedding=_coordinates.init_linear(embedding_key, 2, hidden_size),
            lstm=_coordinates.init_stack(
                lstm_key, hidden_size, hidden_size, num_layers
            ),
        )

    like = jax.eval_shape(init, jax.random.key(0))

    def transform(theta):
        _checks.check_like("theta", theta, like)
        dtype = theta.lstm.head.kernel.dtype if state_dtype is None else state_dtype
        compute = _coordinates.compute_dtype(theta)
        theta = jax.tree.map(lambda x: x.astype(compute), theta)

        def init_state(params):
            _checks.check_real("params", params)
            zeros = jax.tree.map(lambda p: jnp.zeros_like(p, compute), params)
            return RnnpropState(
                count=jnp.zeros((), jnp.int32),
                mu=zeros,
                nu=zeros,
                lstm=_coordinates.init_stack_state(params, theta.lstm, dtype),
            )

        def embed(grads, mu, nu):
            directions = [_coordinates.normalize(x, nu, eps) for x in (mu, grads)]
            directions = jnp.stack(directions, -1)
            return jax.nn.elu(_coordinates.apply_linear(theta.embedding, directions))

        def update(updates, state, params=None, **extra_args):
            del params, extra_args
            _coordinates.check_state(init_state, updates, state)
            grads = jax.tree.map(lambda g: g.astype(compute), updates)
            mu = optax.tree.update_moment(grads, state.mu, decay, 1)
            nu = optax.tree.update_moment(grads, state.nu, decay, 2)
            count = jnp.asarray(optax.safe_increment(state.count))
            mu_hat = optax.tree.bias_correction(mu, decay, count)
            nu_hat = optax.tree.bias_correction(nu, decay, count)
            inputs = jax.tree.map(embed, grads, mu_hat, nu_hat)
            outputs, lstm = _coordinates.apply_stack(theta.lstm, inputs, state.lstm)

            def scaled(g, out):
                return (output_scale * jnp.tanh(out[..., 0])).astype(g.dtype)

            updates = jax.tree.map(scaled, updates, outputs)
            return updates, RnnpropState(count, mu, nu, lstm)

        return optax.GradientTransformationExtraArgs(init_state, update)

    return base.LearnedOptimizer(init, transform)
