"""miniImageNet from a user's folder."""

import collections
import csv
import os
import pathlib

import numpy as np

from jaxmeta.tasks import _datasets

_PARTS = ("train", "val", "test")


def load_mini_imagenet(
    root: str | os.PathLike[str], *, size: int = 84
) -> _datasets.Splits:
    """Loads miniImageNet: 64 / 16 / 20 classes of ImageNet, 600 photographs each.

    It cannot be downloaded freely, so it is read from a folder in either common layout:

    - folders: `root/train/CLASS/IMAGE.jpg`, likewise in `val` and `test`;
    - lists: `root/images/IMAGE.jpg`, and `root/train.csv`, `val.csv` and `test.csv`
      with the header "filename,label", as published by Ravi and Larochelle.

    If both exist, the folders are read. Nothing is cached: keep the result, since
    decoding takes some minutes.

    Args:
      root: the folder.
      size: H = W; other images are resized, see `load_image`.

    Returns:
      The splits; images are [C, E, size, size, 3]. Classes are sorted by name; images
      by name in folders, in file order in lists.

    Raises:
      FileNotFoundError: if `root`, a part of both layouts or a listed image is missing.
      ValueError: if a list has no columns "filename" and "label" or no rows, a class
        has no images, or an image is damaged.
      ImportError: if the extra `data` is not installed.

    Example:
      >>> load_mini_imagenet("~/miniImageNet").train.images.shape  # doctest: +SKIP
      (64, 600, 84, 84, 3)

    References:
      Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016,
      https://arxiv.org/abs/1606.04080; the split is that of Ravi, Larochelle,
      "Optimization as a Model for Few-Shot Learning", ICLR 2017.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    folders = {part: root / part for part in _PARTS}
    lists = {part: root / f"{part}.csv" for part in _PARTS}
    missing_folders = [path.name for path in folders.values() if not path.is_dir()]
    missing_files = [path.name for path in lists.values() if not path.is_file()]
    missing_files += [] if (root / "images").is_dir() else ["images"]
    if not missing_folders:
        parts = [
            _datasets.load_folder(path, size=size, channels=3)
            for path in folders.values()
        ]
    elif not missing_files:
        parts = [_load_list(path, root / "images", size) for path in lists.values()]
    else:
        raise FileNotFoundError(
            f"{root} holds miniImageNet neither in folders ({_listed(missing_folders)} "
            f"missing) nor in lists ({_listed(missing_files)} missing)."
        )
    return _datasets.Splits(*parts)


def _load_list(
    path: pathlib.Path, images: pathlib.Path, size: int
) -> _datasets.ImageClasses:
    """Loads the images in a list, sorted by class."""
    try:
        files = _read_list(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a list ({error}).") from error
    if not files:
        raise ValueError(f"{path} lists no images.")
    names = sorted(files)
    num_examples = np.array([len(files[name]) for name in names], np.int32)
    _datasets.check_padding(names, num_examples.tolist(), (size, size, 3))
    stacked = np.zeros((len(names), num_examples.max(), size, size, 3), np.uint8)
    for padded, name in zip(stacked, names, strict=True):
        for row, file in enumerate(files[name]):
            padded[row] = _datasets.load_image(images / file, size=size, channels=3)
    return _datasets.ImageClasses(stacked, num_examples, tuple(names))


def _read_list(path: pathlib.Path) -> dict[str, list[str]]:
    """Returns class -> file names."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} must begin with the line 'filename,label', got columns "
                f"{reader.fieldnames}."
            )
        files = collections.defaultdict(list)
        for row in reader:
            name, label = row["filename"], row["label"]
            if not name or not label:
                raise ValueError(
                    f"Line {reader.line_num} of {path} must be 'filename,label', got "
                    f"{name!r} and {label!r}."
                )
            inside = pathlib.PurePath(name)
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(
                    f"Line {reader.line_num} of {path} names a file outside images/: "
                    f"{name!r}."
                )
            files[label].append(name)
    return files


def _listed(names: list[str]) -> str:
    return " and ".join(names)
