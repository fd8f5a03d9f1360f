"""Loads class attributes from files."""

import os
import pathlib
from typing import Any

import numpy as np

from jaxmeta import _archives
from jaxmeta.tasks import _zero_shot

_ARRAYS = ("features", "labels", "attributes")


def load_attributes(
    path: str | os.PathLike[str], *, max_bytes: int = _archives.MAX_BYTES
) -> _zero_shot.AttributeData:
    """Loads zero-shot data: an .npz file, or a folder in the layout of xlsa17.

    An .npz file holds `features` [N, ...] (floats or uint8 images), `labels` [N]
    (integers from 0), `attributes` [C, A], and optionally `unseen` (distinct class
    labels; default none), `seen` (default all others) and `names` [C].

    A folder of the "proposed splits" (CUB, AWA1, AWA2, ...) holds `res101.mat` and
    `att_splits.mat`. The classes in `trainval_loc` are seen, those in `test_unseen_loc`
    unseen. Examples of seen classes for generalised zero-shot testing,
    `test_seen_loc`, are held out.

    Args:
      path: the file or the folder.
      max_bytes: what a file may unpack to, and its reader take.

    Returns:
      The data; floats are float32.

    Raises:
      FileNotFoundError: if the file or folder, or a file in it, does not exist.
      ValueError: if arrays are missing, have wrong shapes, or are inconsistent, a file
        is damaged or unpacks to more than `max_bytes`, or floats do not fit float32.

    Example:
      >>> load_attributes("xlsa17/data/CUB").attributes.shape  # doctest: +SKIP
      (200, 312)

    References:
      Xian et al., "Zero-Shot Learning - A Comprehensive Evaluation of the Good, the Bad
      and the Ugly", TPAMI 2019. https://arxiv.org/abs/1707.00600
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return _check(path, _read_splits(path, max_bytes))
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    return _check(path, _archives.read_npz(path, max_bytes=max_bytes))


def _read_splits(folder: pathlib.Path, max_bytes: int) -> dict[str, Any]:
    """Reads the two files of xlsa17, with 1-based indices."""
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
        found |= _read_mat(folder / name, wanted, max_bytes)
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
        "names": found["allclasses_names"].ravel(),
        "held_out": rows["test_seen_loc"],
    }


def _read_mat(
    path: pathlib.Path, names: tuple[str, ...], max_bytes: int
) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; a folder of the proposed splits has res101.mat "
            "and att_splits.mat."
        )
    return _archives.read_mat(path, names, max_bytes=max_bytes)


def _indices(
    folder: pathlib.Path, name: str, values: np.ndarray, count: int | None = None
) -> np.ndarray:
    """Converts 1-based indices [N, 1] to 0-based [N] int32."""
    flat = np.asarray(values).ravel()
    bound = np.inf if count is None else count
    if flat.size and not 1 <= flat.min() <= flat.max() <= bound:
        raise ValueError(
            f"`{name}` in {folder} must be indices from 1 to {bound}, got "
            f"{flat.min()} to {flat.max()}."
        )
    return flat.astype(np.int32) - 1


def _check(path: pathlib.Path, found: dict[str, Any]) -> _zero_shot.AttributeData:
    """Checks that the arrays are consistent."""
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
            f"`features` in {path} must be [{len(labels)}, ...], one row per label, "
            f"got shape {features.shape}. Transpose them if examples are in columns."
        )
    nothing = np.zeros(0, int)
    unseen = _integers(path, "unseen", found.get("unseen", nothing), num_classes)
    others = np.setdiff1d(np.arange(num_classes), unseen)
    seen = _integers(path, "seen", found.get("seen", others), num_classes)
    if shared := sorted(set(seen.tolist()) & set(unseen.tolist())):
        raise ValueError(f"The classes {shared} in {path} are both seen and unseen.")
    names = tuple(map(str, np.atleast_1d(found.get("names", range(num_classes)))))
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
        held_out=_integers(
            path, "held_out", found.get("held_out", nothing), len(labels)
        ),
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
            f"`{name}` in {path} must be a list of integers from 0 to {count - 1}, got "
            f"shape {values.shape} and dtype {values.dtype}"
            + (f" from {values.min()} to {values.max()}." if is_valid else ".")
        )
    return values.astype(np.int32)


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"`{name}` must be real numbers, got dtype {values.dtype}.")
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError(
            f"`{name}` has values that are not finite in float32; replace them."
        )
    return floats
