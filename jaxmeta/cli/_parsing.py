"""Parses command-line arguments into dataclasses, with one-line errors."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from typing import Any

import tyro


class UsageError(ValueError):
    """An invalid command line."""


def parse(kind: Any, argv: list[str], command: str, **options: Any) -> Any:
    """Parses with tyro; an error becomes one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=argv, prog=f"jaxmeta {command}", **options)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        # A box: its title, the message, a rule, hints.
        lines = [line.strip("│╭╮╰╯|+ ") for line in errors.getvalue().splitlines()]
        _, *lines = filter(None, lines)
        is_border = lambda line: set(line) <= {"─", "-"}
        body = itertools.dropwhile(is_border, lines)
        message = " ".join(itertools.takewhile(lambda line: not is_border(line), body))
        unknown = re.search("Unrecognized.*?(--[a-z][a-z.-]*)", message)
        if unknown:
            message = f"Unrecognized option: {unknown[1]}."
            message += _meant(unknown[1], options.get("default", kind))
        raise UsageError(f"{message} See `jaxmeta {command} --help`.") from None


def _meant(got: str, settings: Any) -> str:
    """Suggests the option whose name is closest to `got`, if any is close."""
    close = difflib.get_close_matches(got, _options(settings), n=1, cutoff=0.7)
    return f" Did you mean {close[0]}?" if close else ""


def _options(settings: Any) -> list[str]:
    """Lists the options of a dataclass and of the dataclasses nested in it."""
    names = []
    for field in dataclasses.fields(settings):
        inner = getattr(settings, field.name, None)
        is_nested = dataclasses.is_dataclass(inner)
        names += _options(inner) if is_nested else ["--" + field.name.replace("_", "-")]
    return names


def unknown(what: str, got: str, choices: Any) -> str:
    """Formats the error for an unknown word, suggesting the closest choice."""
    close = difflib.get_close_matches(got, choices, n=1)
    hint = (
        f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(choices)}."
    )
    return f"`{what}` {got!r} is unknown: {hint}"
