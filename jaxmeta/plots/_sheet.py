"""Pictures of a task's examples."""

from typing import TYPE_CHECKING

import numpy as np

from jaxmeta import _axes, _checks, base

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def task_sheet(
    task: base.Task, *, ax: "Axes | None" = None, queries_per_class: int = 5
) -> "Axes":
    """Draws a task: images as a sheet with one row per class, numbers as points.

    A row has the support images of its class, framed, followed by query images.

    Args:
      task: images [N, H, W, 1 or 3] with targets one-hot [N, W] (all-zero rows are
        padding) or integer [N], or numbers [N, 1] with targets [N, 1]. Images outside
        [0, 1] are rescaled to it, all images of the task alike.
      ax: axes to draw on; None makes a figure.
      queries_per_class: maximum number of query images per class.

    Raises:
      ValueError: if the task has other shapes.
      ImportError: if matplotlib is not installed.

    Example:
      >>> import jax, jaxmeta as jm
      >>> task = jm.tasks.sinusoid(shots=5, queries=20)(jax.random.key(0))
      >>> [line.get_label() for line in task_sheet(task).lines]
      ['query', 'support']
    """
    _checks.check_task(task)
    _checks.check_int("queries_per_class", queries_per_class)
    shapes = [np.shape(leaf)[1:] for leaf in task.support]
    is_images = len(shapes[0]) == 3 and shapes[0][-1] in (1, 3) and len(shapes[1]) < 2
    if not is_images and any(shape not in ((), (1,)) for shape in shapes):
        raise ValueError(
            "`task` must have image inputs [N, H, W, 1 or 3] and class targets, or "
            f"inputs and targets [N, 1], got [N, ...] with ... = {shapes}."
        )
    is_new = ax is None
    ax = _axes.figure().subplots() if ax is None else ax
    if is_images:
        _draw_sheet(ax, task, queries_per_class)
        if is_new:
            _axes.fit_to_sheets(ax.figure)
        return ax
    points = {
        "query": (task.query, ".", _axes.LIGHT),
        "support": (task.support, "o", _axes.DARK),
    }
    for name, (examples, marker, color) in points.items():
        ax.plot(*map(np.ravel, examples), marker, color=color, label=name)
    ax.set_xlabel("input x")
    # The legend is above the axes, since points may be anywhere inside.
    _axes.finish(ax, "target y", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return ax


def _draw_sheet(ax, task, queries_per_class):
    """Draws the images on one white canvas, and a frame around the support set."""
    from matplotlib.patches import Rectangle

    labels = [np.asarray(examples.targets) for examples in task]
    ways = labels[0].shape[1] if labels[0].ndim == 2 else 1 + max(map(np.max, labels))
    labels = [_axes.labels_of(x) for x in labels]
    images = [np.asarray(examples.inputs, float) for examples in task]
    low = min(0.0, *map(np.min, images))
    high = max(1.0, *map(np.max, images))
    height, width = images[0].shape[1:3]
    gap = max(1, height // 14)

    def draw_block(k, most):
        """Lays out the support (k = 0) or query images on white."""
        pixels = (images[k] - low) / (high - low)  # One channel broadcasts to three.
        rows = [pixels[labels[k] == way][:most] for way in range(ways)]
        shape = (ways, gap + height, max(map(len, rows)), gap + width, 3)
        block = np.ones(shape)  # [W, gap + H, N, gap + W, 3]
        for way, row in enumerate(rows):
            block[way, gap:, : len(row), gap:] = row.swapaxes(0, 1)
        block = block.reshape(ways * (gap + height), -1, 3)
        return np.pad(block, [(0, gap), (0, gap), (0, 0)], constant_values=1)

    support, query = draw_block(0, None), draw_block(1, queries_per_class)
    frame, start = support.shape[1], support.shape[1] + 2 * gap
    between = np.ones((len(support), 2 * gap, 3))
    ax.imshow(np.concatenate([support, between, query], axis=1))
    style = {"fill": False, "edgecolor": _axes.LIGHT, "linewidth": 2, "clip_on": False}
    ax.add_patch(Rectangle((-0.5, -0.5), frame, len(support), **style))
    ax.xaxis.tick_top()
    ax.set_xticks([frame / 2, start + query.shape[1] / 2], ["support", "query"])
    ax.set_yticks((gap + height) * (np.arange(ways) + 0.5) + gap / 2, range(ways))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("class")
