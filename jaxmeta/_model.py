"""Brings every kind of model to the one form that learners call."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmeta import base


class NormalModel(NamedTuple):
    """A model whose `apply` takes `key=` and `train=`, whatever the user's takes."""

    init: Callable[..., base.Params]
    apply: Callable[..., base.PyTree]
    with_statistics: Callable[[base.Params, base.PyTree], base.Params]


def normalize(model: base.ModelLike) -> NormalModel:
    """Returns `model` in the form that learners call.

    Raises:
      ValueError: if `model` lacks `init` or `apply`.
    """
    if isinstance(model, type):
        raise ValueError(
            f"`model` must be made, got the class {model.__name__}: "
            f"`{model.__name__}(...)`. A flax.nnx Module goes in through "
            "`jaxmeta.models.from_nnx`."
        )
    for name in ("init", "apply"):
        if not callable(getattr(model, name, None)):
            raise ValueError(
                "`model` must have callable `init` and `apply`, got "
                f"{type(model).__name__} without `{name}`. Plain functions go in as "
                "`jaxmeta.Model(init, apply)`; a flax.nnx Module through "
                "`jaxmeta.models.from_nnx`."
            )
    accepted = _accepted_names(model.apply)
    if callable(model) and "train" not in accepted:
        _check_modes(model)

    def apply(params, inputs, *, key=None, train=False):
        options: dict[str, Any] = {"key": key, "train": train}
        options = {name: options[name] for name in accepted}
        return model.apply(params, inputs, **options)

    with_statistics = getattr(model, "with_statistics", None)
    return NormalModel(model.init, apply, with_statistics or (lambda params, _: params))


def _check_modes(module):
    """Raises if a flax module has a mode that nobody would set."""
    from jaxmeta.models import _modes  # Not above: it needs flax.

    modes = sorted(_modes.accepted_modes(module))
    if modes:
        raise ValueError(
            f"`model`'s `__call__` takes {modes}, which learners cannot set on "
            f"{type(module).__name__} itself. Wrap it: "
            "`jaxmeta.models.from_linen(module)`."
        )


def _accepted_names(apply: Callable[..., Any]) -> tuple[str, ...]:
    """Which of `key` and `train` the signature names; `**kwargs` does not count."""
    try:
        names = inspect.signature(apply).parameters
    except (TypeError, ValueError):  # Some callables hide their signature.
        return ()
    return tuple(name for name in ("key", "train") if name in names)
