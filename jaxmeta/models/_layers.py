"""What the blocks of the convolutional networks share."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.models import _conv, _norm

_HE_NORMAL = nn.initializers.he_normal()


def normalized_conv(
    module: nn.Module,
    x: Any,
    filters: int,
    *,
    norm: str | None,
    size: int = 3,
    stride: int = 1,
    suffix: str = "",
    channels: int | None = None,
    convolve: Callable[..., jax.Array] = _conv.conv,
    kernel_init: nn.initializers.Initializer = _HE_NORMAL,
) -> jax.Array:
    """Convolves, inside a compact module, by a new kernel, and normalises.

    Args:
      module: gets the parameters "kernel" and, without a norm, "bias".
      x: [N, H, W, channels], or what `convolve` takes.
      filters: F.
      norm: "batch" or None.
      size: of the kernel, padded by half of it on all sides.
      stride: of both axes.
      suffix: to the names of the parameters.
      channels: of the kernel; None is x's.
      convolve: as `jaxmeta.models._conv.conv`.
      kernel_init: draws the kernel.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), F].
    """
    dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
    shape = (size, size, channels or x.shape[-1], filters)
    kernel = module.param(f"kernel{suffix}", kernel_init, shape, dtype)
    sides = ((size // 2, size // 2),) * 2
    x = convolve(x, kernel, strides=(stride, stride), padding=sides)
    if norm is None:
        zeros, shape = nn.initializers.zeros, (1, 1, 1, filters)
        x = x + module.param(f"bias{suffix}", zeros, shape, dtype)
    return _norm.normalize(norm, x)
