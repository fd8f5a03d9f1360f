"""One meta-gradient from several estimators, over problems however unlike.

References:
  Metz et al., "VeLO: Training versatile learned optimizers by scaling up", 2022,
  Section 3: an update rule, unlike an initialisation, may be meta-trained on problems
  of different structure. https://arxiv.org/abs/2211.09760
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxmeta import _checks, _pytrees, base


class MixtureCarry(NamedTuple):
    """State of `mixture` between meta-steps."""

    carries: dict[str, Any]  # of the estimators
    mean_squares: dict[str, jax.Array]  # [], of their meta-gradients' norms


class MixtureInfo(NamedTuple):
    """Diagnostics of all estimators."""

    loss: jax.Array  # [N] of all their runs or tasks
    is_valid: jax.Array  # [N] bool
    parts: dict[str, Any]  # each estimator's own

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """Each estimator's mean loss over what is valid."""
        mean = lambda info: jnp.nanmean(jnp.where(info.is_valid, info.loss, jnp.nan))
        return {f"loss_{name}": mean(info) for name, info in self.parts.items()}


def mixture(
    estimators: Mapping[str, base.GradientEstimator],
    *,
    weights: Mapping[str, float] | None = None,
    normalize: bool = True,
) -> base.GradientEstimator:
    r"""Estimates one meta-gradient over several families of problems.

    .. math::
      \hat g = \sum_j \frac{w_j}{\sum_i w_i} \frac{\hat g_j}{r_j}, \qquad
      r_j^2 \leftarrow 0.95\, r_j^2 + 0.05\, |\hat g_j|^2

    The estimators may be of any kind, over problems of any shapes, as long as they have
    the same meta-parameters, and are compiled once each. Without normalisation, a
    family whose losses are large or whose meta-gradient is noisy drowns the others.

    Args:
      estimators: name -> estimator. All draw meta-parameters; the first one's are used.
      weights: name -> w_j; None is 1 for all.
      normalize: divide by the running root mean squares r_j of the meta-gradients'
        norms. Static.

    Returns:
      A `GradientEstimator` whose carry is a `MixtureCarry` and whose info a
      `MixtureInfo`, with a metric `loss_<name>` for each estimator.

    Raises:
      ValueError: if there are no estimators, `weights` has other names or a weight that
        is not positive; from `init`, if their meta-parameters differ.

    Example:
      >>> import functools, jax, optax, jaxmeta as jm
      >>> es = functools.partial(jm.estimators.es, jm.optimizers.learned_sgd(),
      ...                        horizon=5, num_problems=2)
      >>> estimator = mixture({"small": es(jm.problems.quadratics(2)),
      ...                      "large": es(jm.problems.quadratics(10))})
      >>> init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> sorted(info.metrics)
      ['loss_large', 'loss_small']
    """
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(
            "`estimators` must map names to estimators, at least one, got "
            f"{estimators}."
        )
    weights = dict.fromkeys(estimators, 1.0) if weights is None else weights
    if set(weights) != set(estimators):
        raise ValueError(
            f"`weights` must have the names of `estimators`, {sorted(estimators)}, got "
            f"{sorted(weights)}."
        )
    for name, weight in weights.items():
        _checks.check_positive(f"weights[{name!r}]", weight)
    total = sum(weights.values())

    def init(key):
        keys = jax.random.split(key, len(estimators))
        pairs = zip(keys, estimators.items(), strict=True)
        found = {name: part.init(key) for key, (name, part) in pairs}
        theta = next(iter(found.values()))[0]
        for name, (other, _) in found.items():
            _checks.check_like(f"estimators[{name!r}].init", other, theta)
        carries = {name: carry for name, (_, carry) in found.items()}
        return theta, MixtureCarry(carries, dict.fromkeys(estimators, jnp.zeros(())))

    def estimate(parts, key, meta_params, carry, *, step=0, **extra):
        keys = jax.random.split(key, len(parts))
        grads = optax.tree.zeros_like(meta_params)
        carries, mean_squares, infos = {}, {}, {}
        for own_key, (name, part) in zip(keys, parts.items(), strict=True):
            found, carries[name], infos[name] = part(
                own_key, meta_params, carry.carries[name], step=step, **extra
            )
            square = optax.tree.norm(found, squared=True)
            before = carry.mean_squares[name]
            # The first takes its own norm; a family whose runs all failed, none.
            after = jnp.where(before > 0, 0.95 * before + 0.05 * square, square)
            mean_squares[name] = jnp.where(square > 0, after, before)
            scale = weights[name] / total
            if normalize:
                scale *= jax.lax.rsqrt(jnp.maximum(mean_squares[name], 1e-30))
            grads = jax.tree.map(
                lambda g, x, scale=scale: (g + scale * x).astype(g.dtype), grads, found
            )
        every = lambda pick: jnp.concatenate(
            [jnp.atleast_1d(pick(info)) for info in infos.values()]
        )
        valid = lambda info: jnp.broadcast_to(info.is_valid, jnp.shape(info.loss))
        info = MixtureInfo(every(lambda info: info.loss), every(valid), infos)
        return grads, MixtureCarry(carries, mean_squares), info

    parts = {name: _pytrees.as_partial(x.estimate) for name, x in estimators.items()}
    return base.GradientEstimator(init, Partial(estimate, parts))
