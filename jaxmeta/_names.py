"""Names of a tree's leaves in files: a leaf has one, and no other has it."""

from typing import Any

import jax


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    r"""Pairs of a leaf's name, such as "layers.0.kernel", and the leaf.

    Where two names would be the same, as in `{"a.b": x, "a": {"b": y}}`, or one is
    reserved in safetensors' files, all have a dot in front and the dots of their keys
    escaped: ".a\.b" and ".a.b".

    Raises:
      ValueError: if keys differ in type alone, such as 0 and "0".

    Example:
      >>> named_leaves({"a": [1, 2], "b": 3})
      [('a.0', 1), ('a.1', 2), ('b', 3)]
      >>> print(*(name for name, _ in named_leaves({"a.b": 1, "a": {"b": 2}})))
      .a.b .a\.b
    """
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
    except ValueError as error:  # JAX sorts the keys of a dict.
        raise ValueError(f"Keys of a dict must be of one type ({error}).") from error
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
