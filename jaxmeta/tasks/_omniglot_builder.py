"""Downloads Omniglot and prepares it for tensorflow-datasets, without TensorFlow."""

import os
import pathlib
import re
import shlex
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

from jaxmeta.tasks import _datasets

VERSION = "3.0.0"
_URL = "https://github.com/brendenlake/omniglot"
_ZIPS = {
    "train": f"{_URL}/raw/master/python/images_background.zip",
    "test": f"{_URL}/raw/master/python/images_evaluation.zip",
    "small1": f"{_URL}/raw/master/python/images_background_small1.zip",
    "small2": f"{_URL}/raw/master/python/images_background_small2.zip",
}


def prepare_omniglot(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Downloads Omniglot and prepares it for tensorflow-datasets, unless it is there.

    The result is the stock dataset `omniglot/3.0.0` in array_record format, which
    `tfds.data_source` reads; neither writing nor reading it takes TensorFlow.

    Args:
      data_dir: as in `load_omniglot`.

    Returns:
      The folder of the prepared dataset.

    Raises:
      FileNotFoundError: if there is no dataset and no network to fetch it by.
      ImportError: if the extra `data` is not installed.

    Example:
      >>> prepare_omniglot("data").as_posix()  # doctest: +SKIP
      '/home/me/data/omniglot/3.0.0'
    """
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    data_dir = pathlib.Path(data_dir).expanduser().resolve()
    folder = data_dir / "omniglot" / VERSION
    if (folder / "dataset_info.json").is_file():
        return folder
    builder_cls = _builder_cls()
    # Without this, tensorflow-datasets retries for minutes before it gives up.
    if not _reachable(_ZIPS["train"]):
        raise FileNotFoundError(
            f"Omniglot is not at {folder}, and {_URL} cannot be reached to download "
            f"it. With a network, `{command(data_dir)}` fetches it."
        )
    builder = builder_cls(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return folder


def command(data_dir: pathlib.Path) -> str:
    """Returns the command line that fetches Omniglot to `data_dir`."""
    quoted = shlex.quote(os.fspath(data_dir))
    return f"python -m jaxmeta.tasks.download omniglot --data-dir {quoted}"


def _reachable(url: str, seconds: float = 3.0) -> bool:
    requests = _datasets.import_extra("requests")
    answers = []

    def probe():
        try:
            answers.append(requests.head(url, timeout=seconds))
        except requests.RequestException:
            return

    # In a thread, because looking up the host's name obeys no timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def _builder_cls() -> Any:
    """Makes tensorflow-datasets' builder read the zips by itself.

    The stock builder has TensorFlow extract and list them. Downloads, checksums,
    features, keys and splits are the stock ones, and so are the records.
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

    # The module is where the checksums are looked up, and is noted in the dataset.
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
