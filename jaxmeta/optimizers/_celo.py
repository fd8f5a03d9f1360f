"""Celo: a small network per parameter, or Adam, and a recurrent one as its schedule.

References:
  Moudgil et al., "Celo: Training versatile learned optimizers on a compute diet", TMLR
  2025. https://arxiv.org/abs/2501.12670
  Metz et al., "Practical tradeoffs between memory, compute, and performance in learned
  optimizers", CoLLAs 2022: the features of a parameter.
  https://arxiv.org/abs/2203.11860
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _describe, base
from jaxmeta.optimizers import (
    _coordinates,
    _factored,
    _published,
    _rule,
    _schedulers,
)

_HIDDEN, _UNITS = 4, 64


class CeloTheta(NamedTuple):
    """Meta-parameters of `celo`."""

    direction: tuple[_coordinates.Linear, ...]  # kernels [30, 4], [4, 4], [4, 3]
    scheduler: _schedulers.RecurrentScheduler


class CeloSchedulerState(NamedTuple):
    """State of the schedule, one for all tensors."""

    hidden: jax.Array  # [64], of the LSTM
    cell: jax.Array  # [64]
    trend: _schedulers.LossTrend


class CeloState(NamedTuple):
    """State of `celo`."""

    count: jax.Array  # [] int32
    moments: _factored.Moments  # trees like the parameters
    scheduler: CeloSchedulerState


class CeloAdamState(NamedTuple):
    """State of `celo_adam`."""

    count: jax.Array  # [] int32
    mu: Any  # a tree like the parameters: momentum, decay 0.9
    nu: Any  # second moment, decay 0.999
    scheduler: CeloSchedulerState


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
      A `LearnedOptimizer` with 35,808 meta-parameters. Its state is 4 numbers per
      parameter and 3 per row and column. `load_celo` reads the published weights.

    Raises:
      ValueError: if `total_steps` is not positive; from `transform`, if `theta` does
        not match this architecture; from the transformation, if parameters are complex,
        `params` or `value` is missing, or T is unknown.

    Differs from the published code:
      Another linear layer, which has no effect there, is left out.

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
        direction_key, scheduler_key = jax.random.split(key)
        sizes = (sum(_factored.WIDTHS.values()), _HIDDEN, _HIDDEN, 3)
        direction = _factored.init_network(direction_key, sizes)
        return CeloTheta(direction, _init_scheduler(scheduler_key))

    def init_state(theta, params, compute):
        return CeloState(
            jnp.zeros((), jnp.int32),
            _factored.init(params, compute),
            _start(theta.scheduler, compute),
        )

    def update(theta, grads, state, *, params, value, total_steps):
        rate, scheduler = _schedule(
            theta.scheduler, state.scheduler, state.count, value, total_steps
        )
        steps, moments = _factored.map_tensors(
            functools.partial(_factored.move, layers=theta.direction, rate=rate),
            grads,
            params,
            state.moments,
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, CeloState(count, moments, scheduler)

    return _rule.from_network(
        description,
        init,
        init_state,
        update,
        needs=("params", "value"),
        takes_total_steps=True,
        total_steps=total_steps,
    )


def celo_adam(total_steps: int | jax.Array | None = None) -> base.LearnedOptimizer:
    r"""Adam at a rate by Celo's schedule.

    .. math::
      u = -10^{-3}\, \alpha_t\, \hat m / (\sqrt{\hat v + 10^{-10}} + 10^{-8})

    with bias-corrected moments of decays 0.9 and 0.999. It is Celo without its network:
    as its authors found, the more robust of the two on large networks.

    The update requires the loss: `tx.update(grads, state, value=loss)`. Gradients are
    clipped to 1,000. A NaN stays in its tensor's state, or if it is a loss, in the
    state of all.

    Args:
      total_steps: as for `celo`.

    Returns:
      A `LearnedOptimizer` with 35,649 meta-parameters. Its state is 2 numbers per
      parameter.

    Raises:
      ValueError: as `celo`, except that it needs no `params`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = celo_adam(total_steps=100)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> grads = jnp.ones((3, 2))
      >>> updates, _ = tx.update(grads, tx.init(grads), value=jnp.array(1.0))
      >>> updates.shape
      (3, 2)
    """
    description = _describe.describe(celo_adam, locals())

    def init_state(theta, params, compute):
        return CeloAdamState(
            jnp.zeros((), jnp.int32),
            optax.tree.zeros_like(params, compute),
            optax.tree.zeros_like(params, compute),
            _start(theta, compute),
        )

    def update(theta, grads, state, *, value, total_steps):
        rate, scheduler = _schedule(
            theta, state.scheduler, state.count, value, total_steps
        )
        grads = jax.tree.map(_factored.clipped, grads)
        mu = optax.tree.update_moment(grads, state.mu, 0.9, 1)
        nu = optax.tree.update_moment(grads, state.nu, 0.999, 2)
        count = jnp.asarray(optax.safe_increment(state.count))
        step = lambda m, v: -1e-3 * rate * m / (jnp.sqrt(v + 1e-10) + 1e-8)
        steps = jax.tree.map(
            step,
            optax.tree.bias_correction(mu, 0.9, count),
            optax.tree.bias_correction(nu, 0.999, count),
        )
        return steps, CeloAdamState(count, mu, nu, scheduler)

    return _rule.from_network(
        description,
        _init_scheduler,
        init_state,
        update,
        needs=("value",),
        takes_total_steps=True,
        total_steps=total_steps,
    )


def load_celo(
    path: str | os.PathLike[str], *, total_steps: int | jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns Celo or Celo-Adam with the weights that their authors publish.

    Args:
      path: their file `theta.state`, flax's msgpack; its contents say of which it is.
      total_steps: as for `celo`.

    Raises:
      ValueError: if `path` is no such file.

    Example:
      >>> load_celo("no such file")
      Traceback (most recent call last):
      ...
      ValueError: `path` must be a file with Celo's weights, got no such file: ...
    """
    theta = read_celo(path)
    make = celo if isinstance(theta, CeloTheta) else celo_adam
    return make(total_steps).transform(theta)


