"""The meta-learner LSTM's update.

References:
  Ravi, Larochelle, "Optimization as a model for few-shot learning", ICLR 2017,
  Section 3. https://openreview.net/forum?id=rJY0-Kcll
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _coordinates, _preprocess, _rule


class MetaLstmTheta(NamedTuple):
    """Meta-parameters of `meta_lstm` with H hidden units."""

    lstm: _coordinates.Linear  # kernel [4 + H, 4 H]
    forget_gate: _coordinates.Linear  # kernel [H + 2, 1]
    input_gate: _coordinates.Linear  # kernel [H + 2, 1]


class MetaLstmState(NamedTuple):
    """State of `meta_lstm`; trees like the parameters."""

    hidden: Any  # leaves [..., H]
    cell: Any  # leaves [..., H]
    forget_gate: Any  # before the sigmoid
    input_gate: Any  # before the sigmoid


def meta_lstm(hidden_size: int = 20, *, p: float = 10.0) -> base.LearnedOptimizer:
    r"""An LSTM whose cell state is the parameters themselves.

    .. math::
      \theta_t = f_t \odot \theta_{t-1} - i_t \odot \nabla L_t

    The gates of a coordinate are sigmoids of a dense layer over an LSTM's output, the
    parameter and the previous gate; the LSTM, shared by all coordinates, sees the
    gradient and the loss, both through `log_gradient`. Initially it is gradient descent
    with a rate of about 0.01: forget gates near 1, input gates near 0.01.

    The update requires the parameters and the loss: `tx.update(grads, state, params,
    value=loss)`, as every learner in jaxmeta calls it. An infinite gradient with a
    finite loss makes the update infinite but not the state; a NaN gradient or a
    non-finite loss stays in its coordinate's state.

    Args:
      hidden_size: H, LSTM units. Static.
      p: as for `log_gradient`.

    Returns:
      A `LearnedOptimizer`. The paper also learns the initial parameters, and drops the
      derivatives of gradients and losses: the learner does both.

    Raises:
      ValueError: if a size is not positive; from `transform`, if `theta` does not
        match this architecture; from the transformation, if parameters are complex, or
        `params` or `value` is missing.

    Differs from the paper:
      As in the released code, the gates see the LSTM's output, not the raw gradient
      and loss, and the previous gate before its sigmoid. The released code also divides
      gradients by the batch size; this code does not.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = meta_lstm()
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> params = jnp.ones(2)
      >>> updates, _ = tx.update(params, tx.init(params), params, value=jnp.array(1.0))
      >>> bool((updates < 0).all())
      True
    """
    description = _describe.describe(meta_lstm, locals())
    _checks.check_int("hidden_size", hidden_size)
    preprocess = _preprocess.log_gradient(p)

    def init(key):
        lstm_key, forget_key, input_key = jax.random.split(key, 3)
        # sigmoid(4 ... 5) > 0.98 keeps the parameters; sigmoid(-5 ... -4), about 0.01,
        # is the initial learning rate.
        return MetaLstmTheta(
            lstm=_uniform(lstm_key, 4 + hidden_size, 4 * hidden_size),
            forget_gate=_uniform(forget_key, hidden_size + 2, 1, (4.0, 5.0)),
            input_gate=_uniform(input_key, hidden_size + 2, 1, (-5.0, -4.0)),
        )

    def init_state(theta, params, compute):
        del theta
        hidden = lambda: _coordinates.hidden_like(params, hidden_size, compute)
        gate = lambda: optax.tree.zeros_like(params, compute)
        return MetaLstmState(hidden(), hidden(), gate(), gate())

    def leaf_step(theta, value, grads, params, hidden, cell, forget, input_):
        axis = _coordinates.feature_axis(grads)
        seen = [preprocess(grads), _coordinates.over_coordinates(value, grads)]
        seen = jnp.concatenate(seen, -1)
        if axis == 0:
            seen, hidden, cell = seen.T, hidden.T, cell.T
        hidden, cell = _coordinates.lstm_cell(theta.lstm, seen, hidden, cell, axis)
        forget = _gate(theta.forget_gate, hidden, params, forget, axis)
        input_ = _gate(theta.input_gate, hidden, params, input_, axis)
        if axis == 0:
            hidden, cell = hidden.T, cell.T
        # theta_t - theta_{t-1}, where f_t - 1 = -sigmoid(-f) avoids cancellation.
        step = -jax.nn.sigmoid(-forget) * params - jax.nn.sigmoid(input_) * grads
        return step, hidden, cell, forget, input_

    def update(theta, grads, state, *, params, value):
        step = functools.partial(leaf_step, theta, preprocess(value))
        steps, *fields = _coordinates.map_unzipped(step, 5, grads, params, *state)
        return steps, MetaLstmState(*fields)

    return _rule.from_network(
        description,
        init,
        init_state,
        update,
        needs=("params", "value"),
        coordinatewise=True,
    )


def _uniform(
    key: jax.Array,
    num_inputs: int,
    num_outputs: int,
    bias: tuple[float, float] = (-0.01, 0.01),
) -> _coordinates.Linear:
    """A dense layer with small weights and a bias uniform in the given range."""
    kernel_key, bias_key = jax.random.split(key)
    shape = num_inputs, num_outputs
    return _coordinates.Linear(
        kernel=jax.random.uniform(kernel_key, shape, minval=-0.01, maxval=0.01),
        bias=jax.random.uniform(
            bias_key, (num_outputs,), minval=bias[0], maxval=bias[1]
        ),
    )


def _gate(layer, hidden, params, before, axis):
    """A gate before its sigmoid, [...]; one input is its previous value."""
    others = [jnp.expand_dims(x, axis) for x in (params, before)]
    joined = jnp.concatenate([hidden, *others], axis)
    return _coordinates.apply_linear(layer, joined, axis).squeeze(axis)
