"""Embeddings of a task's examples, in two dimensions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmeta import _axes

if TYPE_CHECKING:
    import jax
    from matplotlib.axes import Axes


def embedding_map(
    embeddings: "jax.typing.ArrayLike",
    labels: "jax.typing.ArrayLike",
    *,
    prototypes: "jax.typing.ArrayLike | None" = None,
    names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws embeddings and prototypes in their plane of principal components.

    The plane is spanned by the first two principal components of the prototypes (of the
    embeddings if there are fewer than three), which shows how classes are separated.
    Each class has its own marker; prototypes have larger markers with class names.

    Args:
      embeddings: [N, ...], flattened, e.g. of queries.
      labels: their classes, [N] from 0 to W - 1 or one-hot [N, W], with all-zero rows
        as padding.
      prototypes: [W, ...]; None uses the class means.
      names: class names; None uses their numbers.
      ax: axes to draw on; None makes a figure.

    Raises:
      ValueError: if shapes do not match.
      ImportError: if matplotlib is not installed.

    Example:
      >>> ax = embedding_map([[0.0, 1.0], [0.0, 3.0], [9.0, 2.0]], [0, 0, 1])
      >>> [text.get_text() for text in ax.texts]
      ['0', '1']
    """
    points, classes = np.asarray(embeddings, float), _axes.labels_of(labels)
    points = points.reshape(len(points), -1)
    if classes.shape != (len(points),):
        raise ValueError(
            f"`labels` must have one label for each of the {len(points)} embeddings, "
            f"got shape {classes.shape}."
        )
    points, classes = points[classes >= 0], classes[classes >= 0]
    if prototypes is None:
        ways = range(int(classes.max()) + 1)
        centers = np.stack([points[classes == way].mean(0) for way in ways])
    else:
        centers = np.asarray(prototypes, float)
        centers = centers.reshape(len(centers), -1)
    if centers.shape[1:] != points.shape[1:] or len(centers) <= classes.max():
        raise ValueError(
            f"`prototypes` must cover all {classes.max() + 1} classes with the "
            f"embeddings' {points.shape[1]} features, got shape {centers.shape}."
        )
    named = [str(way) for way in range(len(centers))] if names is None else list(names)
    if len(named) != len(centers):
        raise ValueError(f"`names` must have {len(centers)} names, got {named}.")
    ax = _axes.figure().subplots() if ax is None else ax
    spread = centers if len(centers) > 2 else np.concatenate([points, centers])
    middle = spread.mean(0)
    # The first two right singular vectors are the principal axes.
    axes = np.linalg.svd(spread - middle, full_matrices=False)[2][:2]  # [2, D]
    points, centers = (points - middle) @ axes.T, (centers - middle) @ axes.T
    if points.shape[1] == 1:  # A single feature: points on a line.
        points, centers = (np.pad(x, [(0, 0), (0, 1)]) for x in (points, centers))
    for way, name in enumerate(named):
        marker, color = "os^vDP*X"[way % 8], f"C{way}"
        x, y = points[classes == way].T
        ax.scatter(x, y, 16, marker=marker, color=color, alpha=0.6)
        place = (float(centers[way, 0]), float(centers[way, 1]))
        ax.scatter(*place, s=120, marker=marker, color=color, edgecolors="black")
        ax.annotate(name, place, xytext=(7, 7), textcoords="offset points")
    ax.set_xlabel("first principal component")
    ax.set_ylabel("second principal component")
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