def read_celo(
    path: str | os.PathLike[str],
) -> CeloTheta | _schedulers.RecurrentScheduler:
    """Reads published weights, of `celo` or `celo_adam`.

    Raises:
      ValueError: if `path` is no such file.
    """

    def parse(tree):
        scheduler = _schedulers.read(tree)
        if "ff_mod_stack" not in tree:
            return scheduler, celo_adam()
        # A stack of one network.
        networks = _factored.read_networks(tree["ff_mod_stack"])
        return CeloTheta(jax.tree.map(lambda x: x[0], networks), scheduler), celo()

    theta, _ = _published.read(path, "Celo", parse)
    return theta


def _init_scheduler(key):
    return _schedulers.init(key, _schedulers.NUM_GLOBAL, _UNITS)


def _start(theta, dtype):
    """The scheduler's state before the first update."""
    # Copies: callers donate states, not theta.
    hidden, cell = (jnp.array(x, dtype) for x in (theta.hidden, theta.cell))
    return CeloSchedulerState(hidden, cell, _schedulers.init_trend(dtype))


def _schedule(theta, state, count, value, total_steps):
    """The rate of all tensors, and the scheduler's state."""
    seen, trend = _schedulers.see_time(state.trend, count, value, total_steps)
    # Every tensor sees the same, so that one LSTM is enough.
    hidden, cell = _schedulers.recur(
        theta, seen[None], state.hidden[None], state.cell[None]
    )
    rate = 0.1 * jnp.exp(_coordinates.apply_linear(theta.rate, hidden)[0, 0])
    return rate, CeloSchedulerState(hidden[0], cell[0], trend)
