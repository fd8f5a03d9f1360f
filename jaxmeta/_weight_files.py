"""Weight files: safetensors, with a card in JSON beside them."""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxmeta import _archives
from jaxmeta._names import named_leaves

SUFFIX = ".safetensors"
_MAX_CARD = 2**20  # bytes

# Dtypes in files, by their safetensors names.
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}


def write(
    path: pathlib.Path, tree: Any, card: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Writes a tree to `path`, and its card beside it; see `training.save`."""
    card_path = path.with_suffix(".json")
    for taken in (path, card_path):
        if taken.exists() and not overwrite:
            raise ValueError(
                f"`path` already exists: {taken}. Choose another, or set "
                "`overwrite=True`."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: _as_array(name, leaf) for name, leaf in named_leaves(tree)}
    try:
        told = json.dumps(dict(card), indent=1) + "\n"
    except TypeError as error:
        raise ValueError(f"`card` must hold plain JSON values: {error}.") from error
    with tempfile.TemporaryDirectory(dir=path.parent) as partial:
        for target, content in (
            (path, safetensors.numpy.save(arrays)),
            (card_path, told.encode()),
        ):
            # Renaming is atomic: a crash leaves no half-written file.
            new = pathlib.Path(partial) / target.name
            new.write_bytes(content)
            os.replace(new, target)


def read(path: pathlib.Path, *, like: Any) -> Any:
    """Reads a tree, in the dtypes of `like`; see `training.load`."""
    arrays = read_arrays(path)
    named = named_leaves(like)
    describe = lambda x: (np.shape(x), _kind(jnp.result_type(x)))
    expected = {name: describe(leaf) for name, leaf in named}
    found = {name: describe(array) for name, array in arrays.items()}
    if found != expected:
        raise ValueError(
            f"`path` does not match this architecture: {path} has {found}, expected "
            f"{expected}."
        )
    leaves = [jnp.asarray(arrays[name], jnp.result_type(leaf)) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_finite(path: str | os.PathLike[str], tree: Any, hint: str = "") -> None:
    """Raises ValueError if a tree that was read from `path` has NaN or infinities."""
    is_bad = lambda x: (
        jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.all(jnp.isfinite(x))
    )
    if bad := [name for name, leaf in named_leaves(tree) if is_bad(leaf)]:
        message = f"`path` holds values that are not finite, at {bad}: {path}. {hint}"
        raise ValueError(message.rstrip())


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file, safetensors or .npz, by name."""

    def parse():
        if path.suffix == ".npz":
            return _archives.read_npz(path, max_bytes=_archives.MAX_BYTES)
        return _parse(path.read_bytes())

    return _checked(path, path, parse)


def read_card(path: pathlib.Path) -> dict[str, Any]:
    """Reads the card beside `path`; empty if there is none."""
    card_path = path.with_suffix(".json")
    if path.exists() and not card_path.exists():
        return {}

    def parse():
        if (size := card_path.stat().st_size) > _MAX_CARD:
            raise ValueError(f"{size:,} bytes; a card has at most {_MAX_CARD:,}")
        card = json.loads(card_path.read_text())
        if not isinstance(card, dict):
            raise ValueError(f"a card is an object, not {type(card).__name__}")
        return card

    return _checked(path, card_path, parse)


def _checked(path, reading, read):
    try:
        return read()
    except FileNotFoundError as error:
        raise ValueError(f"`path` holds no weights: there is no {path}.") from error
    # Of safetensors, JSON that is nested too deeply, and others.
    except Exception as error:
        raise ValueError(f"`path` is damaged: {reading} ({error}).") from error


def _as_array(name, leaf):
    """The leaf as a storable array, or a ValueError that names it."""
    dtype = jnp.result_type(leaf) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    known = [np.dtype(x) for x in _DTYPES.values()]
    if dtype not in known:
        raise ValueError(
            f"`meta_params` must hold arrays of {', '.join(x.name for x in known)} in "
            f"a file, got {dtype} at {name!r}. Cast it, or save to a folder."
        )
    return np.asarray(leaf)


def _parse(content):
    """The arrays in a file; safetensors' NumPy reader does not support bfloat16."""
    return {
        name: np.frombuffer(saved["data"], _DTYPES[saved["dtype"]]).reshape(
            saved["shape"]
        )
        for name, saved in safetensors.deserialize(content)
    }


def _kind(dtype):
    """Float, complex, integer or boolean; loading casts within a kind."""
    kinds = jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_
    return next(k.__name__ for k in kinds if jnp.issubdtype(dtype, k))
