"""Meta-parameters in a file or a folder of their own."""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp

from jaxmeta import _processes, _weight_files, base
from jaxmeta.training import _checkpoint


def save(
    path: str | os.PathLike[str],
    meta_params: base.Params,
    card: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Saves meta-parameters, or any pytree of arrays.

    Args:
      path: a file `*.safetensors`, which other libraries read too; or the name of a
        folder, which orbax writes: it takes PRNG keys, and arrays whose parts lie in
        several processes. Missing parents are created.
      meta_params: the pytree, a learned optimizer's theta for example.
      card: what users should know, plain JSON values; for a file, in `*.json` beside
        it.
      overwrite: replace what an earlier `save` wrote to `path`, once the new one is
        written.

    Raises:
      ValueError: if `path` exists and `overwrite` is false, or it was not written by
        `save`; if a leaf has a type that the format does not have, or, in a folder, no
        elements; if two leaves have the same name; if the card does not hold plain
        JSON values, or is given for a folder.
      OSError: if it cannot be written.

    Example:
      >>> import jax.numpy as jnp, tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.safetensors"
      >>> save(path, {"w": jnp.ones(2)}, {"trained on": "nothing"})
      >>> print(load(path, like={"w": jnp.zeros(2)})["w"], load_card(path))
      [1. 1.] {'trained on': 'nothing'}
    """
    path = pathlib.Path(path).absolute()
    if path.suffix == _weight_files.SUFFIX:
        if _processes.is_main_process():
            _weight_files.write(path, meta_params, card or {}, overwrite=overwrite)
        return
    if card is not None:
        raise ValueError(f"`card` is for files *.safetensors, got the folder {path}.")
    exists = path.exists()
    if exists and not overwrite:
        raise ValueError(
            f"`path` already exists: {path}. Choose another, or set `overwrite=True`."
        )
    if exists and not (path / "_CHECKPOINT_METADATA").is_file():
        raise ValueError(f"`path` was not written by `save`, choose another: {path}.")
    _checkpoint.check_savable(meta_params)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f"{path.name}.{x}") for x in ("new", "old"))
    with ocp.StandardCheckpointer() as checkpointer:
        # In a dict, since orbax does not support a bare array.
        tree = _checkpoint.without_collisions({"meta_params": meta_params})
        checkpointer.save(new if exists else path, tree, force=exists)
    # The old folder is removed only once the new one is in its place.
    if exists and _processes.is_main_process():
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old)


def load(
    path: str | os.PathLike[str], *, like: base.Params, allow_nonfinite: bool = False
) -> base.Params:
    """Loads what `save` wrote.

    Args:
      path: the file or folder.
      like: a pytree with the expected structure, shapes and dtypes, e.g.
        `learner.init(key, task)`, `lopt.init(key)` or its `jax.eval_shape`. Weights in
        a file are cast to its dtypes, floats to floats; those in a folder must have
        them.
      allow_nonfinite: whether NaN and infinity may be among them.

    Raises:
      ValueError: if `path` does not exist, is damaged or from another model, or holds
        values that are not finite.
    """
    loaded = _load(path, like)
    if not allow_nonfinite:
        _weight_files.check_finite(
            path, loaded, "If they are meant, set `allow_nonfinite=True`."
        )
    return loaded


def _load(path, like):
    path = pathlib.Path(path).absolute()
    if path.suffix == _weight_files.SUFFIX:
        return _weight_files.read(path, like=like)
    if not path.is_dir():
        raise ValueError(
            f"`path` holds no saved parameters: {path} is neither a folder nor named "
            "*.safetensors."
        )
    target = _checkpoint.abstract({"meta_params": like})
    with ocp.StandardCheckpointer() as checkpointer:
        _checkpoint.check_metadata(path, target, path)
        stored = _checkpoint.without_collisions(target)
        saved = _checkpoint.restored(lambda: checkpointer.restore(path, stored), path)
    return _checkpoint.like_tree(target, saved)["meta_params"]


def load_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads the card that `save` wrote beside a file; empty if there is none.

    Raises:
      ValueError: if `path` is no file `*.safetensors`, or the card is damaged.
    """
    path = pathlib.Path(path)
    if path.suffix != _weight_files.SUFFIX:
        raise ValueError(f"`path` must be a file *.safetensors, got {path}.")
    return _weight_files.read_card(path)
