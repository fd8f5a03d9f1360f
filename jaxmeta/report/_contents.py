"""Contents of run folders."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmeta import recipes, runs


class Contents(NamedTuple):
    """Contents of one run folder."""

    run: runs.Run
    title: str  # the recipe's name, with the folder if several runs share it
    settings: Mapping[str, Any]  # dotted names
    records: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]  # empty while training


def read(directory: pathlib.Path) -> Contents:
    """Reads a run folder; raises ValueError if it has nothing to report."""
    run = runs.read(directory)
    records, summary = runs.read_records(run), runs.read_summary(run)
    settings = dict(_flat(recipes.to_json(run.recipe)))
    return Contents(run, run.name, settings, records, summary)


def _flat(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values of nested settings."""
    for name, value in part.items():
        if name in ("summary", "published", "protocol"):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
