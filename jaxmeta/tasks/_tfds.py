"""Prepares data sets for tensorflow-datasets, without TensorFlow."""

import os
import pathlib
import shlex
import threading
from collections.abc import Callable
from typing import Any

from jaxmeta.tasks import _datasets


def prepare(
    name: str,
    version: str,
    url: str,
    make_builder_cls: Callable[[], Any],
    data_dir: str | os.PathLike[str] | None,
) -> pathlib.Path:
    """Downloads a data set and prepares it in array_record format, if not done yet.

    Args:
      name: name in tensorflow-datasets.
      version: version of the builder.
      url: download address.
      make_builder_cls: makes a builder that does not require TensorFlow.
      data_dir: tensorflow-datasets folder; default `$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`.

    Returns:
      The folder of the prepared data set.

    Raises:
      FileNotFoundError: if there is none and no network to download it.
      ImportError: if the extra `data` is not installed.
    """
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    data_dir = pathlib.Path(data_dir).expanduser().resolve()
    folder = data_dir / name / version
    if (folder / "dataset_info.json").is_file():
        return folder
    builder_cls = make_builder_cls()
    # Without this, tensorflow-datasets retries for minutes before it gives up.
    if not reachable(url):
        raise FileNotFoundError(
            f"{name} is not at {folder}, and {url} cannot be reached to download it. "
            f"With a network, `{command(name, data_dir)}` downloads it."
        )
    builder = builder_cls(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return folder


def damaged(
    name: str, folder: pathlib.Path, error: Exception, title: str | None = None
) -> ValueError:
    """Returns the error to raise if a prepared data set cannot be read.

    Args:
      name: name in tensorflow-datasets.
      folder: folder of the prepared data set.
      error: the error that reading raised.
      title: title of the data set; None is `name`.
    """
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return ValueError(
        f"{folder} does not hold all of {title or name} in array_record format "
        f"({reason:.200}). Remove that folder and run "
        f"`{command(name, folder.parents[1])}`, or use another `data_dir`."
    )


def command(name: str, data_dir: pathlib.Path) -> str:
    """Returns the command line that downloads a data set to `data_dir`."""
    quoted = shlex.quote(os.fspath(data_dir))
    return f"python -m jaxmeta.tasks.download {name} --data-dir {quoted}"


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether a server answers within `seconds`."""
    requests = _datasets.import_extra("requests")
    answers = []

    def probe():
        try:
            answers.append(requests.head(url, timeout=seconds))
        except requests.RequestException:
            return

    # In a thread, because host name lookup ignores the timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)
