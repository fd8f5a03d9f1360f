"""Multi-layer perceptron."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.models import _norm


class MLP(nn.Module):
    """Dense layers with a nonlinearity between them; the last one is linear.

    Inputs [N, ...] are flattened to [N, D], outputs are [N, features[-1]]. Weights and
    biases are initialised uniformly in ±1 / √fan_in. On sinusoids, larger initial
    weights (He) and the smaller ones of the MAML paper's released code (standard
    deviation 0.01) make more tasks diverge in later inner steps.

    Attributes:
      features: width of every layer, including the output.
      activation: activation of the hidden layers.
      norm: "batch" batch-normalises each hidden layer before its activation, like the
        MAML paper's network for Omniglot; None does not normalise.
      statistics: source of the batch statistics for predictions: "batch", the inputs
        predicted together (transductive), or "support", the support set.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = MLP([40, 40, 1])
      >>> params = model.init(jax.random.key(0), jnp.ones((10, 1)))
      >>> model.apply(params, jnp.ones((10, 1))).shape
      (10, 1)
    """

    features: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    norm: str | None = None
    statistics: str = "batch"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [N, ...] to [N, features[-1]]."""
        if not self.features:
            raise ValueError("`features` must name at least the output's width.")
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.features[:-1]:
            x = _dense(width, x, use_bias=self.norm is None)
            x = self.activation(_norm.normalize(self.norm, x))
        return _dense(self.features[-1], x)

    def with_support_statistics(self, params, inputs):
        """Returns `params` with the statistics that predictions will use."""
        return _norm.with_support_statistics(self, params, inputs)


def _dense(width, x, use_bias=True):
    """Applies a new dense layer; only callable inside a compact method."""
    reach = x.shape[-1] ** -0.5

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -reach, reach)

    return nn.Dense(
        width,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        param_dtype=jnp.result_type(float),  # JAX's default, not flax's float32.
    )(x)
