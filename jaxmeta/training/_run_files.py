"""The files of a run: metrics and checkpoints."""

import contextlib
import os
import pathlib
import shutil
import warnings
from typing import Any

from jaxmeta import _json, _lock, _processes
from jaxmeta.training import _checkpoint

# The folder, in that of the checkpoints, of the one that a signal causes.
INTERRUPTED = "interrupted"


class RunFiles:
    """The files of a run; does nothing without a directory."""

    def __init__(self, directory):
        self._directory = None if directory is None else pathlib.Path(directory)
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        if self._directory is None:
            return self
        self._metrics = self._directory / "metrics.jsonl"
        path = self._directory / "checkpoints"
        self._interrupted = path / INTERRUPTED
        try:
            path.mkdir(parents=True, exist_ok=True)
            if _processes.is_main_process():
                self._stack.enter_context(_lock.locked(path))
                for unfinished in path.rglob("*.orbax-checkpoint-tmp*"):  # By a kill.
                    shutil.rmtree(unfinished, ignore_errors=True)
            self._checkpoints = self._open(path)
        except OSError as error:
            raise OSError(
                f"`directory` cannot be written: {self._directory} ({error.strerror}). "
                "Choose another."
            ) from error
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _open(self, path):
        checkpoints = _checkpoint.open_checkpoints(path)
        self._stack.callback(checkpoints.close)
        return checkpoints

    def resume(self, state):
        """Returns the last state, the best one, its loss, and what is unrecorded."""
        unrecorded = {"totals": None, "seconds": 0.0}
        if self._directory is None:
            return state, None, float("inf"), unrecorded
        best_step, best_loss = self._checkpoints.best()
        best = None
        if best_step is not None:
            best = self._checkpoints.restore(best_step, state)
        checkpoints, last = self._checkpoints, self._checkpoints.last_step() or 0
        if self._interrupted.exists():
            interrupted = self._open(self._interrupted)
            if (step := interrupted.last_step() or 0) > last:
                checkpoints, last = interrupted, step
                unrecorded = interrupted.unrecorded(step)
        if last:
            state = checkpoints.restore(last, state)
        self._truncate_metrics(last, recorded=self._checkpoints.last_step() or 0)
        return state, best, best_loss, unrecorded

    def _truncate_metrics(self, last_step, recorded):
        """Drops records after the checkpoint: they will be recomputed."""
        if not _processes.is_main_process():
            return
        found = read_metrics(self._metrics) if self._metrics.exists() else []
        kept = [r for r in found if r["step"] <= last_step]
        if (before := kept[-1]["step"] if kept else 0) < recorded:
            warnings.warn(
                f"{self._metrics} has no records of the steps after {before} up to the "
                f"checkpoint of step {recorded}: they have been damaged or deleted. "
                "Training goes on from the checkpoint.",
                stacklevel=4,
            )
        if not self._metrics.exists():
            return
        new = self._metrics.with_suffix(".tmp")
        new.write_text("".join(_json.dumps(record) + "\n" for record in kept))
        os.replace(new, self._metrics)

    def append(self, record):
        """Adds a record to the metrics."""
        if self._directory is not None and _processes.is_main_process():
            try:
                with self._metrics.open("a") as file:
                    file.write(_json.dumps(record) + "\n")
            except OSError as error:
                raise OSError(
                    f"{self._metrics} cannot be written ({error.strerror}). Earlier "
                    "records are kept; free some space or make it writable, and rerun "
                    "the command to resume."
                ) from error

    def save(self, state, loss):
        """Saves a state; `loss` is as in `Checkpoints.save`."""
        if self._directory is not None:
            self._checkpoints.save(state, loss)
            if _processes.is_main_process():  # It is older.
                shutil.rmtree(self._interrupted, ignore_errors=True)

    def save_unrecorded(self, state, unrecorded):
        """Saves a state between two records, with the metrics of the second so far.

        Apart from the others: it may be of a step that gets its checkpoint later.
        """
        checkpoints = _checkpoint.open_checkpoints(self._interrupted)
        checkpoints.save(state, unrecorded=unrecorded)
        checkpoints.close()

    def __str__(self):
        if self._directory is None:
            return ""
        return f" Checkpoints in {self._directory} are kept."


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`; skips damaged lines, e.g. a last one cut by a crash."""
    records = []
    for line in pathlib.Path(path).read_text(errors="replace").splitlines():
        try:
            record = _json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
