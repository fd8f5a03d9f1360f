"""The convolutional tower of siamese networks for one-shot recognition."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.models import _conv


class KochNet(nn.Module):
    """Convolutions with ReLU and 2x2 max-pooling in between, then a dense sigmoid.

    Inputs [N, H, W, channels], embeddings [N, features] in (0, 1). The defaults are the
    paper's network for 105x105 drawings. Convolutions are not padded, so smaller images
    need smaller kernels: for 28x28, `KochNet(kernel_sizes=(5, 3, 2, 2))`.

    For learners that share weights across tasks, such as metric learners; with weights
    adapted to each task it is slow on a CPU.

    Attributes:
      filters: filters of each convolution.
      kernel_sizes: height and width of each convolution's kernel.
      features: width of the dense layer.

    References:
      Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image
      Recognition", ICML deep learning workshop 2015, section 3.1 and figure 4;
      initialisation from section 3.2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images, model = jnp.ones((2, 105, 105, 1)), KochNet()
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 4096)
    """

    filters: Sequence[int] = (64, 128, 128, 256)
    kernel_sizes: Sequence[int] = (10, 7, 4, 4)
    features: int = 4096

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps images [N, H, W, channels] to [N, features]."""
        self._check(inputs)
        dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
        x = inputs
        for i, (filters, size) in enumerate(
            zip(self.filters, self.kernel_sizes, strict=True)
        ):
            x = x if i == 0 else _conv.max_pool(x)
            # Not `_conv.conv`: for large kernels im2col takes five times the memory on
            # a CPU, and is no faster while all tasks share the kernels.
            convolve = nn.Conv(
                filters,
                (size, size),
                padding="VALID",
                kernel_init=_normal(0.0, 0.01),
                bias_init=_normal(0.5, 0.01),
                param_dtype=dtype,
            )
            x = nn.relu(convolve(x))
        dense = nn.Dense(
            self.features,
            kernel_init=_normal(0.0, 0.2),
            bias_init=_normal(0.5, 0.01),
            param_dtype=dtype,
        )
        return nn.sigmoid(dense(x.reshape(x.shape[0], -1)))

    def _check(self, inputs):
        """Raises unless the layer sizes are valid and the image is large enough."""
        if inputs.ndim != 4:
            raise ValueError(
                f"KochNet takes images [N, H, W, channels], got shape {inputs.shape}."
            )
        if not self.filters or len(self.filters) != len(self.kernel_sizes):
            raise ValueError(
                "`filters` and `kernel_sizes` must have the same length, got "
                f"{self.filters} and {self.kernel_sizes}."
            )
        for name in ("filters", "kernel_sizes"):
            for value in getattr(self, name):
                _checks.check_int(name, value)
        _checks.check_int("features", self.features)
        # The smallest image, backwards from the last kernel: pooling doubles the size
        # and an unpadded convolution adds kernel size - 1.
        smallest = self.kernel_sizes[-1]
        for size in reversed(self.kernel_sizes[:-1]):
            smallest = 2 * smallest + size - 1
        if min(inputs.shape[1:3]) < smallest:
            raise ValueError(
                f"`kernel_sizes` {self.kernel_sizes} require images of at least "
                f"{smallest}x{smallest}, got shape {inputs.shape}. Use larger images "
                "or smaller kernels."
            )


def _normal(mean, standard_deviation):
    def init(key, shape, dtype):
        return mean + standard_deviation * jax.random.normal(key, shape, dtype)

    return init
