"""Checkpoints: the best and last states of a run."""

import logging
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import checkpoint_managers

from jaxmeta import base
from jaxmeta._names import named_leaves

# Orbax logs every file at INFO and WARNING; errors are raised anyway.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno >= logging.ERROR or "orbax" not in record.pathname
)


class Checkpoints(NamedTuple):
    """The checkpoints of one run: the last, and the one with the lowest `loss`."""

    manager: ocp.CheckpointManager
    directory: pathlib.Path

    def save(
        self,
        state: base.TrainState,
        loss: float = math.inf,
        unrecorded: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves `state` atomically under its step; drops older checkpoints.

        Args:
          state: the state of the run.
          loss: the validation loss, if it is the lowest so far.
          unrecorded: numbers that `Checkpoints.unrecorded` returns.

        Raises:
          OSError: if it cannot be written; earlier checkpoints are kept.
          ValueError: if orbax does not support the state.
        """
        step = int(state.step)
        try:
            self.manager.save(
                step,
                args=ocp.args.StandardSave(without_collisions(state)),
                metrics={"loss": loss} | _unrecorded(unrecorded),
            )
            self.manager.wait_until_finished()
        except Exception as error:  # Orbax wraps the system's errors in its own.
            check_savable(state)
            raise OSError(
                f"The checkpoint of step {step} could not be written to "
                f"{self.directory}: {_first_line(error)}. Earlier checkpoints are "
                "kept; free some space or make it writable, and rerun the command "
                "to resume."
            ) from error

    def last_step(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self.manager.latest_step()

    def best(self) -> tuple[int | None, float]:
        """The step with the lowest validation loss, and the loss; or None, infinity."""
        step = restored(self.manager.best_step, self.directory)
        if step is None:
            return None, math.inf
        loss = restored(lambda: self._metrics(step)["loss"], self._path(step))
        return (None, loss) if loss == math.inf else (step, loss)

    def _metrics(self, step):
        return dict(self.manager.metrics(step) or {})

    def _path(self, step):
        return self.directory / str(step)

    def unrecorded(self, step: int) -> dict[str, Any]:
        """The `unrecorded` that the checkpoint of `step` was saved with."""
        return restored(lambda: self._metrics(step)["unrecorded"], self._path(step))

    def restore(self, step: int, like: base.TrainState) -> Any:
        """Restores the checkpoint of `step`; `like` has its structure and shapes.

        Raises:
          ValueError: if it is damaged or from another model.
        """
        target = abstract(like)
        args = ocp.args.StandardRestore(without_collisions(target))
        path = self._path(step)
        check_metadata(path / "default", target, path)
        return like_tree(
            target, restored(lambda: self.manager.restore(step, args=args), path)
        )

    def close(self) -> None:
        """Releases orbax's threads."""
        self.manager.close()


def open_checkpoints(directory: str | os.PathLike[str]) -> Checkpoints:
    """Opens the checkpoints in `directory`, which is created if missing.

    Raises:
      OSError: if the folder cannot be created.
      ValueError: if a checkpoint in it is damaged.
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
    try:
        manager = ocp.CheckpointManager(directory, options=options)
    except OSError:
        raise
    except Exception as error:  # Metrics that are not JSON, or without a loss.
        raise _not_restored(directory, _first_line(error)) from error
    return Checkpoints(manager, directory)


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of `tree`; by default on the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(x):
        sharding = getattr(x, "sharding", None) or first
        return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=sharding)

    return jax.tree.map(abstract, tree)


def without_collisions(tree: Any) -> Any:
    """The tree, or a dict with unique names if orbax names of two leaves collide.

    Numbers become arrays.
    """
    named = named_leaves(tree)
    # A leading dot marks the escaped names of `named_leaves`: the trees here have
    # fields at the top, so no other name starts with one.
    if any(name.startswith(".") for name, _ in named):
        tree = dict(named)
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), tree)


def like_tree(tree: Any, stored: Any) -> Any:
    """Undoes `without_collisions`, given a tree of the same structure."""
    if jax.tree.structure(stored) == jax.tree.structure(tree):
        return stored
    leaves = [stored[name] for name, _ in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _unrecorded(numbers):
    if numbers is None:
        return {}
    return {"unrecorded": jax.tree.map(lambda x: np.asarray(x).item(), numbers)}


def check_savable(tree):
    """Raises a ValueError that names the leaf that orbax does not take."""
    for name, leaf in named_leaves(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise ValueError(
                f"Only arrays and numbers can be saved, got {type(leaf).__name__} at "
                f"{name!r}. Remove it."
            )
        if not np.size(leaf):
            raise ValueError(
                "Arrays without elements cannot be saved, got shape "
                f"{np.shape(leaf)} at {name!r}. Remove it."
            )
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jax.dtypes.prng_key) and not _is_stored(dtype):
            raise ValueError(
                f"Arrays of {dtype} cannot be saved, got one at {name!r}. Cast it."
            )


def _is_stored(dtype):
    try:
        tensorstore.dtype(dtype.name)
    except ValueError:
        return False
    return True


def check_metadata(folder, like, path):
    """Raises if the checkpoint differs in structure, shapes or dtypes.

    Orbax would cast silently, and detect wrong shapes only while reading.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        read = lambda: checkpointer.metadata(folder).item_metadata
        metadata = restored(read, path)
    if metadata is None:
        raise _not_restored(path, "it has no description")
    saved = {leaf.name: leaf for leaf in jax.tree.leaves(metadata.tree)}
    expected = {
        jax.tree_util.keystr(keys, simple=True, separator="."): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(without_collisions(like))
    }
    for name in sorted(saved.keys() | expected.keys()):
        if name not in saved or name not in expected:
            where = "only there" if name in saved else "not there"
            raise _not_restored(path, f"{name} is {where}")
        found, leaf = saved[name], expected[name]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue  # Saved as raw key data.
        if found.shape != leaf.shape:
            raise _not_restored(
                path, f"{name} has shape {found.shape}, expected {leaf.shape}"
            )
        if found.dtype != leaf.dtype:
            raise ValueError(
                f"The checkpoint {path} has {name} in {found.dtype}, expected "
                f"{leaf.dtype}. Set x64 as it was, or pass `like` with those dtypes."
            )


def restored(restore, path):
    """Restores, with one kind of error."""
    try:
        return restore()
    except Exception as error:  # Orbax raises many kinds; unify them for users.
        raise _not_restored(path, _first_line(error)) from error


def _not_restored(path, why):
    return ValueError(
        f"The checkpoint {path} cannot be restored: it is damaged or from another "
        f"model ({why}). It was left unchanged: move it away to use an earlier one."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
