"""Learned optimizers for groups of parameters."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from jaxmeta import _checks, _describe, _replay, base
from jaxmeta.optimizers import _rule


def partition(
    lopts: Mapping[str, base.LearnedOptimizer | optax.GradientTransformation],
    labels: Any | Callable[[Any], Any],
) -> base.LearnedOptimizer:
    """Gives each group of parameters its own learned optimizer.

    The learned counterpart of `optax.partition`: all are meta-trained together.

    Args:
      lopts: one per label. Plain optax rules, such as `optax.set_to_zero()` for frozen
        parameters, are not part of theta.
      labels: a tree of labels like the parameters, or a function of the parameters that
        returns one.

    Returns:
      A `LearnedOptimizer`; its theta is a dict of the learned groups' thetas.

    Raises:
      ValueError: if a rule is neither learned nor optax's, or none is learned; from
        `transform`, if `theta` has different groups.

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
    description = _describe.describe(partition, locals())
    learned = _checked(lopts)

    def init(key, params=None):
        keys = dict(zip(lopts, jax.random.split(key, len(lopts)), strict=True))
        return {label: x.init(keys[label], params) for label, x in learned.items()}

    def transform(theta):
        if not isinstance(theta, Mapping) or set(theta) != set(learned):
            got = sorted(map(str, theta)) if isinstance(theta, Mapping) else type(theta)
            raise ValueError(
                f"`theta` must have the groups {sorted(map(str, learned))}, got {got}: "
                "call `init` with these optimizers."
            )
        transforms: dict[Hashable, Any] = {**lopts}
        transforms |= {label: x.transform(theta[label]) for label, x in learned.items()}
        tx = optax.with_extra_args_support(optax.partition(transforms, labels))

        def update(updates, state, params=None, **extra_args):
            _rule.check_state(tx.init, updates, state)
            return tx.update(updates, state, params, **extra_args)

        if all(isinstance(x, _replay.Coordinatewise) for x in transforms.values()):
            return _Coordinatewise(tx.init, update, transforms, labels)
        return optax.GradientTransformationExtraArgs(tx.init, update)

    return base.LearnedOptimizer(init, transform, description)


class _Coordinatewise(_replay.Coordinatewise):
    """Coordinatewise rules, each for its group of parameters."""

    rules: Mapping[Hashable, _replay.Coordinatewise]
    labels: Any | Callable[[Any], Any]

    def __new__(cls, init, update, rules, labels):
        self = super().__new__(cls, init, update)
        self.rules, self.labels = rules, labels
        return self

    def split(self, params, state):
        labels = self._labels(params)

        def masked(label):
            keep = lambda own, x: x if own == label else optax.MaskedNode()
            return jax.tree.map(keep, labels, params)

        states = state.inner_states
        return [
            (rule, masked(label), states[label].inner_state)
            for label, rule in self.rules.items()
        ]

    def join_params(self, like, parts):
        order = list(self.rules)
        of_group = lambda label, *parts: parts[order.index(label)]
        return jax.tree.map(of_group, self._labels(like), *parts)

    def join_state(self, state, parts):
        own = dict(zip(self.rules, parts, strict=True))
        old = state.inner_states
        states = {label: old[label]._replace(inner_state=own[label]) for label in old}
        return state._replace(inner_states=states)

    def _labels(self, params):
        return self.labels(params) if callable(self.labels) else self.labels


def _checked(lopts: Any) -> dict[str, base.LearnedOptimizer]:
    """Returns the learned rules of `lopts`."""
    if not isinstance(lopts, Mapping):
        raise ValueError(f"`lopts` must map labels to rules, got {lopts!r}.")
    for label, rule in lopts.items():
        _checks.check_transformation(f"lopts[{label!r}]", rule)
    learned = {label: x for label, x in lopts.items() if hasattr(x, "transform")}
    if not learned:
        raise ValueError(
            "`lopts` must have a learned rule, got only plain ones: use "
            "`optax.partition` for these."
        )
    return learned
