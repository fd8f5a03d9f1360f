"""MNIST and CIFAR-10 through tensorflow-datasets, without TensorFlow."""

import io
import os
import pathlib
from typing import NamedTuple

import numpy as np

from jaxmeta.tasks import _cache, _datasets, _labelled_builder, _tfds


class LabelledImages(NamedTuple):
    """N images and their classes, on the host."""

    images: np.ndarray  # [N, H, W, channels] uint8
    labels: np.ndarray  # [N] int32

    def take_classes(self, classes: tuple[int, ...]) -> "LabelledImages":
        """Keeps only these classes, renumbered in the given order.

        Raises:
          ValueError: if a class has no examples or is repeated.

        Example:
          >>> data = LabelledImages(np.zeros((4, 2, 2, 1), np.uint8), np.arange(4))
          >>> data.take_classes((3, 1)).labels
          array([1, 0], dtype=int32)
        """
        known = set(self.labels.tolist())
        if len(set(classes)) != len(classes) or not set(classes) <= known:
            raise ValueError(
                f"`classes` must be some of {sorted(known)}, each once, got {classes}."
            )
        kept = np.isin(self.labels, classes)
        renumbered = np.zeros(max(known) + 1, np.int32)
        renumbered[list(classes)] = np.arange(len(classes))
        return LabelledImages(self.images[kept], renumbered[self.labels[kept]])


class LabelledSplits(NamedTuple):
    """Training and test examples."""

    train: LabelledImages
    test: LabelledImages


def load_mnist(data_dir: str | os.PathLike[str] | None = None) -> LabelledSplits:
    """Loads MNIST: 60,000 and 10,000 digits, [N, 28, 28, 1].

    The first call downloads and prepares the data set if `data_dir` does not have it,
    and decodes it; the decoded images are cached in `$XDG_CACHE_HOME/jaxmeta`
    (`~/.cache/jaxmeta`).

    Args:
      data_dir: tensorflow-datasets folder; default `$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`.

    Raises:
      ValueError: if the data set in `data_dir` is damaged.
      FileNotFoundError: if there is no data set and no network to download it.
      ImportError: if the extra `data` is not installed.

    Example:
      >>> load_mnist().train.images.shape  # doctest: +SKIP
      (60000, 28, 28, 1)
    """
    return _load("mnist", _labelled_builder.prepare_mnist(data_dir))


def load_cifar10(data_dir: str | os.PathLike[str] | None = None) -> LabelledSplits:
    """Loads CIFAR-10: 50,000 and 10,000 photographs, [N, 32, 32, 3].

    Args:
      data_dir: as in `load_mnist`.

    Raises:
      As `load_mnist`.

    Example:
      >>> load_cifar10().train.images.shape  # doctest: +SKIP
      (50000, 32, 32, 3)
    """
    return _load("cifar10", _labelled_builder.prepare_cifar10(data_dir))


class _Arrays(NamedTuple):
    """Both splits as stored in the cache."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def _load(name: str, folder: pathlib.Path) -> LabelledSplits:
    read = lambda folder: _read(name, folder)
    found = _cache.cached(f"{name}-{folder.name}", folder, read, _Arrays)
    return LabelledSplits(LabelledImages(*found[:2]), LabelledImages(*found[2:]))


def _read(name: str, folder: pathlib.Path) -> _Arrays:
    """Reads and decodes a prepared data set."""
    tfds = _datasets.import_extra("tensorflow_datasets")
    _datasets.import_extra("array_record")
    pil = _datasets.import_extra("PIL.Image")

    def read(builder, split):
        decoders = {"image": tfds.decode.SkipDecoding()}
        records = list(builder.as_data_source(split, decoders=decoders))
        images = [np.asarray(pil.open(io.BytesIO(r["image"]))) for r in records]
        labels = np.array([r["label"] for r in records], np.int32)
        stacked = np.stack(images)
        return stacked.reshape(*stacked.shape[:3], -1), labels

    try:
        builder = tfds.builder_from_directory(folder)
        return _Arrays(*read(builder, "train"), *read(builder, "test"))
    # The records, their descriptions and Pillow each raise their own exceptions.
    except Exception as error:
        raise _tfds.damaged(name, folder, error) from error
