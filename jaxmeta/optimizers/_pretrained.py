"""Learned optimizers that ship with the package."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from jaxmeta import _weight_files, base
from jaxmeta.optimizers import _lstm, _preprocess, _rnnprop

_FOLDER = pathlib.Path(__file__).parent / "weights"

# The family each was meta-trained in.
_PRETRAINED: dict[str, Callable[[], base.LearnedOptimizer]] = {
    "lstm-quadratic": lambda: _lstm.lstm(
        preprocess=_preprocess.scaled_gradient(), output_scale=1.0
    ),
    "lstm-mlp": _lstm.lstm,
    "rnnprop-mlp": _rnnprop.rnnprop,
}


class Pretrained(NamedTuple):
    """Meta-trained weights that ship with the package."""

    lopt: base.LearnedOptimizer
    theta: Any
    card: Mapping[str, Any]  # how trained, on what, where it works and where it fails


def pretrained(name: str) -> optax.GradientTransformationExtraArgs:
    """Returns a complete meta-trained optimizer, like `optax.adam(1e-3)`.

    Args:
      name: "lstm-mlp", for some hundred updates of small networks;
        "rnnprop-mlp", slower at first but stable for longer, also with ReLU; or
        "lstm-quadratic", for quadratics in ten dimensions.
        `load_pretrained(name).card` says how they were trained, and where they fail.

    Raises:
      ValueError: if `name` is unknown.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), pretrained("lstm-mlp"))
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> bool((updates < 0).all())
      True
    """
    found = load_pretrained(name)
    return found.lopt.transform(found.theta)


def load_pretrained(name: str) -> Pretrained:
    """Returns a meta-trained optimizer's family, weights and card, e.g. to fine-tune.

    Args:
      name: as in `pretrained`.

    Raises:
      ValueError: if `name` is unknown.

    Example:
      >>> sorted(load_pretrained("lstm-mlp").card)[:2]
      ['fails', 'name']
    """
    if name not in _PRETRAINED:
        choices = ", ".join(map(repr, _PRETRAINED))
        raise ValueError(f"`name` must be one of {choices}, got {name!r}.")
    lopt = _PRETRAINED[name]()
    like = jax.eval_shape(lopt.init, jax.random.key(0))
    path = _FOLDER / f"{name}.safetensors"
    theta = _weight_files.read(path, like=like)
    card = _weight_files.read_card(path)
    return Pretrained(lopt, theta, card)
