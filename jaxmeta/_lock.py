"""One process at a time in a run folder."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Locks `directory`, which must exist; the system unlocks it if the process dies.

    No effect where `flock` is unavailable (Windows, some network disks).

    Raises:
      ValueError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    "`directory` is in use: another process is training in "
                    f"{directory}. Wait for it or choose another directory."
                ) from error
        yield
    finally:
        os.close(descriptor)
