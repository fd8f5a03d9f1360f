"""The run folder: its configuration, checkpoints and records.

A folder holds `config.json` (the recipe), `metrics.jsonl`, `checkpoints/`,
`summary.json` once trained, and `plots/`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxmeta import _checks, _json, _lock, _processes, base, recipes, training
from jaxmeta.training import _run_files


class Run(NamedTuple):
    """A run folder and its configuration."""

    directory: pathlib.Path
    name: str
    recipe: Any  # of `jaxmeta.recipes`


def read(directory: str | os.PathLike[str]) -> Run:
    """Reads the configuration of a run folder.

    Raises:
      ValueError: if it is not a run folder, or its configuration is damaged or from an
        incompatible version.
    """
    directory = pathlib.Path(directory)
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
        return Run(directory, config["name"], recipes.from_json(config["recipe"]))
    except FileNotFoundError as error:
        raise ValueError(
            f"{directory} is not a run folder: it has no config.json. `jaxmeta train` "
            "creates one."
        ) from error
    # RecursionError of JSON that is nested too deeply.
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def read_records(run: Run) -> list[dict[str, Any]]:
    """Reads a run's metrics; raises ValueError if there are none yet."""
    path = run.directory / "metrics.jsonl"
    records = training.read_metrics(path) if path.exists() else []
    if not records:
        raise ValueError(
            f"{run.directory} has no metrics yet: `jaxmeta train {run.name} --out "
            f"{run.directory}` resumes it."
        )
    return records


def read_summary(run: Run) -> dict[str, Any]:
    """Reads `summary.json`; empty if the run is unfinished."""
    path = run.directory / "summary.json"
    if not path.exists():
        return {}
    try:
        summary = _json.loads(path.read_text())
        return summary | {"test": summary["test"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Delete it, and `jaxmeta resume "
            f"{run.directory}` tests the run again."
        ) from error


def extend(run: Run, steps: int) -> Run:
    """Raises the number of meta-steps of a run, in its folder too."""
    before = run.recipe.steps
    _checks.check_int("steps", steps)
    if steps < before:
        raise ValueError(
            f"`steps` must be at least the {before} of {run.directory}, got {steps}."
        )
    longer = run._replace(recipe=dataclasses.replace(run.recipe, steps=steps))
    if _processes.is_main_process():
        with _lock.locked(run.directory):
            if (summary := run.directory / "summary.json").exists():
                summary.rename(run.directory / f"summary-{before}.json")
            _write_config(longer)
    _processes.wait_for_processes("config.json is written")
    return longer


def best_meta_params(run: Run, like: base.TrainState) -> base.Params:
    """Restores the best checkpoint; `like` has the shapes of its state."""
    path = run.directory / "checkpoints"
    # Interrupted early, a run has only the checkpoint of its interruption.
    for folder in (path, path / _run_files.INTERRUPTED):
        if folder.is_dir() and (state := _best_state(folder, like)) is not None:
            return state.meta_params
    raise ValueError(
        f"{run.directory} has no checkpoint yet: `jaxmeta train {run.name} --out "
        f"{run.directory}` resumes it."
    )


def _best_state(folder, like):
    """The best state in a folder of checkpoints, or None."""
    while True:
        before = set(os.listdir(folder))
        try:
            with contextlib.closing(training.open_checkpoints(folder)) as checkpoints:
                last, (best, _) = checkpoints.last_step(), checkpoints.best()
                step = last if best is None else best
                return None if step is None else checkpoints.restore(step, like)
        except (ValueError, OSError):
            time.sleep(0.2)
            if set(os.listdir(folder)) == before:
                raise
            # The run goes on, and has just replaced a checkpoint by a newer one.


def check_unclaimed(run: Run) -> None:
    """Raises if the folder holds a run with a different configuration."""
    has_checkpoints = any((run.directory / "checkpoints").glob("*"))
    if not (run.directory / "config.json").exists():
        if has_checkpoints:
            raise ValueError(
                f"`--out` holds another run: {run.directory} has checkpoints, but no "
                "config.json. Choose another."
            )
        return
    found = read(run.directory)
    if not has_checkpoints and not (run.directory / "summary.json").exists():
        return  # It stopped before it saved anything.
    ours, theirs = (
        _flatten({"recipe": r.name, **recipes.to_json(r.recipe)}) for r in (run, found)
    )
    # Texts may be reworded, and data may move.
    free = {"summary", "published", "protocol", "tasks.data_dir", "problem.data_dir"}
    differing = [
        f"`{field}` is {theirs.get(field)!r}, here {ours.get(field)!r}"
        for field in sorted((ours | theirs).keys() - free)
        if ours.get(field) != theirs.get(field)
    ]
    if differing:
        raise ValueError(
            f"`--out` holds another run: in {run.directory}, {'; '.join(differing)}. "
            f"`jaxmeta resume {run.directory}` resumes it; or choose another folder."
        )


@contextlib.contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Creates and locks the run folder, and writes its configuration.

    Only the main process does so.
    """
    if not _processes.is_main_process():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            run.directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock.locked(run.directory))
            check_unclaimed(run)  # Again: another process may have been faster.
            _write_config(run)
        except OSError as error:
            raise OSError(
                f"`--out` cannot be written: {run.directory} ({error.strerror}). "
                "Choose another."
            ) from error
        yield


def _write_config(run: Run) -> None:
    config = {"name": run.name, "recipe": recipes.to_json(run.recipe)}
    write_json(run.directory / "config.json", config)


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else key
        flat |= _flatten(value, path) if isinstance(value, dict) else {path: value}
    return flat


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes atomically."""
    new = path.with_suffix(".tmp")
    new.write_text(_json.dumps(content, indent=1) + "\n")
    os.replace(new, path)
