"""What run folders say of themselves."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmeta import _json, recipes, runs


class Contents(NamedTuple):
    """What one run folder says."""

    run: runs.Run
    title: str  # the recipe's name, and the folder's where several runs share it
    settings: Mapping[str, Any]  # dotted names
    records: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]  # empty while it trains


def read(directory: pathlib.Path) -> Contents:
    """Reads a run folder; raises ValueError where there is nothing to tell of."""
    run = runs.read(directory)
    records, path = runs.read_records(run), directory / "summary.json"
    try:
        summary = _json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    settings = dict(_flat(recipes.to_json(run.recipe)))
    return Contents(run, run.name, settings, records, summary)


def _flat(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values; what a part is counts as its value."""
    for name, value in part.items():
        if name in ("summary", "published", "protocol"):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
