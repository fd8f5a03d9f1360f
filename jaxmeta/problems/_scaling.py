"""Random scaling of the coordinates of a problem, or of its loss."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxmeta import _checks, _pytrees, base


def random_scaling(
    problem: base.OptimizationProblem,
    reach: float = 3.0,
    *,
    per: Literal["coordinate", "tensor", "problem", "loss"] = "coordinate",
    share: float = 1.0,
) -> base.OptimizationProblem:
    r"""Scales coordinates, or the loss, by factors that are drawn once per run.

    With factors :math:`c = e^u`, :math:`u \sim U(-r, r)`, the parameters of a run are
    :math:`\theta / c` and its loss :math:`f(c \odot \theta)`: an optimizer that does
    well on these is invariant to coordinate scales. With `per="loss"` it is
    :math:`c f(\theta)`. For meta-training, not for testing.

    Args:
      problem: the problem to scale.
      reach: r.
      per: whether every coordinate has a factor of its own, every tensor, only the
        whole problem, or only the loss. Static.
      share: the share of runs that are scaled at all.

    Raises:
      ValueError: if `reach` is not positive, `per` is unknown, or `share` is not in
        [0, 1].

    References:
      Lv, Jiang, Li, "Learning gradient descent: better generalization and longer
      horizons", ICML 2017, Section 3.1. https://arxiv.org/abs/1703.03633

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> problem = random_scaling(jm.problems.quadratics(dim=2))
      >>> instance, scales = problem.sample(jax.random.key(0))
      >>> scales.shape
      (2,)
    """
    _checks.check_positive("reach", reach)
    _checks.check_choice("per", per, ("coordinate", "tensor", "problem", "loss"))
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1], got {share}.")
    problem = _pytrees.as_pytree(problem)
    of_loss = per == "loss"

    def sample(problem, key):
        instance_key, scale_key, share_key = jax.random.split(key, 3)
        instance = problem.sample(instance_key)
        like = jax.eval_shape(problem.init, key, instance)
        like = jax.eval_shape(jnp.ones, ()) if of_loss else like
        leaves, treedef = jax.tree.flatten(like)
        shapes = [leaf.shape if per == "coordinate" else () for leaf in leaves]
        sizes = [math.prod(shape) for shape in shapes]
        # One draw for all, which compiles faster; of the whole problem a single number.
        count = 1 if per == "problem" else sum(sizes)
        drawn = jax.random.uniform(scale_key, (count,), minval=-reach, maxval=reach)
        factors = jnp.exp(drawn * jax.random.bernoulli(share_key, share))
        factors = jnp.broadcast_to(factors, (sum(sizes),))
        parts = jnp.split(factors, np.cumsum(sizes[:-1], dtype=int))[: len(leaves)]
        scales = [
            x.reshape(shape).astype(leaf.dtype)
            for x, shape, leaf in zip(parts, shapes, leaves, strict=True)
        ]
        return instance, treedef.unflatten(scales)

    def init(problem, key, instance):
        inner, scales = instance
        params = problem.init(key, inner)
        return params if of_loss else jax.tree.map(jnp.divide, params, scales)

    def scaled(fn, params, instance, *key):
        inner, scales = instance
        if of_loss:
            value = fn(params, inner, *key)
            return value * scales.astype(value.dtype)
        return fn(jax.tree.map(jnp.multiply, params, scales), inner, *key)

    loss = lambda problem, *args: scaled(problem.loss, *args)
    full_loss = lambda problem, *args: scaled(problem.full_loss, *args)

    # The problem is an argument so that its data stay leaves.
    return base.OptimizationProblem(
        Partial(sample, problem),
        Partial(init, problem),
        Partial(loss, problem),
        None if problem.full_loss is None else Partial(full_loss, problem),
    )
