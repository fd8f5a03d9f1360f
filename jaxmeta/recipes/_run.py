"""Run folders: trained by a recipe, evaluated afterwards.

A folder holds `config.json` (the recipe), `metrics.jsonl`, `checkpoints/`,
`summary.json` once trained, and `plots/`.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from jaxmeta import _json, base, training
from jaxmeta.recipes import (
    _config,
    _optimizer_run,
    _parts,
    _settings,
    _task_run,
)


class Run(NamedTuple):
    """A run folder and what its configuration says."""

    directory: pathlib.Path
    name: str
    recipe: Any  # of `jaxmeta.recipes`


def open_run(directory: str | os.PathLike[str]) -> Run:
    """Reads the configuration of a run folder.

    Raises:
      ValueError: if it is none, or its configuration is damaged or of another version.
    """
    directory = pathlib.Path(directory)
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
        return Run(directory, config["name"], _config.from_json(config["recipe"]))
    except FileNotFoundError as error:
        raise ValueError(
            f"{directory} is no run folder: it has no config.json. `jaxmeta train` "
            "makes one."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def train_run(
    name: str,
    recipe: _config.Training,
    directory: str | os.PathLike[str],
    report: training.Report | None = None,
) -> dict[str, Any]:
    """Trains and tests a recipe in `directory`, or goes on where it was interrupted.

    Returns:
      What `summary.json` says. A finished run is not touched again.

    Raises:
      ValueError: if the folder holds a run of another configuration, or another process
        trains in it.
      OSError: if it cannot be written.
    """
    run = Run(pathlib.Path(directory), name, recipe)
    _check_unclaimed(run)
    path = run.directory / "summary.json"
    if not path.exists():
        parts = build(recipe)  # Before the folder is made: wrong settings leave none.
        with _claimed(run):
            summary = _train(run, parts, report)
            if training.is_main_process():
                _write_json(path, summary)
        training.wait_for_processes("summary.json is written")
    return _json.loads(path.read_text())


def _train(
    run: Run, parts: _parts.Parts, report: training.Report | None
) -> dict[str, Any]:
    """Returns the summary."""
    recipe = run.recipe
    result = training.fit(
        parts.train_step,
        num_steps=recipe.steps,
        key=parts.train_key,
        directory=run.directory,
        log_every=recipe.log_every,
        validate=parts.validate,
        validate_every=recipe.validate_every,
        patience=recipe.patience,
        report=report,
    )
    training.wait_for_processes("metrics.jsonl is written")
    records = training.read_metrics(run.directory / "metrics.jsonl")
    return {
        "recipe": run.name,
        "published": recipe.published,
        "protocol": recipe.protocol,
        "test": parts.test(result.best.meta_params),
        "steps": int(result.state.step),
        "best_step": int(result.best.step),
        "stopped_early": result.stopped_early,
        "train_seconds": round(sum(record["seconds"] for record in records), 1),
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("jaxmeta", "jax", "jaxlib", "flax", "optax")
        },
    }


def evaluate_run(
    directory: str | os.PathLike[str],
    *,
    num_tasks: int | None = None,
    inner_steps: int | None = None,
    seed: int | None = None,
    task_settings: _settings.Tasks | None = None,
) -> dict[str, Any]:
    """Tests the best checkpoint of a run on fresh tasks.

    Args:
      directory: the run's.
      num_tasks: None is the recipe's.
      inner_steps: None is the recipe's.
      seed: of the tasks; None is the run's own test tasks.
      task_settings: other settings of the run's tasks, say more shots; None keeps them.

    Returns:
      A dict as under `test` in `summary.json`: lists over 0 ... K inner steps.

    Raises:
      ValueError: if the folder holds no run, no checkpoint, or a damaged one.
    """
    run = open_run(directory)
    if task_settings is not None:
        run = run._replace(recipe=dataclasses.replace(run.recipe, tasks=task_settings))
    parts = build(run.recipe)
    return parts.test(
        best_meta_params(run, parts),
        num_tasks=num_tasks,
        inner_steps=inner_steps,
        seed=seed,
    )


def build(recipe: _config.Training) -> _parts.Parts:
    """Builds a recipe; raises ValueError for settings that cannot be."""
    if isinstance(recipe, _config.OptimizerRecipe):
        return _optimizer_run.build(recipe)
    assert isinstance(recipe, _config.Recipe)
    return _task_run.build(recipe)


def best_meta_params(run: Run, parts: _parts.Parts) -> base.Params:
    """Restores what a run's best checkpoint holds."""
    path = run.directory / "checkpoints"
    checkpoints = training.open_checkpoints(path) if path.is_dir() else None
    last = None if checkpoints is None else checkpoints.last_step()
    if checkpoints is None or last is None:
        raise ValueError(
            f"{run.directory} has no checkpoint yet: `jaxmeta train {run.name} --out "
            f"{run.directory}` goes on with it."
        )
    best, _ = checkpoints.best()
    state = checkpoints.restore(last if best is None else best, parts.like)
    checkpoints.close()
    return state.meta_params


def _check_unclaimed(run: Run) -> None:
    """Raises if the folder holds what another configuration saved."""
    has_checkpoints = any((run.directory / "checkpoints").glob("*"))
    if not (run.directory / "config.json").exists():
        if has_checkpoints:
            raise ValueError(
                f"`--out` holds another run: {run.directory} has checkpoints, but no "
                "config.json. Choose another."
            )
        return
    found = open_run(run.directory)
    if not has_checkpoints and not (run.directory / "summary.json").exists():
        return  # It was stopped before anything was saved.
    ours, theirs = (
        _flatten({"recipe": r.name, **_config.to_json(r.recipe)}) for r in (run, found)
    )
    # Words may be mended and data moved.
    free = {"summary", "published", "protocol", "tasks.data_dir", "problem.data_dir"}
    differing = [
        f"`{field}` is {theirs.get(field)!r}, here {ours.get(field)!r}"
        for field in sorted((ours | theirs).keys() - free)
        if ours.get(field) != theirs.get(field)
    ]
    if differing:
        raise ValueError(
            f"`--out` holds another run: in {run.directory}, {'; '.join(differing)}. "
            "Repeat its options to go on with it, or choose another."
        )


@contextlib.contextmanager
def _claimed(run: Run) -> Iterator[None]:
    """Makes the run folder, keeps others out and writes its configuration.

    Of processes that train together, the first does so.
    """
    if not training.is_main_process():
        yield
        return
    config = {"name": run.name, "recipe": _config.to_json(run.recipe)}
    with contextlib.ExitStack() as stack:
        try:
            run.directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(training.locked(run.directory))
            _check_unclaimed(run)  # Nobody may have been faster.
            _write_json(run.directory / "config.json", config)
        except OSError as error:
            raise OSError(
                f"`--out` cannot be written: {run.directory} ({error.strerror}). "
                "Choose another."
            ) from error
        yield


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else key
        flat |= _flatten(value, path) if isinstance(value, dict) else {path: value}
    return flat


def _write_json(path: pathlib.Path, content: Any) -> None:
    """Writes whole or not at all."""
    new = path.with_suffix(".tmp")
    new.write_text(_json.dumps(content, indent=1) + "\n")
    os.replace(new, path)
