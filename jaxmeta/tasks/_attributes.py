"""Attributes of classes: from files, or from drawings of handwritten characters."""

import os
import pathlib
from typing import Any

import numpy as np

from jaxmeta import _checks
from jaxmeta.tasks import _datasets, _zero_shot

_ARRAYS = ("features", "labels", "attributes")


def load_attributes(path: str | os.PathLike[str]) -> _zero_shot.AttributeData:
    """Loads zero-shot data: an .npz file, or a folder in the layout of xlsa17.

    An .npz file holds `features` [N, ...] (floats, or uint8 images), `labels` [N]
    (integers from 0), `attributes` [C, A], and may hold `seen` and `unseen` (distinct
    classes; by default the others, and none) and `names` [C].

    A folder of the "proposed splits" (CUB, AWA1, AWA2, ...) holds `res101.mat` and
    `att_splits.mat`. The classes of `trainval_loc` are seen, those of `test_unseen_loc`
    unseen. The examples of seen classes that are for generalised zero-shot testing,
    `test_seen_loc`, are held out.

    Args:
      path: the file or the folder.

    Returns:
      The data; floats are float32.

    Raises:
      FileNotFoundError: if there is no such file or folder, or a file is missing in it.
      ValueError: if arrays are missing, have other shapes than above, or disagree.

    Example:
      >>> load_attributes("xlsa17/data/CUB").attributes.shape  # doctest: +SKIP
      (200, 312)

    References:
      Xian et al., "Zero-Shot Learning - A Comprehensive Evaluation of the Good, the Bad
      and the Ugly", TPAMI 2019. https://arxiv.org/abs/1707.00600
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return _check(path, _read_splits(path))
    if not path.is_file():
        raise FileNotFoundError(f"There is neither a file nor a folder {path}.")
    return _check(path, _read_npz(path))


def omniglot_attributes(classes: _datasets.ImageClasses) -> np.ndarray:
    """Describes handwritten characters by the statistics of their ink and strokes.

    The statistics of a drawing, ink in [0, 1], with rows and columns from -1 to 1:

    - 0: the mean ink; 1 to 9: the shares of ink in a grid of three by three cells;
    - 10, 11: the centre, row and column; 12 to 14: variance of rows and of columns, and
      covariance; 15, 16: third central moments of rows and of columns;
    - 17 to 19: the overlap with its image mirrored left to right, mirrored top to
      bottom, and turned by half: the inner product over the squared norm;
    - 20, 21: strokes crossed by a row and by a column that meets ink, on average;
    - 22: Euler's number, the connected pieces less the holes (8-connected ink, by
      counts of 2x2 patterns).

    Args:
      classes: drawings with ink high, as `load_omniglot` returns them.

    Returns:
      [C, 23] float32: the mean over the drawings of each class, each attribute with
      mean 0 and standard deviation 1 over classes (0 where all classes agree).

    Raises:
      ValueError: if drawings have several channels.

    Example:
      >>> images = np.zeros((2, 5, 28, 28), np.uint8)
      >>> images[0, :, 4:24, 13] = images[1, :, 13, 4:24] = 255  # "|" and "-"
      >>> attributes = omniglot_attributes(_datasets.image_classes(images))
      >>> print(attributes[:, 12])  # Variance of rows.
      [ 1. -1.]

    References:
      Euler's number: Gray, "Local properties of binary images in two dimensions", IEEE
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
    """Makes zero-shot data of handwritten characters and `omniglot_attributes`.

    The first drawings of each class describe it and do not appear as examples, so that
    no example has a part in the description that it is matched to. Attributes are
    standardised by the seen classes.

    Args:
      seen: classes to train on, say `load_omniglot().train`.
      unseen: classes to report on, of the same size of images.
      described_by: how many drawings describe a class.

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
            "`seen` and `unseen` must have images of one shape, got "
            f"{seen.images.shape[2:]} and {unseen.images.shape[2:]}."
        )
    raw, features, counts = [], [], []
    for classes in (seen, unseen):
        fewest = classes.num_examples.min()
        if fewest <= described_by:
            raise ValueError(
                f"`described_by` must leave drawings of every class, the smallest of "
                f"which has {fewest}, got {described_by}."
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
    # Rounding leaves a spread where all classes agree.
    is_flat = std <= 1e-6 * np.maximum(1, np.abs(mean))
    return (np.where(is_flat, 0, raw - mean) / np.where(is_flat, 1, std)).astype(
        np.float32
    )


def _is_real(classes: _datasets.ImageClasses) -> np.ndarray:
    """[C, E] bool: not padding."""
    capacity = classes.images.shape[1]
    return np.arange(capacity)[None] < classes.num_examples[:, None]


def _statistics(classes: _datasets.ImageClasses) -> np.ndarray:
    """Statistics of drawings averaged over each class: [C, 23] float64."""
    images = classes.images
    if images.shape[-1] != 1:
        raise ValueError(f"Drawings must have one channel, got {images.shape[-1]}.")
    is_real = _is_real(classes)
    # A class at a time: all of Omniglot in float64 would be 200 MB.
    return np.stack(
        [
            _of_drawings(mine[real][..., 0] / 255).mean(0)
            for mine, real in zip(images, is_real, strict=True)
        ]
    )


def _of_drawings(ink: np.ndarray) -> np.ndarray:
    """[E, H, W] -> [E, 23]."""
    height, width = ink.shape[1:]
    rows = np.linspace(-1, 1, height)[None, :, None]
    columns = np.linspace(-1, 1, width)[None, None, :]
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
    before = np.pad(inked, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    runs = (inked & ~before).sum(2)  # [E, H]
    return runs.sum(1) / np.maximum((runs > 0).sum(1), 1)


def _euler(inked: np.ndarray) -> np.ndarray:
    """Pieces less holes, 8-connected: [E, H, W] bool -> [E]."""
    padded = np.pad(inked, ((0, 0), (1, 1), (1, 1))).astype(int)
    a, b = padded[:, :-1, :-1], padded[:, :-1, 1:]
    c, d = padded[:, 1:, :-1], padded[:, 1:, 1:]
    count = a + b + c + d
    is_diagonal = (count == 2) & (a == d)
    ones, threes, diagonals = (
        pattern.sum((1, 2)) for pattern in (count == 1, count == 3, is_diagonal)
    )
    return (ones - threes - 2 * diagonals) / 4


def _read_npz(path: pathlib.Path) -> dict[str, Any]:
    try:
        # NumPy leaves a damaged file open if it is given the path.
        with open(path, "rb") as opened, np.load(opened) as file:
            return {name: file[name] for name in file.files}
    # NumPy raises ValueError, zipfile.BadZipFile, EOFError and others.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or no .npz file of plain arrays ({error})."
        ) from error


def _read_splits(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the two files of xlsa17, whose indices begin at 1."""
    parts = {
        "res101.mat": ("features", "labels"),
        "att_splits.mat": (
            "att",
            "allclasses_names",
            "trainval_loc",
            "test_seen_loc",
            "test_unseen_loc",
        ),
    }
    found = {}
    for name, wanted in parts.items():
        found |= _read_mat(folder / name, wanted)
    labels = _indices(folder, "labels", found["labels"])
    rows = {
        name: _indices(folder, name, found[name], len(labels))
        for name in ("trainval_loc", "test_seen_loc", "test_unseen_loc")
    }
    return {
        "features": found["features"].T,
        "labels": labels,
        "attributes": found["att"].T,
        "seen": np.unique(labels[rows["trainval_loc"]]),
        "unseen": np.unique(labels[rows["test_unseen_loc"]]),
        "names": [str(name.item()) for name in found["allclasses_names"].ravel()],
        "held_out": rows["test_seen_loc"],
    }


