"""One process at a time in a run folder."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Holds `directory`, which exists; the system lets go of it when the process ends.

    Without effect where there are no such locks (Windows, some network disks).

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
                    f"`directory` is in use: another process trains in {directory}. "
                    "Wait for it, or choose another."
                ) from error
        yield
    finally:
        os.close(descriptor)
