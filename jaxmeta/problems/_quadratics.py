"""Random quadratics as a family of optimization problems."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmeta import _checks, base

_DRAWS = {"uniform": jax.random.uniform, "gaussian": jax.random.normal}


def quadratics(
    dim: int = 10,
    *,
    distribution: Literal["uniform", "gaussian"] = "uniform",
    init_scale: float = 0.01,
) -> base.OptimizationProblem:
    r"""Quadratics :math:`f(\theta) = \|W \theta - y\|^2`.

    Args:
      dim: D of W [D, D], y [D] and the parameters [D].
      distribution: distribution of W and y: "uniform" on [0, 1) (the paper's figure and
        released code) or "gaussian", standard (the paper's text).
      init_scale: standard deviation of the initial parameters.

    Raises:
      ValueError: if `dim` is not a positive int or `distribution` is unknown.

    References:
      Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
      NeurIPS 2016, Section 3.1. https://arxiv.org/abs/1606.04474

    Example:
      >>> import jax, jax.numpy as jnp
      >>> problem = quadratics(dim=2)
      >>> instance = jnp.eye(2), jnp.array([3.0, 4.0])
      >>> print(problem.loss(jnp.zeros(2), instance, jax.random.key(0)))
      25.0
    """
    _checks.check_int("dim", dim)
    _checks.check_choice("distribution", distribution, _DRAWS)
    draw = _DRAWS[distribution]

    def sample(key):
        w_key, y_key = jax.random.split(key)
        return draw(w_key, (dim, dim)), draw(y_key, (dim,))

    def init(key, instance):
        del instance
        return init_scale * jax.random.normal(key, (dim,))

    def loss(params, instance, key):
        del key  # No minibatches.
        w, y = instance
        return jnp.sum(jnp.square(w @ params - y))

    return base.OptimizationProblem(sample, init, loss)
