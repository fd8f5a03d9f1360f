"""Downloads MNIST, CIFAR-10 and CIFAR-100 and prepares them, without TensorFlow."""

import gzip
import io
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxmeta.tasks import _datasets, _tfds

MNIST_VERSION, CIFAR10_VERSION, CIFAR100_VERSION = "3.0.1", "3.0.2", "3.0.2"
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist"
_MNIST_FILES = {"train": "train", "test": "t10k"}
_CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"


def prepare_mnist(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Prepares the stock data set `mnist/3.0.1`; see `_tfds.prepare`."""
    return _tfds.prepare("mnist", MNIST_VERSION, _MNIST, _mnist_cls, data_dir)


def prepare_cifar10(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Prepares the stock data set `cifar10/3.0.2`; see `_tfds.prepare`."""
    return _tfds.prepare("cifar10", CIFAR10_VERSION, _CIFAR10, _cifar10_cls, data_dir)


def prepare_cifar100(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Prepares the stock data set `cifar100/3.0.2`; see `_tfds.prepare`."""
    return _tfds.prepare(
        "cifar100", CIFAR100_VERSION, _CIFAR100, _cifar100_cls, data_dir
    )


def _mnist_cls() -> Any:
    """The stock builder, reading its files without TensorFlow."""
    tfds = _datasets.import_extra("tensorflow_datasets")
    stock = tfds.builder_cls("mnist")
    with tfds.core.registered.skip_registration():

        class MNIST(stock):
            def _split_generators(self, dl_manager):
                kinds = {"images": "images-idx3", "labels": "labels-idx1"}
                urls = {
                    (split, kind): f"{_MNIST}/{prefix}-{file}-ubyte.gz"
                    for split, prefix in _MNIST_FILES.items()
                    for kind, file in kinds.items()
                }
                paths = dict(
                    zip(urls, dl_manager.download(list(urls.values())), strict=True)
                )
                return {
                    split: _mnist_records(
                        paths[split, "images"], paths[split, "labels"]
                    )
                    for split in _MNIST_FILES
                }

    # Checksums are looked up by module, which the data set also records.
    MNIST.__module__ = stock.__module__
    return MNIST


def _cifar10_cls() -> Any:
    """The stock builder, reading the archive without TensorFlow."""
    tfds = _datasets.import_extra("tensorflow_datasets")
    stock = tfds.builder_cls("cifar10")
    with tfds.core.registered.skip_registration():

        class Cifar10(stock):
            def _split_generators(self, dl_manager):
                path = dl_manager.download(_CIFAR10)
                folder = "cifar-10-batches-bin"
                names = _member(path, f"{folder}/batches.meta.txt").decode().split()
                self.info.features["label"].names = names
                batches = [f"{folder}/data_batch_{i}.bin" for i in range(1, 6)]
                tests = [f"{folder}/test_batch.bin"]
                return {
                    "train": _cifar_records(path, "train", batches, ["label"]),
                    "test": _cifar_records(path, "test", tests, ["label"]),
                }

    Cifar10.__module__ = stock.__module__
    return Cifar10


def _cifar100_cls() -> Any:
    """The stock builder, reading the archive without TensorFlow."""
    tfds = _datasets.import_extra("tensorflow_datasets")
    stock = tfds.builder_cls("cifar100")
    with tfds.core.registered.skip_registration():

        class Cifar100(stock):
            def _split_generators(self, dl_manager):
                path = dl_manager.download(_CIFAR100)
                folder = "cifar-100-binary"
                files = {"coarse_label": "coarse", "label": "fine"}
                for label, prefix in files.items():
                    names = _member(path, f"{folder}/{prefix}_label_names.txt")
                    self.info.features[label].names = names.decode().split()
                return {
                    split: _cifar_records(
                        path, split, [f"{folder}/{split}.bin"], list(files)
                    )
                    for split in ("train", "test")
                }

    Cifar100.__module__ = stock.__module__
    return Cifar100


def _mnist_records(
    images_path: os.PathLike[str], labels_path: os.PathLike[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the stock builder's keys and records."""
    with gzip.open(images_path) as file:
        # IDX headers: 16 bytes before images, 8 before labels.
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(labels_path) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield index, {"image": _png(image), "label": int(label)}


def _cifar_records(
    path: os.PathLike[str], split: str, batches: list[str], labels: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the stock builder's keys and records; rows start with the `labels`."""
    index = 0
    for batch in batches:
        rows = np.frombuffer(_member(path, batch), np.uint8)
        for row in rows.reshape(-1, len(labels) + 3 * 32 * 32):
            image = row[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
            record = dict(zip(labels, row.tolist(), strict=False))
            yield index, record | {"image": _png(image), "id": f"{split}_{index:05d}"}
            index += 1


def _member(path: os.PathLike[str], name: str) -> bytes:
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        if file is None:
            raise ValueError(f"{path} has no file {name}.")
        return file.read()


def _png(image: np.ndarray) -> io.BytesIO:
    pil = _datasets.import_extra("PIL.Image")
    file = io.BytesIO()
    pil.fromarray(image).save(file, "png")
    file.seek(0)
    return file
