"""Convolution and pooling, lowered in the fastest way for each platform.

On a CPU a small convolution is fastest as shifted slices and one matrix product
(im2col): under `vmap` over kernels, as when a network adapts to every task of a
batch, `lax.conv_general_dilated` becomes a grouped convolution, tens of times slower
there. Accelerators use the convolution.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxmeta.models import _pieces, _product

Padding = str | Sequence[tuple[int, int]]

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv(
    inputs: jax.Array, kernel: jax.Array, *, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Convolves images with a kernel, like `lax.conv_general_dilated`.

    Args:
      inputs: [N, H, W, I].
      kernel: [h, w, I, O].
      strides: window strides, (rows, columns). Static.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)). Static.

    Returns:
      [N, H', W', O].

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> conv(x, kernel, strides=(1, 1), padding="VALID")[0, :, :, 0].tolist()
      [[9.0, 9.0], [9.0, 9.0]]
    """
    inputs, kernel = promote(inputs, kernel)

    def matmul(inputs, kernel):
        if tuple(strides) == (1, 1) and _product.are_local(convolution, inputs, kernel):
            sides = _sides(inputs, kernel, strides, padding)
            return _pieces.conv(inputs, kernel, sides)
        return im2col_conv(inputs, kernel, strides=strides, padding=padding)

    def convolution(inputs, kernel):
        return _lax_conv(inputs, kernel, strides, padding)

    return lax.platform_dependent(inputs, kernel, cpu=matmul, default=convolution)


def pooled_conv(
    inputs: jax.Array, kernel: jax.Array, sign: jax.Array, *, padding: Padding
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Convolves with stride 1, measures mean and variance, then takes 2x2 maxima.

    What is monotonic may follow the maxima, of a quarter of the entries, instead of
    going before: normalisation, activation.

    Args:
      inputs: [N, H, W, I].
      kernel: [h, w, I, O].
      sign: [O], 1 or -1: whether what follows rises or falls with that feature; if it
        falls, minima are taken.
      padding: as in `conv`.

    Returns:
      maxima [N, H' // 2, W' // 2, O]; mean and variance [O] of what was pooled.
    """
    inputs, kernel = promote(inputs, kernel)

    def pool(y, sign):
        sign = sign.astype(y.dtype).reshape(1, 1, 1, -1)
        return max_pool(y * sign) * sign

    def in_pieces(inputs, kernel, sign):
        if not _product.are_local(_lax_conv, inputs, kernel):
            return whole(inputs, kernel, sign)
        sides = _sides(inputs, kernel, (1, 1), padding)
        return _pieces.pooled_conv(inputs, kernel, sides, lambda y: pool(y, sign))

    def whole(inputs, kernel, sign):
        y = conv(inputs, kernel, strides=(1, 1), padding=padding)
        return pool(y, sign), *_pieces.moments(y)

    return lax.platform_dependent(inputs, kernel, sign, cpu=in_pieces, default=whole)


def _lax_conv(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
) -> jax.Array:
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=_DIMENSION_NUMBERS
    )


def im2col_conv(
    inputs: jax.Array, kernel: jax.Array, *, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """The same convolution as one matrix product; arguments as in `conv`."""
    height, width, channels, features = kernel.shape
    sides = _sides(inputs, kernel, strides, padding)
    x = jnp.pad(inputs, ((0, 0), *sides, (0, 0)))
    out_height = (x.shape[1] - height) // strides[0] + 1
    out_width = (x.shape[2] - width) // strides[1] + 1
    # A strided slice starting at (i, j) gathers tap (i, j) of every window; it spans
    # `rows` x `columns`, from the first entry read to the last.
    rows = (out_height - 1) * strides[0] + 1
    columns = (out_width - 1) * strides[1] + 1
    patches = [
        lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + rows, j + columns, channels),
            (1, *strides, 1),
        )
        for i in range(height)
        for j in range(width)
    ]
    # In the order of the kernel's axes h, w, I, so that it needs only a reshape.
    patches = jnp.concatenate(patches, axis=-1)  # [N, H', W', h * w * I]
    kernel = kernel.reshape(height * width * channels, features)
    outputs = _product.product(patches.reshape(-1, len(kernel)), kernel)
    return outputs.reshape(*patches.shape[:-1], features)


def _sides(inputs, kernel, strides, padding):
    """`padding` as zeros ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        sizes = inputs.shape[1:3], kernel.shape[:2]
        padding = lax.padtype_to_pads(*sizes, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def batch_last_conv(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves images with the batch as last axis, for few channels.

    Stride 1, padded to keep the size. On a CPU the patches are then copied in long
    runs: two to three times faster than `conv` on batches of 128.

    Args:
      inputs: [I, H, W, N].
      kernel: [h, w, I, O].

    Returns:
      [O, H, W, N].

    Example:
      >>> import jax.numpy as jnp
      >>> batch_last_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 5))).shape
      (5, 4, 4, 2)
    """
    inputs, kernel = promote(inputs, kernel)

    def matmul(inputs, kernel):
        rows, columns, _, features = kernel.shape
        _, height, width, n = inputs.shape
        sizes = (height, width), (rows, columns), (1, 1)
        padding = lax.padtype_to_pads(*sizes, "SAME")
        x = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
        patches = jnp.stack(
            [
                x[:, i : i + height, j : j + width]
                for i in range(rows)
                for j in range(columns)
            ]
        )
        patches = patches.reshape(-1, height * width * n)  # [h * w * I, H * W * N]
        return (kernel.reshape(-1, features).T @ patches).reshape(
            features, height, width, n
        )

    def convolution(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, (1, 1), "SAME", dimension_numbers=("CHWN", "HWIO", "CHWN")
        )

    return lax.platform_dependent(inputs, kernel, cpu=matmul, default=convolution)


def promote(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Promotes both to one dtype, as flax does; integers to the kernel's."""
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    return inputs.astype(dtype), kernel.astype(dtype)


def max_pool(inputs: jax.Array) -> jax.Array:
    """Takes the maximum of each 2x2 window; an odd last row or column is dropped.

    On a CPU its derivative is several times faster than that of `lax.reduce_window`.
    Of equal entries the first receives the whole cotangent.

    Args:
      inputs: [A, H, W, B]: channels first or last.

    Returns:
      [A, H // 2, W // 2, B].

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool(jnp.arange(8.0).reshape(1, 2, 4, 1))[0, :, :, 0].tolist()
      [[5.0, 7.0]]
    """
    first, height, width, last = inputs.shape
    height, width = height // 2, width // 2
    # Not `jnp.max`: its derivative divides by the number of entries equal to the
    # maximum, which is 0 if XLA recomputes them with different rounding.
    larger = lambda a, b: jnp.where(a >= b, a, b)
    x = inputs[:, : 2 * height, : 2 * width]
    x = x.reshape(first, height, 2, 2 * width, last)
    x = larger(x[:, :, 0], x[:, :, 1]).reshape(first, height, width, 2, last)
    return larger(x[:, :, :, 0], x[:, :, :, 1])