def _read_mat(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, Any]:
    # SciPy's readers take as long to import as the rest of this package's tasks.
    from scipy import io

    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; a folder of the proposed splits has res101.mat "
            "and att_splits.mat."
        )
    try:
        found = io.loadmat(path)
    # SciPy raises ValueError, NotImplementedError, MatReadError and others.
    except Exception as error:
        raise ValueError(f"{path} is damaged or no MATLAB file ({error}).") from error
    missing = sorted(set(names) - set(found))
    if missing:
        raise ValueError(f"{path} has no {missing}; it holds {_stored(found)}.")
    return {name: found[name] for name in names}


def _stored(found: dict[str, Any]) -> list[str]:
    return sorted(name for name in found if not name.startswith("__"))


def _indices(
    folder: pathlib.Path, name: str, values: np.ndarray, count: int | None = None
) -> np.ndarray:
    """Returns [N] int32 from 0 for indices [N, 1] from 1."""
    flat = np.asarray(values).ravel()
    bound = np.inf if count is None else count
    if flat.size and not 1 <= flat.min() <= flat.max() <= bound:
        raise ValueError(
            f"`{name}` in {folder} must count from 1 to {bound}, got {flat.min()} to "
            f"{flat.max()}."
        )
    return flat.astype(np.int32) - 1


