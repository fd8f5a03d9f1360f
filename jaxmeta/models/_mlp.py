"""Multi-layer perceptron."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.models import _norm


class MLP(nn.Module):
    """Dense layers with a nonlinearity between them; the last one is linear.

    Inputs [N, ...] are flattened to [N, D], outputs are [N, features[-1]]. Weights and
    biases start uniform in ±1 / √fan_in. Larger weights (He) and the smaller ones of
    the MAML paper's released code (standard deviation 0.01) meta-train to sinusoids of
    which more diverge in later inner steps.

    Attributes:
      features: width of every layer, the output's last.
      activation: after each hidden layer.
      norm: "batch" normalises each hidden layer before its activation on the statistics
        of the batch, as the MAML paper's network for Omniglot does; None, not at all.
      statistics: where predictions take batch statistics from: "batch", the inputs
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
    """Applies a new dense layer; call it within a compact method."""
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
