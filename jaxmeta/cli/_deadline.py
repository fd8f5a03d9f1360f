"""Ends a run soon after a signal, whatever the main thread waits for.

Python runs signal handlers in the main thread, between two instructions: not while XLA
compiles, nor within a validation. A thread reads of signals at once.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from jaxmeta.training import _interruption

# Kubernetes and Slurm grant 30 seconds by default, spot machines as many.
GRACE = 5.0  # seconds for the main thread to save and end by itself
_LOOK = 0.2  # seconds


@contextlib.contextmanager
def deadline(is_coordinator: bool = False) -> Iterator[None]:
    """Within the context, SIGINT and SIGTERM end the process; a second one at once.

    The coordinator of a joint run waits a second longer: JAX aborts those that lose it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # It gets no signals.
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous_fd = signal.set_wakeup_fd(writer.fileno())
    previous = {
        signum: signal.signal(signum, _interruption.end)
        for signum in _interruption.SIGNALS
    }
    grace = GRACE + is_coordinator
    watch = threading.Thread(target=_watch, args=(reader, grace), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        writer.close()
        watch.join()
        reader.close()


def said(signum: int) -> str:
    """What the command line says when a signal has ended it."""
    ended = "interrupted" if signum == signal.SIGINT else "terminated"
    return f"{ended}; rerun the command to resume."


def _watch(reader, grace):
    first = reader.recv(1)
    if not first:
        return
    arrived = time.monotonic()
    reader.settimeout(_LOOK)
    while True:
        elapsed = time.monotonic() - arrived
        if elapsed > grace and _interruption.save_unsaved():
            _exit(first[0], said(first[0]))
        try:
            more = reader.recv(1)
        except TimeoutError:
            continue
        if not more:
            return
        if elapsed > _interruption.SAME_SIGNAL:
            _exit(more[0], "ended at once; rerun to resume from the last checkpoint.")


def _exit(signum, text):
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # A progress bar hides it.
    print(f"{show_cursor}\njaxmeta: {text}", file=sys.stderr, flush=True)
    os._exit(128 + signum)
