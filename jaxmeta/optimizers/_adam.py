"""Adam and AdamW for inner loops."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks
from jaxmeta.optimizers import _coordinates


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    grad_floor: float = 1e-5,
) -> optax.GradientTransformation:
    r"""Adam with a bounded derivative where the gradient is zero.

    The same updates as `optax.adam`. Its derivative with respect to the gradients,
    which MAML takes, differs: the square root of the second moment has an infinite
    derivative at zero (`optax.adam` gives NaN), and close to zero the update is a sign
    function with slope :math:`1/\epsilon`. Here a coordinate whose
    :math:`\sqrt{\hat v}` is below `grad_floor` is treated as the step function it is on
    any larger scale: its update is a constant to the derivative. All others have Adam's
    exact derivative, at most of order 1 / `grad_floor`.

    Args:
      learning_rate: a float, an array that may be differentiated, or a schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the denominator.
      grad_floor: root of the second moment below which an update is constant.

    Returns:
      A complete optax transformation: its output is added to the parameters.

    Raises:
      ValueError: if `grad_floor` or a Python `learning_rate` is not positive.

    References:
      Kingma, Ba, "Adam", ICLR 2015, Algorithm 1. https://arxiv.org/abs/1412.6980

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> def after_one_step(w):
      ...     tx = adam(0.1)
      ...     updates, _ = tx.update(2 * w, tx.init(w), w)  # gradient of w ** 2
      ...     return optax.apply_updates(w, updates)
      >>> print(jax.grad(after_one_step)(0.0))
      1.0
    """
    _checks.check_positive("learning_rate", learning_rate)
    return optax.chain(
        _scale_by_adam(b1, b2, eps, grad_floor),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | jax.Array = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    grad_floor: float = 1e-5,
) -> optax.GradientTransformation:
    """AdamW with a bounded derivative where the gradient is zero.

    The same updates as `optax.adamw`, with the derivative of `jaxmeta.optimizers.adam`.

    Args:
      learning_rate: a float, an array that may be differentiated, or a schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the denominator.
      weight_decay: each step subtracts it times the parameters and the learning rate.
      mask: which parameters decay: a pytree of bools, or a function of the parameters
        that returns one; None is all. The others are not frozen: they take Adam's
        step. (`optax.masked(adamw(...), mask)` does not freeze them either: it adds
        their gradients; `optax.partition` with `optax.set_to_zero` freezes.)
      grad_floor: root of the second moment below which an update is constant.

    Returns:
      A complete optax transformation: its output is added to the parameters. Its update
      requires `params`.

    Raises:
      ValueError: if `grad_floor` or a Python `learning_rate` is not positive, or
        `weight_decay` is negative.

    References:
      Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019,
      Algorithm 2. https://arxiv.org/abs/1711.05101

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> def after_one_step(w):
      ...     tx = adamw(0.5, weight_decay=0.1)
      ...     updates, _ = tx.update(0 * w, tx.init(w), w)  # a gradient of zero
      ...     return optax.apply_updates(w, updates)
      >>> print(jax.grad(after_one_step)(1.0))
      0.95
    """
    _checks.check_positive("learning_rate", learning_rate)
    _checks.check_not_negative("weight_decay", weight_decay)
    return optax.chain(
        _scale_by_adam(b1, b2, eps, grad_floor),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_adam(b1, b2, eps, grad_floor):
    """Adam's direction, without a learning rate."""
    if not grad_floor > 0:
        raise ValueError(f"`grad_floor` must be positive, got {grad_floor!r}.")

    def init(params):
        return optax.ScaleByAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
        )

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, count)

        ratio = lambda m, v: _coordinates.normalize(m, v, eps, grad_floor)
        directions = jax.tree.map(ratio, mu_hat, nu_hat)
        return directions, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
