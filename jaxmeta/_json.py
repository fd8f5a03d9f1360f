"""Standard JSON: non-finite numbers are written as null."""

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON; NaN and infinities become null."""
    return json.dumps(_map(_to_null, value), indent=indent, allow_nan=False)


def loads(text: str) -> Any:
    """Parses the output of `dumps`; null becomes NaN.

    Raises:
      ValueError: if it is not JSON, or nested too deeply.
    """
    try:
        return _map(lambda x: math.nan if x is None else x, json.loads(text))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _to_null(value: Any) -> Any:
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if is_finite else None


def _map(fn: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(fn, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map(fn, item) for item in value]
    return fn(value)
