"""Trains and tests a recipe in a run folder."""

import importlib.metadata
import os
import pathlib
import time
from typing import Any

import jax

from jaxmeta import _processes, recipes, training
from jaxmeta.runs import _build, _folder, _parts

_START = "start.safetensors"


def train(
    name: str,
    recipe: recipes.Training,
    directory: str | os.PathLike[str],
    report: training.Report | None = None,
) -> dict[str, Any]:
    """Trains and tests a recipe in `directory`, or resumes an interrupted run.

    Returns:
      The content of `summary.json`. A finished run is left unchanged.

    Raises:
      ValueError: if the folder holds a run with another configuration, or another
        process trains in it.
      OSError: if it cannot be written.
    """
    run = _folder.Run(pathlib.Path(directory), name, recipe)
    _folder.check_unclaimed(run)
    path = run.directory / "summary.json"
    if not path.exists():
        # Before the folder is created: invalid settings leave none behind.
        parts = _build.build(recipe)
        start = _load_start(run, parts)
        with _folder.claimed(run):
            if start is not None:
                parts = _starting_from(start, run, parts)
            summary = _train(run, parts, report)
            if _processes.is_main_process():
                _folder.write_json(path, summary)
        _processes.wait_for_processes("summary.json is written")
    return _folder.read_summary(run)


def resume(
    directory: str | os.PathLike[str],
    *,
    steps: int | None = None,
    report: training.Report | None = None,
) -> dict[str, Any]:
    """Resumes an interrupted run, or extends a finished one by more meta-steps.

    Args:
      directory: the run folder, whose `config.json` holds the recipe.
      steps: total meta-steps; defaults to the recipe's. Schedules over the meta-steps
        (`cosine`, `curriculum`) span this number.
      report: as in `train`.

    Returns:
      The content of `summary.json`. The shorter run's is kept as
      `summary-STEPS.json`.

    Raises:
      ValueError: if the folder is not a run, another process trains in it, or `steps`
        is less than the run's.
      OSError: if it cannot be written.
    """
    run = _folder.read(directory)
    if steps is not None and steps != run.recipe.steps:
        run = _folder.extend(run, steps)
    return train(run.name, run.recipe, run.directory, report)


def _load_start(run, parts):
    """The meta-parameters to start from: the folder's copy, or the recipe's."""
    if run.recipe.start is None:
        return None
    kept = run.directory / _START
    path = kept if kept.exists() else run.recipe.start
    like = parts.like.meta_params
    if not (path / "config.json").exists():
        return training.load(path, like=like)
    other = _folder.read(path)
    start = _folder.best_meta_params(other, _build.build(other.recipe).like)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    if kinds(start) != kinds(like):
        raise ValueError(
            f"`start`, the run {path}, has meta-parameters of another model or "
            f"optimizer than this recipe's. Start from a run of {run.name}."
        )
    return start


def _starting_from(start, run, parts):
    """`parts` with these initial meta-parameters, which the folder keeps."""
    if _processes.is_main_process() and not (run.directory / _START).exists():
        training.save(run.directory / _START, start)

    def init(key):
        return parts.train_step.init(key)._replace(meta_params=start)

    return parts._replace(train_step=parts.train_step._replace(init=init))


def _train(
    run: _folder.Run, parts: _parts.Parts, report: training.Report | None
) -> dict[str, Any]:
    """Trains and tests; returns the summary."""
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
    _processes.wait_for_processes("metrics.jsonl is written")
    records = training.read_metrics(run.directory / "metrics.jsonl")
    return {
        "recipe": run.name,
        "published": recipe.published,
        "protocol": recipe.describe_protocol(),
        "test": parts.test(result.best.meta_params),
        **_test_untrained(recipe, parts),
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


def _test_untrained(recipe, parts):
    """Tests the initial meta-parameters too, to show what meta-training gained."""
    learner = getattr(recipe, "learner", None)
    if learner is None or learner.inner_steps is None:
        return {}
    initial = jax.jit(parts.train_step.init)(parts.train_key).meta_params
    return {"untrained": parts.test(initial, inductive=False)}
