"""Gradient descent with learned rates."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base

_SHARED = ("all", "leaf", "none")


class LearnedSgdState(NamedTuple):
    """State of `learned_sgd`."""

    count: jax.Array  # [] int32


def learned_sgd(
    learning_rate: float | tuple[float, float] = 0.01,
    *,
    shared_by: Literal["all", "leaf", "none"] = "all",
    num_steps: int | None = None,
) -> base.LearnedOptimizer:
    r"""Gradient descent with one learned rate, one per leaf, or one per parameter.

    .. math::
      \theta_{t+1} = \theta_t - \alpha_t \odot \nabla f(\theta_t)

    With one rate per parameter this is the inner rule of Meta-SGD; with one per leaf
    and step, that of MAML++. The meta-parameters are the rates themselves, which may
    become negative, as in both papers. Non-finite gradients pass, as in `optax.sgd`.

    Args:
      learning_rate: initial value of all rates, or (low, high) to draw them uniformly.
      shared_by: one rate for "all" parameters, one per "leaf" of the tree, or, with
        "none" shared, one per parameter. Static.
      num_steps: K rates, one per step; later steps use the last. None uses the same
        rate at every step. Static.

    Returns:
      A `LearnedOptimizer`. Its `init` requires the parameters unless `shared_by="all"`;
      its theta is one array, or a tree like the parameters, leaves [K, ...] with
      `num_steps`. A masked tree, or a part of it, uses the rates at its own paths.

    Raises:
      ValueError: if an argument is invalid; from `init` without parameters; from
        `update` if theta has no rate for a leaf, or one with the wrong shape.

    References:
      Li et al., "Meta-SGD", 2017. https://arxiv.org/abs/1707.09835
      Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019.
      https://arxiv.org/abs/1810.09502

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = learned_sgd(0.5)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> grads = jnp.array([1.0, 2.0])
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> print(updates)
      [-0.5 -1. ]
    """
    description = _describe.describe(learned_sgd, locals())
    low, high = _checked_range(learning_rate)
    _checks.check_choice("shared_by", shared_by, _SHARED)
    if num_steps is not None:
        _checks.check_int("num_steps", num_steps)
    steps = () if num_steps is None else (num_steps,)

    def init(key, params=None):
        def rate(key, shape):
            if isinstance(learning_rate, tuple | list):
                return jax.random.uniform(key, steps + shape, minval=low, maxval=high)
            # Strongly typed: an update would change the dtype of a plain number.
            return jnp.full(steps + shape, low, jnp.result_type(low, float))

        if shared_by == "all":
            return rate(key, ())
        if params is None:
            raise ValueError(
                f'`init` requires `params` with shared_by="{shared_by}": each has its '
                "own rate."
            )
        leaves, treedef = jax.tree.flatten(params)
        shape = lambda p: jnp.shape(p) if shared_by == "none" else ()
        keys = jax.random.split(key, max(1, len(leaves)))
        return treedef.unflatten(
            [rate(k, shape(p)) for k, p in zip(keys, leaves, strict=False)]
        )

    def transform(theta):
        by_path = {
            jax.tree_util.keystr(path): jnp.asarray(rate)
            for path, rate in jax.tree_util.tree_leaves_with_path(theta)
        }

        def init_state(params):
            _checks.check_real("params", params)
            return LearnedSgdState(count=jnp.zeros((), jnp.int32))

        def update(updates, state, params=None, **extra_args):
            del params, extra_args

            def step(path, grads):
                name = "" if shared_by == "all" else jax.tree_util.keystr(path)
                shape = jnp.shape(grads) if shared_by == "none" else ()
                rate = _rate_at(by_path, name, steps + shape)
                if num_steps is not None:
                    rate = rate[jnp.minimum(state.count, num_steps - 1)]
                return (-rate.astype(grads.dtype) * grads).astype(grads.dtype)

            count = jnp.asarray(optax.safe_increment(state.count))
            updates = jax.tree_util.tree_map_with_path(step, updates)
            return updates, LearnedSgdState(count)

        return optax.GradientTransformationExtraArgs(init_state, update)

    return base.LearnedOptimizer(init, transform, description)


def _checked_range(learning_rate):
    """The lowest and the highest initial rate."""
    is_range = isinstance(learning_rate, tuple | list)
    low, high = learning_rate if is_range else (learning_rate, learning_rate)
    for rate in (low, high):
        _checks.check_positive("learning_rate", rate)
    if is_range and not low <= high:
        raise ValueError(f"`learning_rate` must be (low, high), got {learning_rate!r}.")
    return low, high


def _rate_at(by_path, name, shape):
    """The rates of a leaf, or a ValueError that names it."""
    got = by_path[name].shape if name in by_path else None
    if got != shape:
        raise ValueError(
            f"`theta` must have rates of shape {shape} for the leaf {name!r}, got "
            f"{got}. Call `init` with these parameters."
        )
    return by_path[name]
