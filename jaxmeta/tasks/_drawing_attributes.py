"""Attributes of handwritten characters, computed from their drawings."""

import numpy as np

from jaxmeta import _checks
from jaxmeta.tasks import _datasets, _zero_shot


def omniglot_attributes(classes: _datasets.ImageClasses) -> np.ndarray:
    """Describes handwritten characters by the statistics of their ink and strokes.

    The statistics of a drawing, with ink in [0, 1], rows and columns from -1 to 1:

    - 0: the mean ink; 1 to 9: the shares of ink in a grid of three by three cells;
    - 10, 11: row and column of the centre; 12 to 14: variance of rows and of columns,
      and covariance; 15, 16: third central moments of rows and of columns;
    - 17 to 19: overlap with the drawing mirrored left to right, mirrored top to bottom,
      and rotated by 180 degrees: the inner product over the squared norm;
    - 20, 21: mean number of strokes crossed by a row and by a column with ink;
    - 22: Euler number, connected components minus holes (8-connected ink, from counts
      of 2x2 patterns).

    Args:
      classes: drawings with high values as ink, as from `load_omniglot`.

    Returns:
      [C, 23] float32: means over the drawings of each class, standardised to mean 0 and
      standard deviation 1 over classes (0 if all classes agree).

    Raises:
      ValueError: if drawings have several channels.

    Example:
      >>> images = np.zeros((2, 5, 28, 28), np.uint8)
      >>> images[0, :, 4:24, 13] = images[1, :, 13, 4:24] = 255  # "|" and "-"
      >>> attributes = omniglot_attributes(_datasets.image_classes(images))
      >>> print(attributes[:, 12])  # Variance of rows.
      [ 1. -1.]

    References:
      Euler number: Gray, "Local properties of binary images in two dimensions", IEEE
      Transactions on Computers 1971.
    """
    raw = _statistics(classes)
    return _standardise(raw, raw)


def image_attributes(
    seen: _datasets.ImageClasses,
    unseen: _datasets.ImageClasses,
    *,
    described_by: int = 10,
) -> _zero_shot.AttributeData:
    """Makes zero-shot data from handwritten characters, with `omniglot_attributes`.

    The first drawings of each class describe it and are excluded from its examples, so
    that no example contributes to the description it is matched to. Attributes are
    standardised by the seen classes.

    Args:
      seen: training classes, e.g. `load_omniglot().train`.
      unseen: test classes with the same image size.
      described_by: number of drawings that describe a class.

    Returns:
      The data; features are images [N, H, W, 1] uint8, which tasks scale to [0, 1].

    Raises:
      ValueError: if a class has no more than `described_by` drawings, the two sets have
        images of different shapes, or drawings have several channels.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> draw = lambda num_classes: _datasets.image_classes(
      ...     rng.integers(0, 256, (num_classes, 20, 28, 28), np.uint8))
      >>> data = image_attributes(draw(6), draw(3))
      >>> data.features.shape, data.attributes.shape, data.unseen
      ((90, 28, 28, 1), (9, 23), array([6, 7, 8], dtype=int32))
    """
    _checks.check_int("described_by", described_by)
    if seen.images.shape[2:] != unseen.images.shape[2:]:
        raise ValueError(
            "`seen` and `unseen` must have images of the same shape, got "
            f"{seen.images.shape[2:]} and {unseen.images.shape[2:]}."
        )
    raw, features, counts = [], [], []
    for classes in (seen, unseen):
        fewest = classes.num_examples.min()
        if fewest <= described_by:
            raise ValueError(
                "`described_by` must leave drawings in every class; the smallest has "
                f"{fewest}, got {described_by}."
            )
        first = np.full(len(classes.images), described_by, np.int32)
        raw.append(_statistics(classes._replace(num_examples=first)))
        is_example = np.arange(classes.images.shape[1])[None] >= described_by
        is_example = is_example & _is_real(classes)
        features.append(classes.images[is_example])
        counts.append(is_example.sum(1))
    num_seen, num_classes = len(raw[0]), len(raw[0]) + len(raw[1])
    return _zero_shot.AttributeData(
        features=np.concatenate(features),
        labels=np.repeat(
            np.arange(num_classes, dtype=np.int32), np.concatenate(counts)
        ),
        attributes=_standardise(np.concatenate(raw), raw[0]),
        seen=np.arange(num_seen, dtype=np.int32),
        unseen=np.arange(num_seen, num_classes, dtype=np.int32),
        names=(*seen.names, *unseen.names),
    )


