"""One-line descriptions of factory results: the call that made them."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

_LONGEST = 80  # Characters of one argument.


def describe(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Returns the call of `factory` as text, without arguments at their defaults.

    Args:
      factory: a function; its signature orders the arguments.
      arguments: name -> value, `locals()` on the factory's first line; names not in the
        signature are ignored.

    Example:
      >>> def learner(model, loss, *, inner_tx, inner_steps, scale=1.0): ...
      >>> import jax.numpy as jnp, jaxmeta as jm
      >>> print(describe(learner, {
      ...     "model": jm.models.MLP([40, 1]), "loss": jm.losses.squared_error,
      ...     "inner_tx": optax.adam(0.1), "inner_steps": 1, "scale": jnp.ones(3)}))
      learner(MLP([40, 1]), squared_error, inner_tx=<scale_by_adam, scale>, \
inner_steps=1, scale=float32[3])
    """
    shown = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in arguments or _is_same(arguments[name], parameter.default):
            continue
        value = _shorten(_text(arguments[name]))
        keyword = parameter.kind is parameter.KEYWORD_ONLY
        is_plain = isinstance(arguments[name], bool | int | float | str | None)
        # Numbers need their name to be readable; models and losses do not.
        shown.append(f"{name}={value}" if keyword or is_plain else value)
    return f"{factory.__name__}({', '.join(shown)})"


def _is_same(value: Any, default: Any) -> bool:
    """Whether an argument is its default, without comparing arrays."""
    plain = bool | int | float | str | tuple
    return value is default or (
        isinstance(default, plain) and type(value) is type(default) and value == default
    )


def _text(value: Any) -> str:
    """One argument, in one line."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, optax.GradientTransformation):
        return f"<{', '.join(_rules(value.update)) or 'identity'}>"
    if "__repr__" in vars(type(value)) and hasattr(value, "description"):
        return repr(value)  # A learner or a learned rule.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _call(
            type(value),
            {f.name: getattr(value, f.name) for f in _shown_fields(value)},
            {f.name: f.default for f in _shown_fields(value)},
        )
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        values = dict(zip(fields, value, strict=True))
        return _call(type(value), values, getattr(value, "_field_defaults", {}))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        items = ", ".join(map(_text, value))
        is_list = isinstance(value, list)
        return f"[{items}]" if is_list else f"({items}{',' * (len(value) == 1)})"
    if callable(value):
        return _name(value)
    return " ".join(repr(value).split())


def _call(kind: type, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """A model or another record; fields without a default are shown positionally."""
    shown = [
        f"{name}={_text(value)}" if _has_default(defaults, name) else _text(value)
        for name, value in values.items()
        if not (name in defaults and _is_same(value, defaults[name]))
    ]
    return f"{kind.__name__}({', '.join(shown)})"


def _has_default(defaults, name):
    return defaults.get(name, dataclasses.MISSING) is not dataclasses.MISSING


def _shown_fields(value):
    # flax modules have `name` and `parent` as fields; `parent` has repr=False.
    return [f for f in dataclasses.fields(value) if f.repr and f.name != "name"]


def _name(fn: Callable[..., Any]) -> str:
    """A function's name; for a partial, that of the wrapped function."""
    fn = getattr(fn, "func", fn)
    return getattr(fn, "__name__", None) or f"<{type(fn).__name__}>"


def _rules(update: Callable[..., Any]) -> list[str]:
    """The rules in a chain, named after the factories that closed over `update`."""
    names: Any = getattr(getattr(update, "__code__", None), "co_freevars", ())
    cells: Any = getattr(update, "__closure__", None) or ()
    closed = dict(zip(names, cells, strict=False))
    name = getattr(update, "__qualname__", type(update).__name__).split(".")[0]
    if name == "chain" and "update_fns" in closed:
        chained = closed["update_fns"].cell_contents
        return [rule for fn in chained for rule in _rules(fn)]
    if name == "with_extra_args_support" and "tx" in closed:
        return _rules(closed["tx"].cell_contents.update)
    return [] if name == "identity" else [name]


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
