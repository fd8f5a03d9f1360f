"""A plain convolutional classifier."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.models import _conv, _norm


class ConvNet(nn.Module):
    """Convolutions with ReLU and 2x2 max-pooling, then dense layers.

    Inputs [N, H, W, channels], outputs [N, num_outputs]. The defaults are the network
    on CIFAR-10 of "Learning to learn by gradient descent by gradient descent", sizes
    from its released code; every layer but the last is normalised on its batch.

    Attributes:
      num_outputs: logits.
      filters: of each convolution.
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
        x = inputs
        for i, filters in enumerate(self.filters):
            shape = (self.kernel_size, self.kernel_size, x.shape[-1], filters)
            kernel = self.param(
                f"kernel_{i}", nn.initializers.he_normal(), shape, dtype
            )
            # Few networks, many large images: `_conv.conv` would be slower here.
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            if self.norm is None:
                zeros, shape = nn.initializers.zeros, (1, 1, 1, filters)
                x = x + self.param(f"bias_{i}", zeros, shape, dtype)
            x = nn.relu(_norm.normalize(self.norm, x))
            x = _conv.max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dense(width, use_bias=self.norm is None, param_dtype=dtype)(x)
            x = nn.relu(_norm.normalize(self.norm, x))
        return nn.Dense(self.num_outputs, param_dtype=dtype)(x)
