"""Features of gradients of any scale, as inputs of learned rules."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxmeta import _checks

Preprocess: TypeAlias = Callable[[jax.Array], jax.Array]  # [...] -> [..., F]


def log_gradient(p: float = 10.0) -> Preprocess:
    r"""Logarithm and sign of a gradient.

    .. math::
      g \mapsto \begin{cases}
        (\log|g| / p,\ \operatorname{sgn} g) & |g| \ge e^{-p} \\
        (-1,\ e^p g) & \text{otherwise}
      \end{cases}

    The paper's released code has p = 5. The derivative is finite everywhere, even where
    the gradient is zero.

    Args:
      p: gradients below exp(-p) are treated linearly; at most 80, since exp(-p) must be
        a float32.

    Raises:
      ValueError: if `p` is not positive, or too large.

    References:
      Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
      NeurIPS 2016, Appendix A. https://arxiv.org/abs/1606.04474

    Example:
      >>> import jax.numpy as jnp
      >>> print(log_gradient(p=1.0)(jnp.array([-1.0, 0.0])))
      [[ 0. -1.]
       [-1.  0.]]
    """
    _checks.check_positive("p", p)
    if p > 80:
        raise ValueError(f"`p` must be at most 80 (exp(-p) in float32), got {p!r}.")

    def preprocess(grads):
        magnitudes = jnp.abs(grads)
        is_large = magnitudes >= jnp.exp(-p)
        # A double where: log 0 in the branch not taken would make its gradient NaN.
        logs = jnp.log(jnp.where(is_large, magnitudes, 1)) / p
        first = jnp.where(is_large, logs, -1)
        second = jnp.where(is_large, jnp.sign(grads), jnp.exp(p) * grads)
        return jnp.stack([first, second], -1)

    return preprocess


def scaled_gradient(scale: float | jax.Array = 1.0) -> Preprocess:
    """A gradient times a constant, which worked equally well in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> print(scaled_gradient(10.0)(jnp.array([1.0, 2.0])))
      [[10.]
       [20.]]
    """
    return lambda grads: (scale * grads)[..., None]


def count_features(preprocess: Preprocess) -> int:
    """F, the number of features per coordinate."""
    shape = jax.eval_shape(preprocess, jnp.zeros(())).shape
    if len(shape) != 1:
        raise ValueError(
            "`preprocess` must map gradients [...] to features [..., F], got shape "
            f"{shape} for a scalar. Add the axis of features: `x[..., None]`."
        )
    return shape[0]


def is_coordinatewise(preprocess: Preprocess) -> bool:
    """Whether a coordinate's features depend on its own gradient alone."""
    if getattr(preprocess, "__module__", None) == __name__:
        return True
    with jax.ensure_compile_time_eval():
        grads = jnp.array([1.0, -0.5, 1e-3, 0.0])
        alone = jnp.stack([preprocess(g) for g in grads])
        return bool(jnp.allclose(preprocess(grads), alone))