def _check(path: pathlib.Path, found: dict[str, Any]) -> _zero_shot.AttributeData:
    """Checks that the arrays agree."""
    missing = sorted(set(_ARRAYS) - set(found))
    if missing:
        raise ValueError(f"{path} has no {missing}; it holds {sorted(found)}.")
    features, labels, attributes = (np.asarray(found[name]) for name in _ARRAYS)
    if attributes.ndim != 2 or not attributes.size:
        raise ValueError(
            f"`attributes` in {path} must be [classes, attributes], got shape "
            f"{attributes.shape}."
        )
    num_classes = len(attributes)
    labels = _integers(path, "labels", labels, num_classes)
    if features.ndim < 2 or len(features) != len(labels):
        raise ValueError(
            f"`features` in {path} must be [{len(labels)}, ...] for as many labels, "
            f"got shape {features.shape}. Transpose them if examples are in columns."
        )
    nothing = np.zeros(0, int)
    unseen = _integers(path, "unseen", found.get("unseen", nothing), num_classes)
    others = np.setdiff1d(np.arange(num_classes), unseen)
    seen = _integers(path, "seen", found.get("seen", others), num_classes)
    if shared := sorted(set(seen.tolist()) & set(unseen.tolist())):
        raise ValueError(f"The classes {shared} in {path} are both seen and unseen.")
    names = tuple(map(str, found.get("names", range(num_classes))))
    if len(names) != num_classes:
        raise ValueError(
            f"`names` in {path} must name each of the {num_classes} classes, got "
            f"{len(names)}."
        )
    return _zero_shot.AttributeData(
        features=features
        if features.dtype == np.uint8
        else _floats("features", features),
        labels=labels,
        attributes=_floats("attributes", attributes),
        seen=seen,
        unseen=unseen,
        names=names,
        held_out=np.asarray(found.get("held_out", nothing), np.int32),
    )


def _integers(
    path: pathlib.Path, name: str, values: np.ndarray, count: int
) -> np.ndarray:
    values = np.asarray(values)
    is_valid = values.ndim == 1 and (
        not values.size or np.issubdtype(values.dtype, np.integer)
    )
    if not is_valid or (values.size and not 0 <= values.min() <= values.max() < count):
        raise ValueError(
            f"`{name}` in {path} must be a list of integers from 0 to {count - 1}, a "
            f"class each, got shape {values.shape} and dtype {values.dtype}"
            + (f" from {values.min()} to {values.max()}." if values.size else ".")
        )
    return values.astype(np.int32)


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError(f"`{name}` has values that are not finite; replace them.")
    return floats
