"""Random affine augmentation of a task's images."""

import math
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage
from jax.tree_util import Partial

from jaxmeta import _pytrees, base


def random_affine(
    sample_task: base.SampleTask,
    *,
    rotation: float = 10.0,
    shear: float = 0.3,
    scale: tuple[float, float] = (0.8, 1.2),
    shift: float = 2.0,
    probability: float = 0.5,
) -> base.SampleTask:
    r"""Warps every image of a task by its own random affine map.

    With the centre as origin, the point p of an image moves to

    .. math:: R(\theta) \begin{pmatrix} 1 & \rho_y \\ \rho_x & 1 \end{pmatrix}
      \begin{pmatrix} s_y & 0 \\ 0 & s_x \end{pmatrix} p + t.

    Each of the seven parts (the angle, two shears, two scales and two shifts) is
    applied with the given probability and drawn uniformly. Values between pixels are
    interpolated linearly; outside the image they are zero.

    Args:
      sample_task: `(key) -> Task` with images [N, H, W, channels], such as
        `jaxmeta.tasks.few_shot` returns.
      rotation: maximum angle in either direction, in degrees. Static.
      shear: maximum shear in either direction, below 1. Static.
      scale: (smallest, largest) factor. Static.
      shift: maximum shift in either direction, in pixels. Static.
      probability: probability of each part. Static.

    Returns:
      `sample_task(key) -> Task`, a `jax.tree_util.Partial` with the leaves of the given
      sampler.

    Raises:
      ValueError: if a strength or the probability is out of its range; while tracing,
        if the inputs are not images.

    References:
      Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image
      Recognition", ICML deep learning workshop 2015, section 3.2, which has the default
      strengths (for 105x105 pixels).

    Example:
      >>> import jax, numpy as np, jaxmeta as jm
      >>> images = np.zeros((20, 20, 28, 28), np.uint8)
      >>> sample_task = jm.tasks.few_shot(images, ways=5, shots=1, queries=3)
      >>> sample_task = random_affine(sample_task, shift=1.0)
      >>> jax.eval_shape(sample_task, jax.random.key(0)).query.inputs.shape
      (15, 28, 28, 1)
    """
    _check_strengths(rotation, shear, scale, shift, probability)
    radians = math.radians(rotation)

    def draw_map(key):
        """Draws a map: matrix [2, 2] and shift [2], rows before columns."""
        part_key, coin_key = jax.random.split(key)
        # Angle; shears; scales minus one; shifts. Zero leaves a part out.
        low = [-radians, -shear, -shear, scale[0] - 1, scale[0] - 1, -shift, -shift]
        high = [radians, shear, shear, scale[1] - 1, scale[1] - 1, shift, shift]
        parts = jax.random.uniform(
            part_key, (7,), minval=jnp.array(low), maxval=jnp.array(high)
        )
        parts *= jax.random.bernoulli(coin_key, probability, (7,))
        angle, shear_y, shear_x, scale_y, scale_x, *_ = parts
        # R(theta) times the shear matrix; its columns are then scaled.
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        matrix = [
            [cos - sin * shear_x, cos * shear_y - sin],
            [sin + cos * shear_x, sin * shear_y + cos],
        ]
        return jnp.array(matrix) * (1 + jnp.array([[scale_y, scale_x]])), parts[5:]

    def augment(key, examples):
        images = examples.inputs
        if jnp.ndim(images) != 4:
            raise ValueError(
                "`sample_task` must return images [N, H, W, channels], got inputs of "
                f"shape {jnp.shape(images)}."
            )
        maps = jax.vmap(draw_map)(jax.random.split(key, images.shape[0]))
        return base.Examples(warp(images, *maps), examples.targets)

    def sample(sample_task, key):
        task_key, support_key, query_key = jax.random.split(key, 3)
        task = sample_task(task_key)
        return base.Task(
            support=augment(support_key, task.support),
            query=augment(query_key, task.query),
        )

    # The sampler is an argument so that its data stay leaves.
    return cast(base.SampleTask, Partial(sample, _pytrees.as_partial(sample_task)))


def warp(images: jax.Array, matrices: jax.Array, shifts: jax.Array) -> jax.Array:
    """Moves the point p of each image to `matrix @ p + shift` about its centre.

    Args:
      images: [N, H, W, channels].
      matrices: [N, 2, 2], rows before columns; not singular.
      shifts: [N, 2], in pixels.

    Returns:
      [N, H, W, channels], interpolated linearly, zero outside.

    Example:
      >>> import jax.numpy as jnp
      >>> image = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
      >>> moved = warp(image, jnp.eye(2)[None], jnp.array([[0.0, 0.5]]))
      >>> moved[0, :, :, 0].tolist()
      [[0.5, 1.5], [1.5, 3.5]]
    """
    _, height, width, _ = images.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2]).reshape(2, 1, 1)
    grid = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    targets = jnp.stack(grid) - centre  # [2, H, W]

    def warp_one(image, matrix, shift):
        y, x = targets - shift.reshape(2, 1, 1)
        (a, b), (c, d) = matrix
        # Inverse map, p = M^-1 (q - t), by hand: accelerators round matrix products by
        # tenths of a pixel.
        back = jnp.stack([d * y - b * x, a * x - c * y]) / (a * d - b * c)
        sources = list(back + centre)  # [H, W] each
        take = lambda channel: ndimage.map_coordinates(
            channel, sources, order=1, mode="constant"
        )
        return jax.vmap(take, -1, -1)(image)

    return jax.vmap(warp_one)(images, matrices, shifts)


def _check_strengths(rotation, shear, scale, shift, probability):
    """Raises unless all maps are invertible and the probability is in [0, 1]."""
    for name, value in (("rotation", rotation), ("shift", shift)):
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be finite and >= 0, got {value!r}.")
    if not 0 <= shear < 1:
        raise ValueError(f"`shear` must be in [0, 1), got {shear!r}.")
    if np.shape(scale) != (2,) or not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(
            f"`scale` must be (low, high) with 0 < low <= high, got {scale!r}."
        )
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must be in [0, 1], got {probability!r}.")
