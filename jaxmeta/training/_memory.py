"""Memory of the host that compiling leaves behind."""

import ctypes


def trim_memory() -> bool:
    """Gives freed memory back to the operating system.

    XLA's compiler frees what it allocated, several hundred MiB for a meta-step, but the
    C library keeps it. Call this once after the first step of your own loop; `fit` does
    so itself. Takes some milliseconds. Only with glibc, so on most Linux systems.

    Returns:
      Whether memory was given back.

    Example:
      >>> import jaxmeta as jm
      >>> jm.training.trim_memory() in (True, False)
      True
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):  # Another C library.
        return False
