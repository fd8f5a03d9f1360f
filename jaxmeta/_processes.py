"""Multi-process training: the first process writes the files."""

import jax
from jax.experimental import multihost_utils


def is_main_process() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def wait_for_processes(name: str) -> None:
    """Waits until all processes reach this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
