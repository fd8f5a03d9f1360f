"""Convolution of stride 1 on a CPU, a piece of the batch at a time.

The patches of a whole batch (im2col) hold each entry once per tap of the kernel: 827
MiB for 30 maps of 84 x 84 x 64, to be written, read and kept for the derivatives. Here
those of a few hundred positions are laid out in the cache, multiplied and forgotten;
what follows the convolution there, batch statistics and pooling, is done there too.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from jaxmeta.models._product import product

Sides = tuple[tuple[int, int], tuple[int, int]]

# Positions in a piece: so many that a matrix product is large, so few that the patches
# of 64 channels, 9 * 64 * 4 bytes a position, stay in a cache of 1 or 2 MiB.
POSITIONS = 512
# From so many channels on, a convolution's outputs are kept rather than computed again.
MANY_CHANNELS = 16


def map_pieces(of_piece: Callable[[jax.Array], Any], x: jax.Array, policy=None) -> Any:
    """Maps groups of images [n, H, W, I]; returns leaves [groups, ...].

    Derivatives repeat `of_piece`, but for what the checkpoint's `policy` says.
    """
    size = _images_in_piece(*x.shape[:3])
    if size == len(x):
        return jax.tree.map(lambda y: y[None], of_piece(x))
    of_piece = jax.checkpoint(of_piece, policy=policy, prevent_cse=False)
    if size == 1:  # Not reshaped to [N, 1, H, W, I]: XLA would copy the batch.
        return lax.map(lambda image: of_piece(image[None]), x)
    return lax.map(of_piece, x.reshape(-1, size, *x.shape[1:]))


def _images_in_piece(num_images, height, width):
    """The divisor of `num_images` whose pieces are nearest to `POSITIONS`."""
    sizes = [n for n in range(1, num_images + 1) if num_images % n == 0]
    return min(sizes, key=lambda n: abs(math.log(n * height * width / POSITIONS)))


def conv(x: jax.Array, kernel: jax.Array, padding: Sides) -> jax.Array:
    """Convolves [N, H, W, I] with [h, w, I, O], both of one dtype, to [N, H', W', O].

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> conv(x, kernel, ((0, 0), (0, 0)))[0, :, :, 0].tolist()
      [[9.0, 9.0], [9.0, 9.0]]
    """
    convolve = piece_conv(x, kernel, padding)
    y = map_pieces(convolve, x)
    return y.reshape(-1, *y.shape[2:])


def pooled_conv(
    x: jax.Array,
    kernel: jax.Array,
    padding: Sides,
    pool: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`conv`, pooled, and the mean and variance [O] of what was pooled.

    That is never whole in memory.
    """
    convolve = piece_conv(x, kernel, padding)

    def of_piece(x):
        y = checkpoint_name(convolve(x), "jaxmeta_conv")
        return pool(y), *moments(y)

    saved = ["jaxmeta_conv"] if kernel.shape[2] >= MANY_CHANNELS else []
    policy = jax.checkpoint_policies.save_only_these_names(*saved)
    y, means, variances = map_pieces(of_piece, x, policy)
    # Pieces are of one size: the law of total variance.
    mean = jnp.mean(means, 0)
    between = jnp.mean(jnp.square(means - mean[None]), 0)
    return y.reshape(-1, *y.shape[2:]), mean, jnp.mean(variances, 0) + between


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [C] of maps [N, H, W, C]."""
    mean = jnp.mean(x, (0, 1, 2), keepdims=True)
    # Two passes: E[x^2] - E[x]^2 cancels, and its derivatives more so.
    return jnp.ravel(mean), jnp.mean(jnp.square(x - mean), (0, 1, 2))


def piece_conv(
    x: jax.Array, kernel: jax.Array, padding: Sides
) -> Callable[[jax.Array], jax.Array]:
    """Returns the convolution of pieces of x, with the kernel arranged for it.

    Either patches of the inputs are multiplied by the kernel, or the inputs by all of
    its taps, and the products shifted and added. The narrower of inputs and outputs is
    laid out so. If neither is, the second way is faster, since its derivatives share
    their patches; but it copies the kernel, which only many positions make up for.
    """
    height, width, channels, features = kernel.shape
    options = {"taps": (height, width), "padding": padding}
    if channels < features or math.prod(x.shape[:3]) < 4 * POSITIONS:
        matrix = kernel.reshape(-1, features)
        return lambda x: _multiply(_patches_p.bind(x, **options), matrix)
    matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
    options["padding"] = tuple(
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip((height, width), padding, strict=True)
    )
    return lambda x: _shift_add_p.bind(_multiply(x, matrix), **options)


def _multiply(x, matrix):
    """Multiplies the last axis."""
    y = product(x.reshape(-1, x.shape[-1]), matrix)
    return y.reshape(*x.shape[:-1], -1)


# Two linear maps, each the other's transpose; p, q are positions, t taps, a the zeros
# before the first row and column:
#   patches    [N, H, W, C] -> [N, H', W', taps * C],  y[p, t] = x[p + t - a]
#   shift_add  [N, H', W', taps * C] -> [N, H, W, C],  x[q] = sum_t y[q - t + a, t]


def _patches(x, *, taps, padding):
    height, width = taps
    rows, columns = padding
    x = _shifts(x, 2, width, columns)  # [N, H, W', width * C]
    return _shifts(x, 1, height, rows)


def _shifts(x, axis, taps, sides):
    """Concatenates what `taps` taps read along an axis, [..., C] to [..., taps * C]."""
    config = [(0, 0, 0)] * 4
    config[axis] = (*sides, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    size = x.shape[axis] - taps + 1
    shifted = [lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(taps)]
    return jnp.concatenate(shifted, -1)


def _shift_add(y, *, taps, padding):
    height, width = taps
    (top, bottom), (left, right) = padding
    y = y.reshape(*y.shape[:3], height, width, -1)
    shifted = [
        _pad(
            y[..., i, j, :],
            (
                (i - top, height - 1 - i - bottom),
                (j - left, width - 1 - j - right),
            ),
        )
        for i in range(height)
        for j in range(width)
    ]
    return functools.reduce(jnp.add, shifted)


def _pad(x, padding):
    """Pads rows and columns, by negative numbers too."""
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, [(0, 0, 0), *((*sides, 0) for sides in padding), (0, 0, 0)])


def _define(name, function):
    primitive = core.Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames=("taps", "padding")))

    def abstract(x, **options):
        return jax.make_jaxpr(functools.partial(function, **options))(x).out_avals[0]

    def batch(arguments, axes, **options):  # The tasks' images are one batch.
        x = jnp.moveaxis(arguments[0], axes[0], 0)
        y = primitive.bind(x.reshape(-1, *x.shape[2:]), **options)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive


_patches_p = _define("jaxmeta_patches", _patches)
_shift_add_p = _define("jaxmeta_shift_add", _shift_add)


ad.deflinear2(_patches_p, lambda ct, x, **options: [_shift_add_p.bind(ct, **options)])
ad.deflinear2(_shift_add_p, lambda ct, y, **options: [_patches_p.bind(ct, **options)])