def _standardise(raw: np.ndarray, reference: np.ndarray) -> np.ndarray:
    mean, std = reference.mean(0, keepdims=True), reference.std(0, keepdims=True)
    # If all classes agree, rounding still leaves a tiny standard deviation.
    is_flat = std <= 1e-6 * np.maximum(1, np.abs(mean))
    return (np.where(is_flat, 0, raw - mean) / np.where(is_flat, 1, std)).astype(
        np.float32
    )


def _is_real(classes: _datasets.ImageClasses) -> np.ndarray:
    """Whether examples are not padding, [C, E] bool."""
    capacity = classes.images.shape[1]
    return np.arange(capacity)[None] < classes.num_examples[:, None]


def _statistics(classes: _datasets.ImageClasses) -> np.ndarray:
    """Statistics of drawings averaged over each class: [C, 23] float64."""
    images = classes.images
    if images.shape[-1] != 1:
        raise ValueError(f"Drawings must have one channel, got {images.shape[-1]}.")
    is_real = _is_real(classes)
    # One class at a time: all of Omniglot in float64 would be 200 MB.
    return np.stack(
        [
            _of_drawings(mine[real][..., 0] / 255).mean(0)
            for mine, real in zip(images, is_real, strict=True)
        ]
    )


def _of_drawings(ink: np.ndarray) -> np.ndarray:
    """Statistics of each drawing, [E, H, W] -> [E, 23]."""
    height, width = ink.shape[1:]
    rows = np.linspace(-1, 1, height)[None, :, None]
    columns = np.linspace(-1, 1, width)[None, None, :]
    # 1e-9: blank drawings have statistics 0 instead of 0 / 0.
    total = np.maximum(ink.sum((1, 2), keepdims=True), 1e-9)
    mean = lambda x: (ink * x).sum((1, 2), keepdims=True) / total
    r, c = rows - mean(rows), columns - mean(columns)
    cells = [
        part.sum((1, 2)) / total[:, 0, 0]
        for band in np.array_split(ink, 3, axis=1)
        for part in np.array_split(band, 3, axis=2)
    ]
    moments = [mean(rows), mean(columns)]
    moments += [mean(x) for x in (r * r, c * c, r * c, r**3, c**3)]
    norm = np.maximum(np.square(ink).sum((1, 2)), 1e-9)
    mirrored = (ink[:, :, ::-1], ink[:, ::-1], ink[:, ::-1, ::-1])
    overlaps = [(ink * other).sum((1, 2)) / norm for other in mirrored]
    inked = ink > 0.5
    crossed = [_crossings(inked), _crossings(inked.swapaxes(1, 2))]
    columns_of = [ink.mean((1, 2)), *cells, *(m[:, 0, 0] for m in moments)]
    return np.stack([*columns_of, *overlaps, *crossed, _euler(inked)], -1)


def _crossings(inked: np.ndarray) -> np.ndarray:
    """Mean number of runs of ink over the rows that have any: [E, H, W] -> [E]."""
    # A run starts at each ink pixel whose left neighbour has no ink.
    before = np.pad(inked, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    runs = (inked & ~before).sum(2)  # [E, H]
    return runs.sum(1) / np.maximum((runs > 0).sum(1), 1)


def _euler(inked: np.ndarray) -> np.ndarray:
    """Components minus holes, 8-connected: [E, H, W] bool -> [E]."""
    # Gray: (Q1 - Q3 - 2 QD) / 4, with the counts Q1, Q3 of 2x2 windows [a b; c d] with
    # one and three ink pixels, and QD of diagonal pairs.
    padded = np.pad(inked, ((0, 0), (1, 1), (1, 1))).astype(int)
    a, b = padded[:, :-1, :-1], padded[:, :-1, 1:]
    c, d = padded[:, 1:, :-1], padded[:, 1:, 1:]
    count = a + b + c + d
    is_diagonal = (count == 2) & (a == d)
    ones, threes, diagonals = (
        pattern.sum((1, 2)) for pattern in (count == 1, count == 3, is_diagonal)
    )
    return (ones - threes - 2 * diagonals) / 4
