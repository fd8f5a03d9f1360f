"""Unique names of a pytree's leaves, for files."""

from typing import Any

import jax


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    r"""Pairs (name, leaf), with names such as "layers.0.kernel".

    If two names would clash, as in `{"a.b": x, "a": {"b": y}}`, or one is reserved in
    safetensors files, all names get a leading dot and the dots in keys are escaped:
    ".a\.b" and ".a.b".

    Raises:
      ValueError: if keys differ only in type, such as 0 and "0".

    Example:
      >>> named_leaves({"a": [1, 2], "b": 3})
      [('a.0', 1), ('a.1', 2), ('b', 3)]
      >>> print(*(name for name, _ in named_leaves({"a.b": 1, "a": {"b": 2}})))
      .a.b .a\.b
    """
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
    except ValueError as error:  # JAX sorts the keys of a dict.
        raise ValueError(f"Keys of a dict must have one type ({error}).") from error
    plain = [_join(path) for path, _ in leaves]
    if len(set(plain)) == len(plain) and "__metadata__" not in plain:
        return [(name, leaf) for name, (_, leaf) in zip(plain, leaves, strict=True)]
    named = {"".join(map(_escaped, path)): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError(
            f"Keys of a dict must differ by more than their types, got leaves {plain}. "
            "Rename them."
        )
    return list(named.items())


def _join(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _escaped(key):
    return "." + _join((key,)).replace("\\", "\\\\").replace(".", "\\.")
