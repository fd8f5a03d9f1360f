"""Gradient descent with learned linear transformations of the gradient.

References:
  Park, Oliva, "Meta-Curvature", NeurIPS 2019, Section 3.
  https://arxiv.org/abs/1902.03356
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base


def curvature_sgd(
    learning_rate: float = 0.1, *, max_size: int = 2048
) -> base.LearnedOptimizer:
    r"""Gradient descent that multiplies gradients by a learned matrix per axis.

    .. math::
      \theta_{t+1} = \theta_t - \alpha \, MC(\nabla f(\theta_t)), \qquad
      MC(G) = G \times_3 M_f \times_2 M_i \times_1 M_o

    A kernel's last two axes, its inputs and outputs, have one matrix each, and all axes
    before them (a window's height and width) share one; a vector has one. All start at
    the identity.

    Args:
      learning_rate: alpha.
      max_size: longer axes have a diagonal matrix. Static.

    Returns:
      A `LearnedOptimizer`. Its `init` requires the parameters; theta is a tree like
      them, each leaf a tuple of matrices [n, n], or [n] if diagonal.

    Raises:
      ValueError: if an argument is not positive; from `init` without parameters; from
        `update` if theta does not match the gradients.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = curvature_sgd(0.5)
      >>> grads = jnp.array([1.0, 2.0])
      >>> theta = lopt.init(jax.random.key(0), grads)
      >>> tx = lopt.transform(theta)
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> print(updates)
      [-0.5 -1. ]
    """
    description = _describe.describe(curvature_sgd, locals())
    _checks.check_positive("learning_rate", learning_rate)
    _checks.check_int("max_size", max_size)

    def init(key, params=None):
        del key
        if params is None:
            raise ValueError("`init` requires `params`: each has its own matrices.")

        def identities(p):
            eye = lambda n: jnp.eye(n) if n <= max_size else jnp.ones(n)
            return tuple(map(eye, _merged(jnp.shape(p))))

        return jax.tree.map(identities, params)

    def transform(theta):
        def init_state(params):
            _checks.check_real("params", params)
            return optax.EmptyState()

        def update(updates, state, params=None, **extra_args):
            del params, extra_args

            def step(grads, matrices):
                shape = _merged(jnp.shape(grads))
                if tuple(m.shape[0] for m in matrices) != shape:
                    raise ValueError(
                        f"`theta` has matrices {[m.shape for m in matrices]} for a "
                        f"gradient of shape {grads.shape}. Call `init` with these "
                        "parameters."
                    )
                turned = grads.reshape(shape)
                # The mode products commute: one axis after the other.
                for axis, matrix in enumerate(matrices):
                    turned = _multiply(matrix.astype(grads.dtype), turned, axis)
                return (-learning_rate * turned.reshape(grads.shape)).astype(
                    grads.dtype
                )

            return jax.tree.map(step, updates, theta), state

        return optax.GradientTransformationExtraArgs(init_state, update)

    return base.LearnedOptimizer(init, transform, description)


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A kernel's shape with all axes before the last two merged."""
    if len(shape) <= 2:
        return shape or (1,)
    return (math.prod(shape[:-2]), *shape[-2:])


def _multiply(matrix: jax.Array, x: jax.Array, axis: int) -> Any:
    """The mode product of `x` with `matrix` along one axis."""
    moved = jnp.moveaxis(x, axis, -1)
    if matrix.ndim == 1:
        scaled = moved * matrix.reshape((1,) * (x.ndim - 1) + (-1,))
    else:
        scaled = moved @ matrix.T
    return jnp.moveaxis(scaled, -1, axis)
