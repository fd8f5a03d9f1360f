"""Computing in fewer bits than parameters are kept in."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmeta import _model, base


def with_compute_dtype(model: base.ModelLike, dtype: Any = jnp.bfloat16) -> base.Model:
    """Returns `model` computing in `dtype`, with parameters and outputs as they are.

    Parameters and inputs are rounded on their way in, so that products run on the
    matrix units of an accelerator; gradients, inner updates, losses and meta-parameters
    keep their precision. Of a learned inner rule or a head the arithmetic stays as it
    is.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      dtype: floating, `jnp.bfloat16` or `jnp.float16`; the latter has a small range
        and wants scaled losses.

    Returns:
      A `Model` with the same parameters. Outputs are float32, or the parameters' own
      type where that is wider.

    Raises:
      ValueError: if `dtype` is not floating.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxmeta import models
      >>> model = with_compute_dtype(models.MLP([8, 1]))
      >>> x = jnp.ones((3, 2))
      >>> params = model.init(jax.random.key(0), x)
      >>> model.apply(params, x).dtype, jax.tree.leaves(params)[0].dtype
      (dtype('float32'), dtype('float32'))

    References:
      Micikevicius et al., "Mixed Precision Training", ICLR 2018.
      https://arxiv.org/abs/1710.03740
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"`dtype` must be floating, say jnp.bfloat16, got {jnp.dtype(dtype).name}."
        )
    net = _model.normalize(model)

    def apply(params, inputs, *, key=None, train=False):
        outputs = net.apply(
            _cast(params, dtype), _cast(inputs, dtype), key=key, train=train
        )
        return _cast(outputs, _widest(params))

    def with_statistics(params, inputs):
        found = net.with_statistics(_cast(params, dtype), _cast(inputs, dtype))
        found = _cast(found, _widest(params))
        # What was there before keeps all its bits.
        return {**found, **params} if isinstance(found, Mapping) else found

    return base.Model(net.init, apply, with_statistics)


def _cast(tree, dtype):
    is_float = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)
    cast = lambda x: jnp.asarray(x, dtype) if is_float(x) else x
    return jax.tree.map(cast, tree)


def _widest(params):
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))
