"""Learned optimizers that ship with the package."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from jaxmeta import _weight_files, base
from jaxmeta.optimizers import _learned_adam, _lstm, _preprocess, _rnnprop

_FOLDER = pathlib.Path(__file__).parent / "weights"

# The family each was meta-trained in.
_PRETRAINED: dict[str, Callable[[], base.LearnedOptimizer]] = {
    "lstm-quadratic": lambda: _lstm.lstm(
        preprocess=_preprocess.scaled_gradient(), output_scale=1.0
    ),
    "lstm-mlp": _lstm.lstm,
    "rnnprop-mlp": _rnnprop.rnnprop,
    "general": _learned_adam.learned_adam,
}


class Pretrained(NamedTuple):
    """Meta-trained weights that ship with the package."""

    lopt: base.LearnedOptimizer
    theta: Any
    card: Mapping[str, Any]  # how trained, on what, where it works and where it fails


def pretrained(
    name: str,
    *,
    total_steps: int | jax.Array | None = None,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Returns a complete meta-trained optimizer, like `optax.adam(1e-3)`.

    Args:
      name: "general", for networks of any kind and 100 to several thousand updates:
        `learned_adam`, which decays its own rate over `total_steps`. The others are the
        papers', for what they were trained on: "lstm-mlp", for some hundred updates of
        small sigmoid networks; "rnnprop-mlp", slower at first but stable for longer,
        also with ReLU; "lstm-quadratic", for quadratics in ten dimensions.
        `load_pretrained(name).card` says how they were trained, and where they fail.
      total_steps: planned updates, which "general" requires.
      weight_decay: of "general", as in AdamW.

    Raises:
      ValueError: if `name` is unknown, "general" is not told `total_steps`, or another
        is told one of its options.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = pretrained("general", total_steps=1000)
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> bool((updates < 0).all())
      True
    """
    found = load_pretrained(name)
    if name != "general":
        if total_steps is not None or weight_decay:
            raise ValueError(
                "`total_steps` and `weight_decay` are options of 'general', not of "
                f"{name!r}."
            )
        return found.lopt.transform(found.theta)
    if total_steps is None:
        raise ValueError(
            "`total_steps`, the number of updates that are planned, is required for "
            f"{name!r}: its rate decays over them."
        )
    lopt = _learned_adam.learned_adam(total_steps, weight_decay=weight_decay)
    return lopt.transform(found.theta)


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
