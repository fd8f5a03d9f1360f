"""Any optax optimizer as a learned one with one meta-parameter."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base


def learned_rate(
    make_tx: Callable[[jax.Array], optax.GradientTransformation],
    learning_rate: float = 1e-3,
) -> base.LearnedOptimizer:
    """An optax optimizer with a learned, or tuned, learning rate.

    Args:
      make_tx: `(learning_rate) -> transformation`, e.g. `optax.adam`. Estimators that
        differentiate through updates (`bptt`, `truncated_bptt`) require a derivative
        at zero gradients: `jaxmeta.optimizers.adam`.
      learning_rate: initial value.

    Returns:
      A `LearnedOptimizer` whose theta is the rate, [].

    Raises:
      ValueError: if `make_tx` is not a function or `learning_rate` not positive; from
        `transform`, if `theta` is not a scalar, or `make_tx` does not return a
        transformation.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> lopt = learned_rate(optax.sgd, 0.5)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> grads = jnp.array([1.0, 2.0])
      >>> print(tx.update(grads, tx.init(grads))[0])
      [-0.5 -1. ]
    """
    _checks.check_callable("make_tx", make_tx)
    description = _describe.describe(learned_rate, locals())
    _checks.check_positive("learning_rate", learning_rate)

    def init(key, params=None):
        del key, params
        return jnp.asarray(learning_rate, jnp.result_type(learning_rate, float))

    def transform(theta):
        _checks.check_like("theta", theta, learning_rate)
        tx = make_tx(theta)
        _checks.check_plain_transformation("make_tx(learning_rate)", tx)
        return optax.with_extra_args_support(tx)

    return base.LearnedOptimizer(init, transform, description)
