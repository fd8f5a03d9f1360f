"""Saved states: best and last of a run, and meta-parameters on their own."""

import logging
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxmeta import base

# Orbax speaks of every file at INFO and WARNING; what matters is raised.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno >= logging.ERROR or "orbax" not in record.pathname
)


class Checkpoints(NamedTuple):
    """The checkpoints of one run: the last, and the one with the least `loss`."""

    manager: ocp.CheckpointManager
    directory: pathlib.Path

    def save(self, state: base.TrainState, metrics: Mapping[str, float]) -> None:
        """Saves `state` under its step, whole or not at all; drops older ones.

        Raises:
          OSError: when it cannot be written; what was saved before stays.
        """
        step = int(state.step)
        try:
            self.manager.save(
                step,
                args=ocp.args.StandardSave(state),
                metrics={"loss": _comparable(metrics.get("loss"))},
            )
            self.manager.wait_until_finished()
        except Exception as error:
            raise OSError(
                f"The checkpoint of step {step} could not be written to "
                f"{self.directory}: {_first_line(error)}. What was saved is kept; "
                "free some space and run the same command again."
            ) from error

    def last_step(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self.manager.latest_step()

    def best(self) -> tuple[int | None, float]:
        """The step with the least validation loss and that loss; None, infinity."""
        step = self.manager.best_step()
        metrics = None if step is None else self.manager.metrics(step)
        if step is None or not metrics or metrics["loss"] == math.inf:
            return None, math.inf
        return step, metrics["loss"]

    def restore(self, step: int, like: base.TrainState) -> Any:
        """Restores the checkpoint of `step`; `like` has its structure and shapes.

        Raises:
          ValueError: if it is damaged or of another model.
        """
        args = ocp.args.StandardRestore(_abstract(like))
        path = self.directory / str(step)
        return _restored(lambda: self.manager.restore(step, args=args), path)

    def close(self) -> None:
        """Releases orbax's threads."""
        self.manager.close()


def open_checkpoints(directory: str | os.PathLike[str]) -> Checkpoints:
    """Opens the checkpoints in `directory`, made when missing.

    Raises:
      OSError: if the folder cannot be made.
    """
    directory = pathlib.Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    policies = checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["loss"],
        best_mode="min",
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1
                ),
            ]
        ),
        enable_async_checkpointing=False,
    )
    return Checkpoints(ocp.CheckpointManager(directory, options=options), directory)


def save(path: str | os.PathLike[str], meta_params: base.Params) -> None:
    """Saves meta-parameters (any pytree of arrays) in a new folder `path`.

    Raises:
      ValueError: if `path` exists; nothing is ever overwritten.
      OSError: if it cannot be written.

    Example:
      >>> import jax.numpy as jnp, tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "theta"
      >>> save(path, {"w": jnp.ones(2)})
      >>> print(load(path, like={"w": jnp.zeros(2)})["w"])
      [1. 1.]
    """
    path = pathlib.Path(path).absolute()
    if path.exists():
        raise ValueError(f"`path` exists already, choose another: {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, meta_params)


def load(path: str | os.PathLike[str], *, like: base.Params) -> base.Params:
    """Loads what `save` wrote.

    Args:
      path: the folder.
      like: a pytree with the structure, shapes and dtypes to expect, say
        `learner.init(key, task)` or its `jax.eval_shape`.

    Raises:
      ValueError: if there is nothing at `path`, or it is damaged or of another model.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise ValueError(f"`path` holds no saved parameters: {path} is no folder.")
    with ocp.StandardCheckpointer() as checkpointer:
        return _restored(lambda: checkpointer.restore(path, _abstract(like)), path)


def _abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of `tree`; shapes alone go to the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(x):
        sharding = getattr(x, "sharding", None) or first
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)


def _restored(restore, path):
    try:
        return restore()
    except Exception as error:  # Orbax raises many kinds; users need one.
        raise ValueError(
            f"The checkpoint {path} cannot be restored: it is damaged or of another "
            f"model ({_first_line(error)}). It was left as it is."
        ) from error


def _comparable(loss: float | None) -> float:
    """A diverged validation is never the best, and no validation is none."""
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
