"""Converts every kind of model to the one interface that learners call."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from jaxmeta import _checks, _dtypes, _modes, base

_ADAPTERS = (
    "Wrap a flax.nnx Module with `jaxmeta.models.from_nnx`, an Equinox module with "
    "`from_equinox`."
)


class ApplyFn(Protocol):
    """Applies a model."""

    def __call__(
        self,
        params: base.Params,
        inputs: base.PyTree,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> base.PyTree:
        """Returns outputs [N, ...] for inputs [N, ...]."""
        ...


class NormalModel(NamedTuple):
    """A model whose `apply` takes `key=` and `train=`, whether the user's does or not.

    Its `init` returns floating-point arrays or raises.
    """

    init: Callable[[jax.Array, base.PyTree], base.Params]
    apply: ApplyFn
    with_support_statistics: Callable[[base.Params, base.PyTree], base.Params]


def normalize(model: base.ModelLike) -> NormalModel:
    """Returns `model` with the interface that learners call.

    Raises:
      ValueError: if `model` lacks `init` or `apply`, or keeps state.
    """
    _check_is_model(model)
    names = _parameter_names(model.apply)
    if callable(model) and "train" not in names:
        _check_modes(model)
    # Haiku's order, `apply(params, rng, inputs)`; names[:2] are passed by position.
    key_is_second = names[1:2] in (["rng"], ["key"])
    accepted = {"key", "train"} & set(names) - set(names[:2])
    init_accepts = {"train"} & set(_parameter_names(model.init)[2:])

    def init(key, inputs):
        params = model.init(key, inputs, **dict.fromkeys(init_accepts, True))
        if params is None:
            raise ValueError("`init` of the model must return parameters, got None.")
        params = _dtypes.as_arrays(params)
        _checks.check_params(params)
        return params

    def apply(params, inputs, *, key=None, train=False):
        options: dict[str, Any] = {"key": key, "train": train}
        options = {name: options[name] for name in accepted}
        if not key_is_second:
            return model.apply(params, inputs, **options)
        try:
            return model.apply(params, key, inputs, **options)
        except Exception as error:
            if key is not None or type(error).__name__ != "MissingRNGError":
                raise
            raise ValueError(
                "`model` draws random numbers in predictions too, which have no key. "
                "Give the haiku-transformed function a `train` argument, and draw only "
                "if it is true."
            ) from error

    with_support_statistics = getattr(model, "with_support_statistics", None)
    return NormalModel(
        init, apply, with_support_statistics or (lambda params, _: params)
    )


def _check_is_model(model):
    """Raises unless `model` has a stateless pair of `init` and `apply`."""
    if isinstance(model, type):
        raise ValueError(
            f"`model` must be an instance, got the class {model.__name__}: "
            f"`{model.__name__}(...)`. {_ADAPTERS}"
        )
    for name in ("init", "apply"):
        if not callable(getattr(model, name, None)):
            raise ValueError(
                "`model` must have callable `init` and `apply`, got "
                f"{type(model).__name__} without `{name}`. Wrap plain functions in "
                f"`jaxmeta.Model(init, apply)`. {_ADAPTERS}"
            )
    if _parameter_names(model.apply)[1:2] == ["state"]:
        raise ValueError(
            f"`model` must be stateless, got {type(model).__name__}, whose `apply` "
            "takes `state`. Use `haiku.transform` and layers without running averages, "
            "or a flax module with `jaxmeta.models.from_linen`."
        )


def _check_modes(module):
    """Raises if a flax module has a mode that learners would not set."""
    modes = sorted(_modes.accepted_modes(module))
    if modes:
        raise ValueError(
            f"`model`'s `__call__` takes {modes}, which learners cannot set on "
            f"{type(module).__name__} itself. Wrap it: "
            "`jaxmeta.models.from_linen(module)`."
        )


def _parameter_names(function: Callable[..., Any]) -> list[str]:
    """The parameter names in a function's signature."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # Some callables hide their signature.
        return []
