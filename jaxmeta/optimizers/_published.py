"""Weights as the authors of learned optimizers publish them: flax's msgpack."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _weight_files, base
from jaxmeta.optimizers import _coordinates

_Theta = TypeVar("_Theta")


def read(
    path: str | os.PathLike[str],
    whose: str,
    parse: Callable[[dict[str, Any]], tuple[_Theta, base.LearnedOptimizer]],
) -> tuple[_Theta, base.LearnedOptimizer]:
    """Reads a file; raises ValueError if it does not have this optimizer's weights.

    Args:
      path: the file.
      whose: the optimizer's name, for errors.
      parse: `(tree) -> (theta, optimizer)`; it may raise whatever `tree` lacks.
    """
    from flax import serialization

    try:
        tree = dict(serialization.msgpack_restore(pathlib.Path(path).read_bytes()))
        theta, lopt = parse(tree)
    except Exception as error:
        raise ValueError(
            f"`path` must be a file with {whose}'s weights, got {path}: {error!r}"
        ) from error
    _checks.check_like("path", theta, jax.eval_shape(lopt.init, jax.random.key(0)))
    _weight_files.check_finite(path, theta)
    return theta, lopt


def linear(layer: Mapping[str, Any]) -> _coordinates.Linear:
    """A layer, as haiku names its weights."""
    return _coordinates.Linear(jnp.asarray(layer["w"]), jnp.asarray(layer["b"]))
