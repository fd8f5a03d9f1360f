"""Learned optimizers for groups of parameters."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from jaxmeta import base
from jaxmeta.optimizers import _coordinates


def partition(
    lopts: Mapping[str, base.LearnedOptimizer],
    labels: Any | Callable[[Any], Any],
) -> base.LearnedOptimizer:
    """Gives each group of parameters a learned optimizer of its own.

    The learned counterpart of `optax.partition`: all are meta-trained together.

    Args:
      lopts: one for each label.
      labels: a tree of labels like the parameters, or a function of the parameters that
        returns one.

    Returns:
      A `LearnedOptimizer`; its theta is a dict of the groups'.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> labels = lambda params: jax.tree.map(
      ...     lambda p: "matrix" if p.ndim > 1 else "vector", params)
      >>> lopt = partition({"matrix": jm.optimizers.lstm(4),
      ...                   "vector": jm.optimizers.learned_sgd()}, labels)
      >>> theta = lopt.init(jax.random.key(0))
      >>> sorted(theta)
      ['matrix', 'vector']
    """

    def init(key, params=None):
        keys = jax.random.split(key, len(lopts))
        return {
            label: lopt.init(k, params)
            for (label, lopt), k in zip(lopts.items(), keys, strict=True)
        }

    def transform(theta):
        if not isinstance(theta, Mapping) or set(theta) != set(lopts):
            got = sorted(map(str, theta)) if isinstance(theta, Mapping) else type(theta)
            raise ValueError(
                f"`theta` must have the groups {sorted(map(str, lopts))}, got {got}: "
                "`init` it with these optimizers."
            )
        transforms: dict[Hashable, optax.GradientTransformation] = {
            label: lopt.transform(theta[label]) for label, lopt in lopts.items()
        }
        tx = optax.with_extra_args_support(optax.partition(transforms, labels))

        def update(updates, state, params=None, **extra_args):
            _coordinates.check_state(tx.init, updates, state)
            return tx.update(updates, state, params, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return base.LearnedOptimizer(init, transform)
