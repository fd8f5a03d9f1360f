"""Clipping and normalisation for inner loops: optax's, with bounded derivatives.

A norm has no derivative at zero: differentiating optax's rules gives NaN where a
gradient is exactly zero, although the clipped update is the gradient itself there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks
from jaxmeta.optimizers import _coordinates


def clip_by_global_norm(max_norm: float | jax.Array) -> optax.GradientTransformation:
    """Scales gradients down to a norm of at most `max_norm` over all leaves.

    The same updates as `optax.clip_by_global_norm`, but differentiable at zero too,
    like the identity.

    Args:
      max_norm: the maximum norm; an array may be differentiated.

    Returns:
      An optax transformation, to chain with a rule.

    Raises:
      ValueError: if an untraced `max_norm` is not positive and finite.

    References:
      Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural
      networks", ICML 2013, Algorithm 1. https://arxiv.org/abs/1211.5063

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = clip_by_global_norm(1.0)
      >>> clip = lambda grads: tx.update(grads, tx.init(grads))[0]
      >>> print(clip(jnp.array([3.0, 4.0])))
      [0.6 0.8]
      >>> print(jax.jacrev(clip)(jnp.zeros(2)))  # optax's: NaN
      [[1. 0.]
       [0. 1.]]
    """
    _check_limit("max_norm", max_norm)

    def clip(updates):
        scale = max_norm / _norm_at_least(max_norm, optax.tree.norm, updates)
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)

    return optax.stateless(lambda updates, params: clip(updates))


def clip_by_block_rms(threshold: float | jax.Array) -> optax.GradientTransformation:
    """Scales each leaf down to a root mean square of at most `threshold`.

    The same updates as `optax.clip_by_block_rms`, but differentiable at zero too, like
    the identity.

    Args:
      threshold: the maximum root mean square of a leaf.

    Returns:
      An optax transformation, to chain with a rule.

    Raises:
      ValueError: if an untraced `threshold` is not positive and finite.

    References:
      Shazeer, Stern, "Adafactor", ICML 2018, Algorithm 4, step 9.
      https://arxiv.org/abs/1804.04235

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_block_rms(1.0)
      >>> grads = {"w": jnp.array([3.0, 3.0]), "b": jnp.array([0.5])}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> print(updates["w"], updates["b"])
      [1. 1.] [0.5]
    """
    _check_limit("threshold", threshold)

    def clip(u):
        scale = threshold / _norm_at_least(threshold, _root_mean_square, u)
        return u * scale.astype(u.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def adaptive_grad_clip(
    clipping: float | jax.Array,
    *,
    eps: float = 1e-3,
    axis: int | tuple[int, ...] | None = None,
) -> optax.GradientTransformation:
    """Scales each unit's gradient down to `clipping` times the norm of its parameters.

    The same updates as `optax.adaptive_grad_clip`, but differentiable where gradients
    or parameters are zero too.

    Args:
      clipping: the maximum ratio of the two norms.
      eps: minimum norm of the parameters.
      axis: axes of a unit's norm; None chooses by the number of axes, as
        `optax.adaptive_grad_clip` does.

    Returns:
      An optax transformation, to chain with a rule. Its update requires `params`.

    Raises:
      ValueError: if `eps` or an untraced `clipping` is not positive and finite; while
        tracing, if there are no `params`.

    References:
      Brock, De, Smith, Simonyan, "High-performance large-scale image recognition
      without normalization", ICML 2021, equation 3. https://arxiv.org/abs/2102.06171

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adaptive_grad_clip(0.5)
      >>> grads, params = jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0])
      >>> print(tx.update(grads, tx.init(params), params)[0])
      [0.6 0.8]
    """
    _check_limit("clipping", clipping)
    _check_limit("eps", eps)
    norm = lambda x: optax.transforms.unitwise_norm(x, axis=axis)  # like x

    def clip(u, p):
        max_norm = clipping * _norm_at_least(eps, norm, p)
        return u * (max_norm / _norm_at_least(max_norm, norm, u)).astype(u.dtype)

    def update(updates, params):
        if params is None:
            raise ValueError("`adaptive_grad_clip` requires `params`, got None.")
        return jax.tree.map(clip, updates, params)

    return optax.stateless(update)


def normalize_by_update_norm(
    scale_factor: float | jax.Array = 1.0,
    *,
    eps: float = 1e-6,
    grad_floor: float = 1e-5,
) -> optax.GradientTransformation:
    r"""Scales gradients to a norm of `scale_factor` over all leaves.

    The same updates as `optax.normalize_by_update_norm`,
    :math:`s g / (\lVert g \rVert + \epsilon)`. Close to zero that is a step function
    with slope :math:`s / \epsilon`, and optax's derivative at zero is NaN. Here, as in
    `jaxmeta.optimizers.adam`, the update is a constant to the derivative if the
    gradient's norm is below `grad_floor`; otherwise the derivative is exact.

    Args:
      scale_factor: the norm of updates; an array may be differentiated.
      eps: added to the gradient norm.
      grad_floor: gradient norm below which an update is constant.

    Returns:
      An optax transformation, to chain with a rule.

    Raises:
      ValueError: if `eps` or `grad_floor` is not positive and finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = normalize_by_update_norm()
      >>> normalize = lambda grads: tx.update(grads, tx.init(grads))[0]
      >>> print(normalize(jnp.array([3.0, 4.0])).round(3))
      [0.6 0.8]
      >>> print(jax.grad(lambda g: normalize(g).sum())(jnp.zeros(2)))
      [0. 0.]
    """
    _check_limit("eps", eps)
    _check_limit("grad_floor", grad_floor)

    def update(updates, params):
        del params
        squares = optax.tree.norm(updates, squared=True)

        def scale(u):
            return scale_factor * _coordinates.normalize(u, squares, eps, grad_floor)

        return jax.tree.map(lambda u: scale(u).astype(u.dtype), updates)

    return optax.stateless(update)


def _norm_at_least(
    limit: float | jax.Array, norm: Callable[[Any], jax.Array], tree: Any
) -> jax.Array:
    """`max(norm(tree), limit)`, with zero derivative below the limit.

    The norm may be global, [], or unitwise, broadcastable to a single leaf.
    """
    is_above = norm(jax.lax.stop_gradient(tree)) > limit
    # A double where: the root's derivative is infinite at zero, and 0 * inf is NaN, so
    # the branch not taken must be evaluated elsewhere.
    tree = jax.tree.map(lambda x: jnp.where(is_above, x, 1), tree)
    return jnp.where(is_above, norm(tree), limit)


def _root_mean_square(x):
    return jnp.sqrt(optax.tree.norm(x, squared=True) / x.size)


def _check_limit(name, value):
    if callable(value):
        raise ValueError(
            f"`{name}` must be a number, got {value!r}. For a schedule use "
            "`optax.inject_hyperparams`."
        )
    _checks.check_positive(name, value)
