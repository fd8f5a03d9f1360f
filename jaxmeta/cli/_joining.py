"""Multi-process training: `--coordinator`, `--num-processes`, `--process-id`."""

import contextlib
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator

from jaxmeta.cli import _parsing

# JAX aborts with a stack trace when its own time is up: ours comes first.
_MARGIN = 30  # seconds
# What collectives and the coordinator say when a process is gone.
_LOST = "gloo|nccl|unavailable|deadline|connection|heartbeat|coordination|socket"


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
        _check_address(coordinator)


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
) -> bool:
    """Joins the other processes; returns whether this is process 0."""
    import jax

    if coordinator is None:
        return True
    address = None if coordinator == "auto" else coordinator
    # It would take SIGTERM from `cli._deadline`. JAX 0.8 has no such option.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    given_up = threading.Timer(timeout, _give_up, (coordinator, timeout))
    given_up.daemon = True
    given_up.start()
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            initialization_timeout=timeout + _MARGIN,
            # JAX would listen on all of the machine's addresses.
            coordinator_bind_address=address and _bind_address(address),
            heartbeat_timeout_seconds=30,
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
    finally:
        given_up.cancel()
    return jax.process_index() == 0


@contextlib.contextmanager
def leaving(coordinator: str | None) -> Iterator[None]:
    """Leaves a joint run in good order, or ends at once if another process is lost.

    At exit, JAX would wait for the lost one, and then abort with a stack trace.
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if coordinator is not None and re.search(_LOST, str(error), re.IGNORECASE):
            _end_alone(error)
        raise
    finally:
        if coordinator is not None:
            # Now, not at exit: a signal's deadline still holds.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                jax.distributed.shutdown()


def _end_alone(error):
    why = " ".join(str(error).split())[:200]
    print(
        f"jaxmeta: another process of the run ended or cannot be reached ({why}). The "
        "last checkpoint is kept; start all processes again to resume.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _give_up(coordinator, timeout):
    print(
        f"jaxmeta: `--coordinator` {coordinator}: not all processes have joined within "
        f"{timeout} seconds. Start as many as `--num-processes`, each with a "
        "`--process-id` of its own and the same `--coordinator`; `--join-timeout` "
        "waits longer.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _bind_address(address: str) -> str:
    return os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address)


def _check_address(coordinator: str) -> None:
    """Raises unless this process can listen; otherwise JAX's coordinator crashes."""
    address = _bind_address(coordinator)
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, *_, where = found[0]
        socket.create_server(where[:2], family=family).close()
    except OSError as error:
        raise _parsing.UsageError(
            f"`--coordinator`: cannot listen on port {port} of {host} ({error}): give "
            "another port, or an address of this machine; or set "
            "JAX_COORDINATOR_BIND_ADDRESS."
        ) from error
