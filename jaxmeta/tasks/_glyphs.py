"""Procedural characters: unlimited classes, no download.

A class is a random set of strokes (quadratic Bezier curves). An example is a drawing of
it: control points are jittered, the whole is warped by a random affine map and rendered
by the distance of each pixel to the strokes.
"""

import jax
import jax.numpy as jnp

from jaxmeta import _checks, base
from jaxmeta.tasks import _few_shot

_SEGMENTS = 6  # straight segments per stroke


def glyphs(
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    size: int = 28,
    strokes: int = 3,
    jitter: float = 0.08,
    warp: float = 0.2,
) -> base.SampleTask:
    """Few-shot classification of invented characters, drawn on the device.

    Every key gives new classes, so training and test tasks never share any.

    Args:
      ways: W, classes per task. Static.
      shots: support examples per class. Static.
      queries: query examples per class. Static.
      size: height and width in pixels. Static.
      strokes: strokes per character. Static.
      jitter: standard deviation of the control points between drawings, as a share of
        half the image width.
      warp: standard deviation of the affine map's entries around the identity.

    Returns:
      `sample_task(key) -> Task`: images [W * shots, size, size, 1] and
      [W * queries, ...] in [0, 1], targets one-hot [..., W].

    Raises:
      ValueError: if a count is not a positive int, or jitter or warp is negative.

    Example:
      >>> import jax
      >>> task = glyphs(ways=5, shots=1, queries=3)(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.inputs.shape
      ((5, 28, 28, 1), (15, 28, 28, 1))
    """
    counts = {"ways": ways, "shots": shots, "queries": queries}
    for name, value in (counts | {"size": size, "strokes": strokes}).items():
        _checks.check_int(name, value)
    for name, value in (("jitter", jitter), ("warp", warp)):
        if value < 0:
            raise ValueError(f"`{name}` must not be negative, got {value!r}.")

    def draw(key, character):
        """Renders one drawing [size, size] of a character [strokes, 3, 2]."""
        jitter_key, warp_key, shift_key, width_key = jax.random.split(key, 4)
        points = character + jitter * jax.random.normal(jitter_key, character.shape)
        affine = jnp.eye(2) + warp * jax.random.normal(warp_key, (2, 2))
        shift = warp / 2 * jax.random.normal(shift_key, (2,))
        points = points @ affine + shift.reshape(1, 1, 2)
        width = jax.random.uniform(width_key, (), minval=0.05, maxval=0.09)
        return _render(points, size, width)

    def sample_task(key):
        character_key, drawing_key = jax.random.split(key)
        characters = jax.random.uniform(
            character_key, (ways, strokes, 3, 2), minval=-0.75, maxval=0.75
        )
        keys = jax.random.split(drawing_key, (ways, shots + queries))
        images = jax.vmap(jax.vmap(draw, (0, None)))(keys, characters)[..., None]
        labels = jnp.eye(ways, dtype=images.dtype)
        return base.Task(
            support=_few_shot.examples_by_class(images[:, :shots], labels),
            query=_few_shot.examples_by_class(images[:, shots:], labels),
        )

    return sample_task


def _render(points, size, width):
    """Renders strokes [S, 3, 2] in [-1, 1]^2 to [size, size], ink 1 on paper 0."""
    t = jnp.linspace(0.0, 1.0, _SEGMENTS + 1)
    bernstein = jnp.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # [3, segments + 1]
    curve = jnp.einsum("bt,sbd->dst", bernstein, points)  # [2, S, segments + 1]
    # Rows and columns are separate: a trailing axis of two would not vectorise.
    y, x = curve[:, :, :-1].reshape(2, -1, 1, 1)
    dy, dx = (curve[:, :, 1:] - curve[:, :, :-1]).reshape(2, -1, 1, 1)
    axis = (jnp.arange(size) + 0.5) * (2 / size) - 1
    rows = axis.reshape(1, size, 1) - y  # [S * segments, size, 1]
    columns = axis.reshape(1, 1, size) - x  # [S * segments, 1, size]
    inverse_length = 1 / jnp.maximum(dy**2 + dx**2, 1e-12)
    # Closest point of each segment to each pixel, as a share in [0, 1] of its length.
    share = jnp.clip((rows * dy + columns * dx) * inverse_length, 0.0, 1.0)
    squared = (rows - share * dy) ** 2 + (columns - share * dx) ** 2
    distance = jnp.sqrt(jnp.min(squared, 0))
    edge = 1.0 / size  # ink fades over about a pixel
    return jax.nn.sigmoid((width - distance) / (edge / 2))
