"""The coordinatewise LSTM optimizer, with or without global averaging cells.

References:
  Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
  NeurIPS 2016, Section 2.1, Appendices A and D. https://arxiv.org/abs/1606.04474
"""

import jax
from jax.typing import DTypeLike

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _coordinates, _preprocess, _rule


def lstm(
    hidden_size: int = 20,
    num_layers: int = 2,
    *,
    preprocess: _preprocess.Preprocess | None = None,
    output_scale: float | jax.Array = 0.1,
    init_scale: float | jax.Array = 0.1,
    state_dtype: DTypeLike | None = None,
    block_size: int | None = None,
) -> base.LearnedOptimizer:
    r"""An LSTM that computes the updates, shared by all coordinates.

    .. math::
      \theta_{t+1} = \theta_t + g_t, \qquad
      (g_t, h_{t+1}) = m(\nabla f(\theta_t), h_t, \phi)

    Each coordinate has its own state, all share the weights :math:`\phi`. The update is
    the paper's, including its sign: it is *added*. For per-group LSTMs (convolutional
    and fully connected weights) use `optax.partition` with two transformations.

    A NaN gradient makes the state of its coordinate, and all its later updates, NaN;
    `optax.apply_if_finite` skips such steps. An infinite one saturates the gates.

    Args:
      hidden_size: H, units per layer. Static.
      num_layers: LSTM layers. Static.
      preprocess: features of a gradient, `[...] -> [..., F]`; None is
        `log_gradient(p=10)`. The paper's quadratics use `scaled_gradient()`.
      output_scale: scale of the update; in the paper 0.1 on MNIST, 1 on quadratics.
      init_scale: initial scale of the output weights. An untrained rule drifts; if
        updates can saturate the trained units (sigmoids), 1, the released code's, makes
        the meta-gradient vanish for good with some seeds.
      state_dtype: dtype of the state; None is that of the meta-parameters. The network
        computes in float32, or in the meta-parameters' dtype if that is wider.
      block_size: coordinates of a large leaf per pass of the network, which takes some
        hundred numbers each; None is all. On CPUs blocks are always small. Multi-device
        programs use no blocks, except within `jax.shard_map`: blocks cut across shards.
        Static.

    Returns:
      A `LearnedOptimizer`. Its state is 2 H numbers per layer and parameter.

    Raises:
      ValueError: if a size is not a positive int, or `preprocess` adds no axis; from
        `transform`, if `theta` does not match this architecture; from the
        transformation's `init`, if parameters are complex.

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
    description = _describe.describe(lstm, locals())
    if block_size is not None:
        _checks.check_int("block_size", block_size)
    return _make(
        description,
        hidden_size,
        num_layers,
        preprocess=preprocess,
        output_scale=output_scale,
        init_scale=init_scale,
        state_dtype=state_dtype,
        block_size=block_size,
    )


def lstm_gac(
    hidden_size: int = 20,
    num_layers: int = 2,
    *,
    num_averaged: int = 2,
    preprocess: _preprocess.Preprocess | None = None,
    output_scale: float | jax.Array = 0.1,
    init_scale: float | jax.Array = 0.1,
    state_dtype: DTypeLike | None = None,
) -> base.LearnedOptimizer:
    """The LSTM with global averaging cells, through which coordinates communicate.

    The first `num_averaged` cells of each layer pass their mean over all coordinates to
    the next layer and the next step: enough for clipping by the global norm, for
    example. Under `optax.partition` or `optax.masked`, "all" means those of the group;
    a non-finite gradient reaches every coordinate.

    The paper does not say how many cells; 2 is what its Appendix D needs for BFGS.

    Args:
      hidden_size: H, units per layer. Static.
      num_layers: LSTM layers. Static.
      num_averaged: averaging cells per layer. Static.
      preprocess: as for `lstm`.
      output_scale: as for `lstm`.
      init_scale: as for `lstm`.
      state_dtype: as for `lstm`.

    Raises:
      ValueError: as `lstm`, and if `num_averaged` is more than `hidden_size`.

    References:
      Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
      NeurIPS 2016, Appendix D. https://arxiv.org/abs/1606.04474

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = lstm_gac(hidden_size=4)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> one, two = jnp.array([1.0, 0.0]), jnp.array([1.0, 5.0])
      >>> state = tx.init(one)
      >>> bool(tx.update(one, state)[0][0] == tx.update(two, state)[0][0])
      False
    """
    description = _describe.describe(lstm_gac, locals())
    check_averaged(num_averaged, hidden_size)
    return _make(
        description,
        hidden_size,
        num_layers,
        num_averaged=num_averaged,
        preprocess=preprocess,
        output_scale=output_scale,
        init_scale=init_scale,
        state_dtype=state_dtype,
    )


def check_averaged(num_averaged: int, hidden_size: int) -> None:
    """Raises unless layers have at least that many cells."""
    _checks.check_int("num_averaged", num_averaged)
    _checks.check_int("hidden_size", hidden_size)
    if num_averaged > hidden_size:
        raise ValueError(
            f"`num_averaged` must be at most `hidden_size`, {hidden_size}, got "
            f"{num_averaged}."
        )


def _make(
    description,
    hidden_size,
    num_layers,
    *,
    preprocess,
    output_scale,
    init_scale,
    state_dtype,
    num_averaged=0,
    block_size=None,
):
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_int("num_layers", num_layers)
    if preprocess is None:
        preprocess = _preprocess.log_gradient()
    num_features = _preprocess.count_features(preprocess)

    def init(key):
        return _coordinates.init_stack(
            key, num_features, hidden_size, num_layers, head_scale=init_scale
        )

    def init_state(theta, params, compute):
        del compute
        dtype = theta.head.kernel.dtype if state_dtype is None else state_dtype
        return _coordinates.init_stack_state(params, theta, dtype)

    def update(theta, grads, state):
        inputs = jax.tree.map(preprocess, grads)
        outputs, state = _coordinates.apply_stack(
            theta, inputs, state, num_averaged, block_size
        )
        return jax.tree.map(lambda out: output_scale * out[..., 0], outputs), state

    coordinatewise = not num_averaged and _preprocess.is_coordinatewise(preprocess)
    return _rule.from_network(
        description, init, init_state, update, coordinatewise=coordinatewise
    )
