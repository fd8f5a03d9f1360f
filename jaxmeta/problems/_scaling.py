"""Random scaling of the coordinates of a problem."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxmeta import _checks, _pytrees, base


def random_scaling(
    problem: base.OptimizationProblem, reach: float = 3.0
) -> base.OptimizationProblem:
    r"""Scales every coordinate by its own factor, drawn once per run.

    With factors :math:`c = e^u`, :math:`u \sim U(-r, r)`, the parameters of a run are
    :math:`\theta / c` and its loss :math:`f(c \odot \theta)`: an optimizer that does
    well on these is invariant to coordinate scales. For meta-training, not for testing.

    Args:
      problem: the problem to scale.
      reach: r.

    Raises:
      ValueError: if `reach` is not positive.

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
    problem = _pytrees.as_pytree(problem)

    def sample(problem, key):
        instance_key, scale_key, init_key = jax.random.split(key, 3)
        instance = problem.sample(instance_key)
        like = jax.eval_shape(problem.init, init_key, instance)
        leaves, treedef = jax.tree.flatten(like)
        keys = jax.random.split(scale_key, max(1, len(leaves)))  # at least one key

        def draw(key, leaf):
            uniform = jax.random.uniform(
                key, leaf.shape, leaf.dtype, minval=-reach, maxval=reach
            )
            return jnp.exp(uniform)

        return instance, treedef.unflatten(map(draw, keys[: len(leaves)], leaves))

    def init(problem, key, instance):
        inner, scales = instance
        return jax.tree.map(jnp.divide, problem.init(key, inner), scales)

    def loss(problem, params, instance, key):
        inner, scales = instance
        return problem.loss(jax.tree.map(jnp.multiply, params, scales), inner, key)

    # The problem is an argument so that its data stay leaves.
    return base.OptimizationProblem(
        Partial(sample, problem), Partial(init, problem), Partial(loss, problem)
    )
