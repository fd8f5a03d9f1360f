"""Settings: dataclasses whose options are those of the factory they build with."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import tyro

T = TypeVar("T", bound=type)


class Settings:
    """What the classes made by `settings` share."""

    factory: ClassVar[Any] = None
    options: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # Type checkers do not see fields read from signatures.
        __dataclass_fields__: ClassVar[dict[str, Any]]

        def __init__(self, *args: Any, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    def build(self, *args: Any, **more: Any) -> Any:
        """Calls the factory with the options set here."""
        return self.factory(*args, **self.chosen(), **more)

    def chosen(self) -> dict[str, Any]:
        """The options of the factory, as set here."""
        return {name: getattr(self, name) for name in self.options}


def settings(
    factory: Callable[..., Any] | None = None, *options: str, **defaults: Any
) -> Callable[[T], T]:
    """Makes a class a frozen dataclass with some of a factory's options as fields.

    Types, defaults and help come from the factory's signature and docstring. Fields of
    the class body follow them.

    Args:
      factory: what `Settings.build` calls; None is that of the class's base.
      *options: names of its parameters.
      **defaults: more of them with defaults of their own, or new defaults of fields
        that the class inherits.
    """

    def wrap(cls: T) -> T:
        inherited = {
            field.name: field
            for base in cls.__mro__[1:]
            for field in getattr(base, "__dataclass_fields__", {}).values()
        }
        annotations = {}
        parameters = {} if factory is None else inspect.signature(factory).parameters
        help_of = {} if factory is None else _arguments(factory)
        hints = {} if factory is None else typing.get_type_hints(factory)
        own = [name for name in (*options, *defaults) if name not in inherited]
        for name in own:
            default = defaults.get(name, parameters[name].default)
            kind = _kind(hints[name], default)
            about = tyro.conf.arg(help=help_of[name])
            annotations[name] = Annotated[kind, about]
            setattr(cls, name, default)
        for name in inherited.keys() & defaults.keys():
            annotations[name] = inherited[name].type
            setattr(cls, name, defaults[name])
        cls.__annotations__ = annotations | inspect.get_annotations(cls)
        if factory is not None:
            cls.factory = staticmethod(factory)
            cls.options = tuple(own)
        return dataclasses.dataclass(frozen=True)(cls)

    return wrap


def _kind(hint: Any, default: Any) -> Any:
    """The type of an option on the command line: arrays are given as numbers."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    simple = (bool, int, float, str, type(None))
    if all(p in simple or typing.get_origin(p) is Literal for p in parts):
        return hint
    return type(default)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _arguments(factory: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> its first sentence in the docstring (Google style)."""
    doc = inspect.getdoc(factory) or ""
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", doc, re.S | re.M)
    entries = re.finditer(
        r"^  (\w+): (.*?)(?=^  [\w*]|\Z)", section[1] if section else "", re.S | re.M
    )
    # Math and cross-references as plain text; "Static." is for those who trace.
    plain = lambda text: re.sub(r":\w+:`\\?(.*?)`", r"\1", " ".join(text.split()))
    first = lambda text: re.split(r"(?<=[a-z0-9)])\. (?=[A-Z])", text)[0].rstrip(".")
    found = {e[1]: first(plain(e[2]).replace(" Static.", "")) + "." for e in entries}
    return {name: text[:1].upper() + text[1:] for name, text in found.items()}
