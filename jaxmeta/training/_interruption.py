"""Signals that end a run: SIGINT (Ctrl-C) and SIGTERM (Slurm, Kubernetes, spot VMs)."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How often a run looks for signals, and a joint run synchronizes to do so.
SECONDS = 1.0
# `timeout` and some schedulers send one signal twice: to the process and to its group.
SAME_SIGNAL = 0.5  # seconds

_lock = threading.Lock()
_save_unsaved: Callable[[], bool] = lambda: True


class Interruption:
    """Turns a signal into the end of the loop at its next meta-step.

    A second signal raises at once. Handlers that a program has installed for itself are
    left alone, and so are threads other than the main one, which get no signals.
    """

    def __init__(self, *, catches: bool):
        self.signum = 0
        self.steps_left = 1  # until the next look
        self._catches = catches
        self._previous: dict[int, Any] = {}
        self._steps, self._looked = 0, time.monotonic()
        self._noted = 0.0

    def __enter__(self) -> "Interruption":
        if self._catches and threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) in _REPLACEABLE:
                    self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        at_deadline(lambda: True)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum, frame):
        now = time.monotonic()
        if not self.signum:
            self.signum, self._noted = signum, now
        elif now - self._noted > SAME_SIGNAL:
            end(signum, frame)

    def is_due(self, steps: int) -> bool:
        """Whether to stop, after so many more meta-steps.

        Processes that train together decide together: a signal may come to one only.
        """
        self.steps_left -= steps
        self._steps += steps
        if self.steps_left > 0:
            return self.signum != 0 and jax.process_count() == 1
        # Validations and checkpoints count: they too let a signal wait.
        now = time.monotonic()
        found = np.array([self.signum, (now - self._looked) / self._steps])
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(found).max(0)
        self.signum = int(found[0])
        self.steps_left = max(1, int(SECONDS / max(found[1], 1e-9)))
        self._steps, self._looked = 0, now
        return self.signum != 0


def end(signum: int, frame: Any = None) -> None:
    """Raises what ends the program, with the exit code 128 + `signum`."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)


_REPLACEABLE = (signal.SIG_DFL, signal.default_int_handler, end)


def at_deadline(save: Callable[[], bool]) -> None:
    """Sets what `save_unsaved` calls; waits for a call that is under way."""
    global _save_unsaved
    with _lock:
        _save_unsaved = save


def save_unsaved() -> bool:
    """Saves, from another thread, what the run has not; whether it may end now.

    It may not between two checkpoints: the next meta-step has the only state.
    """
    with _lock:
        return _save_unsaved()
