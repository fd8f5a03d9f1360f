"""Downloads Omniglot and prepares it for tensorflow-datasets, without TensorFlow."""

import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from jaxmeta.tasks import _datasets, _tfds

VERSION = "3.0.0"
_URL = "https://github.com/brendenlake/omniglot"
_ZIPS = {
    "train": f"{_URL}/raw/master/python/images_background.zip",
    "test": f"{_URL}/raw/master/python/images_evaluation.zip",
    "small1": f"{_URL}/raw/master/python/images_background_small1.zip",
    "small2": f"{_URL}/raw/master/python/images_background_small2.zip",
}


def prepare_omniglot(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Downloads Omniglot and prepares it for tensorflow-datasets, if not done yet.

    The result is the stock dataset `omniglot/3.0.0` in array_record format, which
    `tfds.data_source` reads; neither writing nor reading it requires TensorFlow.

    Args:
      data_dir: as in `load_omniglot`.

    Returns:
      The folder of the prepared dataset.

    Raises:
      FileNotFoundError: if there is no dataset and no network to download it.
      ImportError: if the extra `data` is not installed.

    Example:
      >>> prepare_omniglot("data").as_posix()  # doctest: +SKIP
      '/home/me/data/omniglot/3.0.0'
    """
    return _tfds.prepare("omniglot", VERSION, _ZIPS["train"], _builder_cls, data_dir)


def _builder_cls() -> Any:
    """Makes tensorflow-datasets' builder read the zips without TensorFlow.

    The stock builder extracts and lists them with TensorFlow. Downloads, checksums,
    features, keys, splits and records are the stock ones.
    """
    tfds = _datasets.import_extra("tensorflow_datasets")
    stock = tfds.builder_cls("omniglot")
    with tfds.core.registered.skip_registration():

        class Omniglot(stock):
            def _split_generators(self, dl_manager):
                paths = dl_manager.download(_ZIPS)
                examples = {split: list(_drawings(paths[split])) for split in paths}
                records = [record for part in examples.values() for _, record in part]
                alphabets = {record["alphabet"] for record in records}
                labels = {
                    record["label"]: "{alphabet}_{alphabet_char_id}".format(**record)
                    for record in records
                }
                self.info.features["alphabet"].names = sorted(alphabets)
                self.info.features["label"].names = [labels[i] for i in sorted(labels)]
                return examples

    # Checksums are looked up by module, which the dataset also records.
    Omniglot.__module__ = stock.__module__
    return Omniglot


def _drawings(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the stock builder's keys and records from one of Lake's zips."""
    pattern = re.compile(r"[^/]+/([^/]+)/character(\d+)/((\d+)_\d+\.png)")
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if match := pattern.fullmatch(name):
                alphabet, character, image, label = match.groups()
                record = {
                    "alphabet": alphabet,
                    "alphabet_char_id": int(character) - 1,
                    "label": int(label) - 1,
                    "image": file.read(name),
                }
                yield f"{alphabet}_{int(character) - 1}_{image}", record
