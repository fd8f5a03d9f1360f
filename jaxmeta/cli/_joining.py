"""Multi-process training: `--coordinator`, `--num-processes`, `--process-id`."""

import re
import socket

from jaxmeta.cli import _parsing


def check_options(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Raises unless the multi-process options are consistent."""
    given = {"--num-processes": num_processes, "--process-id": process_id}
    missing = [option for option, value in given.items() if value is None]
    if coordinator is None and len(missing) < len(given):
        raise _parsing.UsageError(
            "`--coordinator` HOST:PORT of the first process is required."
        )
    if coordinator in (None, "auto"):
        return
    _, _, port = coordinator.rpartition(":")
    if not re.fullmatch(r"[^\s:].*:\d{1,5}", coordinator) or int(port) > 65_535:
        raise _parsing.UsageError(
            "`--coordinator` must be HOST:PORT, say 10.0.0.1:1234, or auto, got "
            f"{coordinator!r}."
        )
    if missing:
        raise _parsing.UsageError(
            f"`--coordinator` also needs {' and '.join(missing)}."
        )
    if process_id == 0:
        _check_port(int(port))


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> bool:
    """Joins the other processes; returns whether this is process 0."""
    import jax

    if coordinator is not None:
        address = None if coordinator == "auto" else coordinator
        # It would take SIGTERM from `cli._deadline`.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                address, num_processes, process_id, heartbeat_timeout_seconds=30
            )
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            mend = (
                "No cluster environment detected: give HOST:PORT"
                if address is None
                else "Check the address, and that every process has its own id"
            )
            raise _parsing.UsageError(
                f"`--coordinator` {coordinator}: {mend} ({error})."
            ) from error
    return coordinator is None or jax.process_index() == 0


def _check_port(port: int) -> None:
    """Raises unless this process can listen; otherwise JAX's coordinator crashes."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise _parsing.UsageError(
            f"`--coordinator`: cannot listen on port {port} ({error}): choose another."
        ) from error
