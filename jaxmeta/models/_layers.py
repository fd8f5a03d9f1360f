"""Shared by the blocks of the convolutional networks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
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
    """Convolves with a new kernel and normalises, inside a compact module.

    Args:
      module: owns the parameters "kernel" and, without a norm, "bias".
      x: [N, H, W, channels], or the inputs of `convolve`.
      filters: F.
      norm: "batch" or None.
      size: kernel size; half of it pads each side.
      stride: stride of both axes.
      suffix: suffix of the parameter names.
      channels: input channels of the kernel; None is x's.
      convolve: a function like `jaxmeta.models._conv.conv`.
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


def normalized_pooled_conv(module: nn.Module, x: jax.Array, filters: int) -> jax.Array:
    """A 3x3 convolution, 2x2 maxima and batch normalisation, in a compact module.

    As `normalized_conv` and max-pooling, in the order that needs least memory. Where
    entries of a window differ by rounding alone, their derivatives may.

    Args:
      module: owns the parameter "kernel".
      x: [N, H, W, channels].
      filters: F.

    Returns:
      [N, H // 2, W // 2, F].
    """
    dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
    shape = (3, 3, x.shape[-1], filters)
    kernel = module.param("kernel", _HE_NORMAL, shape, dtype)

    def convolve(x, scale):
        sign = jnp.where(scale < 0, -1, 1)
        return _conv.pooled_conv(x, kernel, sign, padding=((1, 1), (1, 1)))

    return _norm.BatchNorm(features=filters)(x, convolve)


def head(x: jax.Array, classes: int | None) -> jax.Array:
    """The linear layer "head", inside a compact module; None leaves the embedding."""
    if classes is None:
        return x
    _checks.check_int("head", classes)
    dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
    return nn.Dense(classes, param_dtype=dtype, name="head")(x)
