"""Caches decoded data sets, so that only the first load decodes them."""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

# Increased when decoding changes, so that caches of older releases are ignored.
_FORMAT = 1


class _NamedArrays(Protocol):
    def _asdict(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=_NamedArrays)


def cached(
    name: str,
    folder: pathlib.Path,
    read: Callable[[pathlib.Path], T],
    cls: Callable[..., T],
) -> T:
    """Returns `read(folder)`, a NamedTuple `cls` of arrays, decoding once.

    An unreadable cache is rewritten; failing to write one is not an error.

    Args:
      name: name and version of the data set, for the file name.
      folder: folder of the prepared data set; any change to it invalidates the cache.
      read: decodes the data set.
      cls: class of the result of `read`.
    """
    path = cache_path(name, folder)
    # Any broken cache can be rewritten. Given a path, np.load leaves a truncated file
    # open.
    with (
        contextlib.suppress(Exception),
        open(path, "rb") as file,
        np.load(file) as arrays,
    ):
        return cls(**arrays)
    found = read(folder)
    # Without a cache the next call only takes longer.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renaming is atomic, so another process never reads half a file.
        with tempfile.TemporaryDirectory(dir=path.parent) as partial:
            np.savez_compressed(f"{partial}/{path.name}", **found._asdict())
            os.replace(f"{partial}/{path.name}", path)
    return found


def cache_path(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Names the cache of a data set after its path and the state of its files."""
    files = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.iterdir()
    )
    key = json.dumps([_FORMAT, os.fspath(folder), files])
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return root / "jaxmeta" / f"{name}-{digest}.npz"
