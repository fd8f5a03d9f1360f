"""A plain convolutional classifier."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.models import _conv, _norm


class ConvNet(nn.Module):
    """Convolutions with ReLU and 2x2 max-pooling, then dense layers.

    Inputs [N, H, W, channels], outputs [N, num_outputs]. The defaults are the CIFAR-10
    network of "Learning to learn by gradient descent by gradient descent", with sizes
    from its released code; every layer except the last is batch-normalised.

    Attributes:
      num_outputs: number of logits.
      filters: filters of each convolution.
      kernel_size: height and width of the kernels; padding keeps the image's size.
      hidden: widths of the dense layers before the last.
      norm: "batch" or None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> model = ConvNet()
      >>> params = model.init(jax.random.key(0), images)
      >>> model.apply(params, images).shape
      (2, 10)
    """

    num_outputs: int = 10
    filters: Sequence[int] = (16, 16, 16)
    kernel_size: int = 5
    hidden: Sequence[int] = (32,)
    norm: str | None = "batch"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps images [N, H, W, channels] to [N, num_outputs]."""
        if inputs.ndim != 4:
            raise ValueError(
                f"ConvNet takes images [N, H, W, channels], got shape {inputs.shape}."
            )
        for name in ("num_outputs", "kernel_size"):
            _checks.check_int(name, getattr(self, name))
        dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
        x = inputs.transpose(3, 1, 2, 0)  # [channels, H, W, N]
        for i, filters in enumerate(self.filters):
            shape = (self.kernel_size, self.kernel_size, x.shape[0], filters)
            kernel = self.param(
                f"kernel_{i}", nn.initializers.he_normal(), shape, dtype
            )
            x = _conv.batch_last_conv(x, kernel)
            if self.norm is None:
                zeros, shape = nn.initializers.zeros, (filters, 1, 1, 1)
                x = x + self.param(f"bias_{i}", zeros, shape, dtype)
            x = nn.relu(_norm.normalize(self.norm, x, axis=0))
            x = _conv.max_pool(x)
        x = x.transpose(3, 1, 2, 0).reshape(inputs.shape[0], -1)
        for width in self.hidden:
            x = nn.Dense(width, use_bias=self.norm is None, param_dtype=dtype)(x)
            x = nn.relu(_norm.normalize(self.norm, x))
        return nn.Dense(self.num_outputs, param_dtype=dtype)(x)
