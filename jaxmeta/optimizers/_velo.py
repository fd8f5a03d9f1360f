"""VeLO: a recurrent network per tensor that mixes small networks per parameter.

References:
  Metz et al., "VeLO: Training versatile learned optimizers by scaling up", 2022.
  https://arxiv.org/abs/2211.09760
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import (
    _coordinates,
    _factored,
    _published,
    _rule,
    _schedulers,
)

_UNITS = 4  # of the layers of a network per parameter
# Of a tensor, beside what all see: its second moment, rank, and two kinds of variances.
_NUM_OWN = 1 + 5 + 3 + 3
# The mean over networks times this.
_MIXING_SCALE = 100.0


class VeloTheta(NamedTuple):
    """Meta-parameters of `velo` with N networks and H units."""

    networks: tuple[
        _coordinates.Linear, ...
    ]  # kernels [N, 30, 4], [N, 4, 4], [N, 4, 3]
    scheduler: _schedulers.RecurrentScheduler  # of 30 features
    controls: _coordinates.Linear  # kernel [H, N]


class VeloState(NamedTuple):
    """State of `velo`; trees like the parameters."""

    count: jax.Array  # [] int32
    moments: _factored.Moments
    hidden: Any  # leaves [H], of the LSTM
    cell: Any  # leaves [H]
    trend: _schedulers.LossTrend


def velo(
    total_steps: int | jax.Array | None = None,
    *,
    hidden_size: int = 512,
    num_networks: int = 256,
) -> base.LearnedOptimizer:
    r"""VeLO: a network per parameter, which an LSTM per tensor mixes from many.

    .. math::
      u = -10^{-3}\, \rho\, d\, e^{10^{-3} a} \sqrt{\overline{p^2} + 10^{-9}}, \qquad
      \phi = \frac{100}{N} \sum_{j=1}^N c_j \phi_j

    The LSTM sees the share of steps done, running means of the loss, the tensor's rank
    and sizes of its moments; it returns the rate :math:`\rho` and the weights c of N
    networks. Their mixture :math:`\phi` computes d and a for each parameter, from the
    thirty features that `celo` has, too.

    The update requires the parameters and the loss: `tx.update(grads, state, params,
    value=loss)`. Gradients are clipped to 1,000. A NaN stays in the state of all.

    Args:
      total_steps: T, the number of updates that are planned. None: `update` is told it
        as an extra argument, `total_steps=T`.
      hidden_size: H, units of the LSTM. Static.
      num_networks: N. Static.

    Returns:
      A `LearnedOptimizer`. Its state is 4 numbers per parameter, 3 per row and column
      and 2 H per tensor. `load_velo` reads the published weights.

    Raises:
      ValueError: if `total_steps` or a size is not positive; from `transform`, if
        `theta` does not match this architecture; from the transformation, if parameters
        are complex, `params` or `value` is missing, or T is unknown.

    Differs from the published code:
      Another linear layer, which has no effect there, is left out.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = velo(total_steps=100, hidden_size=8, num_networks=4)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> params = jnp.ones((3, 2))
      >>> updates, _ = tx.update(params, tx.init(params), params, value=jnp.array(1.0))
      >>> updates.shape
      (3, 2)
    """
    description = _describe.describe(velo, locals())
    _checks.check_int("hidden_size", hidden_size)
    _checks.check_int("num_networks", num_networks)

    def init(key):
        network_key, scheduler_key, control_key = jax.random.split(key, 3)
        sizes = (sum(_factored.WIDTHS.values()), _UNITS, _UNITS, 3)
        one = lambda key: _factored.init_network(key, sizes)
        num_features = _schedulers.NUM_GLOBAL + _NUM_OWN
        return VeloTheta(
            jax.vmap(one)(jax.random.split(network_key, num_networks)),
            _schedulers.init(scheduler_key, num_features, hidden_size),
            _coordinates.init_linear(control_key, hidden_size, num_networks),
        )

    def init_state(theta, params, compute):
        # Copies, because callers donate states.
        start = lambda x: jax.tree.map(lambda _: jnp.array(x, compute), params)
        return VeloState(
            jnp.zeros((), jnp.int32),
            _factored.init(params, compute),
            start(theta.scheduler.hidden),
            start(theta.scheduler.cell),
            _schedulers.init_trend(compute),
        )

    def update(theta, grads, state, *, params, value, total_steps):
        treedef = jax.tree.structure(grads)
        if not treedef.num_leaves:
            return grads, state
        stack = lambda tree: jnp.stack(treedef.flatten_up_to(tree))  # [tensors, ...]
        unstack = lambda xs: treedef.unflatten(list(xs))
        seen, trend = _schedulers.see_time(state.trend, state.count, value, total_steps)
        # The moments before this gradient.
        own = stack(jax.tree.map(_own, params, *state.moments.mu, state.moments.nu))
        seen = jnp.concatenate([jnp.broadcast_to(seen, (len(own), seen.size)), own], 1)
        hidden, cell = _schedulers.recur(
            theta.scheduler, seen, stack(state.hidden), stack(state.cell)
        )
        rates = _coordinates.apply_linear(theta.scheduler.rate, hidden)[:, 0]
        controls = _coordinates.apply_linear(theta.controls, hidden)
        controls = controls * (_MIXING_SCALE / num_networks)  # [tensors, N]
        mix = lambda c: jax.tree.map(lambda x: jnp.tensordot(c, x, 1), theta.networks)
        steps, moments = _factored.map_tensors(
            _factored.move,
            grads,
            params,
            state.moments,
            unstack(map(mix, controls)),
            unstack(rates),
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, VeloState(count, moments, unstack(hidden), unstack(cell), trend)

    return _rule.from_network(
        description,
        init,
        init_state,
        update,
        needs=("params", "value"),
        takes_total_steps=True,
        total_steps=total_steps,
    )


def load_velo(
    path: str | os.PathLike[str], *, total_steps: int | jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns VeLO with its published weights.

    Args:
      path: a file `theta.state`, flax's msgpack, as Celo's authors publish them.
      total_steps: as for `velo`.

    Raises:
      ValueError: if `path` is no such file, or its sizes are not VeLO's.

    Example:
      >>> load_velo("no such file", total_steps=100)
      Traceback (most recent call last):
      ...
      ValueError: `path` must be a file with VeLO's weights, got no such file: ...
    """

    def parse(tree):
        theta = VeloTheta(
            _factored.read_networks(tree["ff_mod_stack"]),
            _schedulers.read(tree),
            _published.linear(tree["rnn_params"]["rnn_to_controls"]),
        )
        return theta, velo(total_steps)

    theta, lopt = _published.read(path, "VeLO", parse)
    return lopt.transform(theta)


def _own(params, *moments):
    """What the LSTM sees of a tensor alone, [12]."""
    *mu, nu = moments
    mean = lambda x: jnp.sum(x) / max(1, x.size)
    # The parameters' size divides the second moment, too, and its variance is about
    # each momentum's mean: as in the published code.
    scale = jax.lax.rsqrt(jnp.maximum(mean(params**2), 1e-9))
    nu, mu = nu * scale, [m * scale for m in mu]
    about = lambda x, m: mean((x - mean(m)) ** 2)
    log = lambda x: jnp.clip(jnp.log(1e-8 + jnp.abs(10 * x)), -5, 5) / 2
    rank = sum(length > 1 for length in params.shape)
    return jnp.concatenate(
        [
            log(mean(nu))[None],
            jax.nn.one_hot(rank, 5, dtype=params.dtype),
            log(jnp.stack([about(m, m) for m in mu])),
            log(jnp.stack([about(nu, m) for m in mu])),
        ]
    )
