"""Weight files of learned optimizers: safetensors, with a card in JSON."""

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from jaxmeta import base
from jaxmeta._names import named_leaves
from jaxmeta.optimizers import _lstm, _preprocess, _rnnprop

_FOLDER = pathlib.Path(__file__).parent / "weights"

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

# The family each was meta-trained in.
_PRETRAINED: dict[str, Callable[[], base.LearnedOptimizer]] = {
    "lstm-quadratic": lambda: _lstm.lstm(
        preprocess=_preprocess.scaled_gradient(), output_scale=1.0
    ),
    "lstm-mlp": _lstm.lstm,
    "rnnprop-mlp": _rnnprop.rnnprop,
}


class Pretrained(NamedTuple):
    """Meta-trained weights that ship with the package."""

    lopt: base.LearnedOptimizer
    theta: Any
    card: Mapping[str, Any]  # how trained, on what, where it works and where it fails


def pretrained(name: str) -> optax.GradientTransformationExtraArgs:
    """Returns a complete meta-trained optimizer, like `optax.adam(1e-3)`.

    Args:
      name: "lstm-mlp", for some hundred updates of small networks;
        "rnnprop-mlp", slower at first but stable for longer, also with ReLU; or
        "lstm-quadratic", for quadratics in ten dimensions.
        `load_pretrained(name).card` says how they were trained, and where they fail.

    Raises:
      ValueError: if `name` is unknown.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), pretrained("lstm-mlp"))
      >>> params = jnp.ones(3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> bool((updates < 0).all())
      True
    """
    found = load_pretrained(name)
    return found.lopt.transform(found.theta)


def load_pretrained(name: str) -> Pretrained:
    """Returns a meta-trained optimizer's family, weights and card, e.g. to fine-tune.

    Args:
      name: as in `pretrained`.

    Raises:
      ValueError: if `name` is unknown.

    Example:
      >>> sorted(load_pretrained("lstm-mlp").card)[:2]
      ['fails', 'name']
    """
    if name not in _PRETRAINED:
        choices = ", ".join(map(repr, _PRETRAINED))
        raise ValueError(f"`name` must be one of {choices}, got {name!r}.")
    lopt = _PRETRAINED[name]()
    like = jax.eval_shape(lopt.init, jax.random.key(0))
    path = _FOLDER / f"{name}.safetensors"
    theta, card = load(path, like=like)
    return Pretrained(lopt, theta, card)


def save(
    path: str | os.PathLike[str], theta: Any, card: Mapping[str, Any] | None = None
) -> None:
    """Saves a theta in a new file `path`, and `card` next to it as JSON.

    Args:
      path: must end in ".safetensors".
      theta: a pytree of arrays of integers, booleans, complex64, or floats with 8 to 64
        bits.
      card: information for users.

    Raises:
      ValueError: if `path` has another suffix or exists (nothing is overwritten); if a
        leaf has another dtype, or two have the same name; or if the card does not hold
        plain JSON values.
      OSError: if it cannot be written.

    Example:
      >>> import jax.numpy as jnp, pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.safetensors"
      >>> save(path, {"w": jnp.ones(2)}, {"trained on": "nothing"})
      >>> theta, card = load(path, like={"w": jnp.zeros(2)})
      >>> print(theta["w"], card["trained on"])
      [1. 1.] nothing
    """
    path = _checked(path)
    card_path = path.with_suffix(".json")
    for taken in (path, card_path):
        if taken.exists():
            raise ValueError(f"`path` already exists, choose another: {taken}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: _as_array(name, leaf) for name, leaf in named_leaves(theta)}
    try:
        told = json.dumps(dict(card or {}), indent=1) + "\n"
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


def load(path: str | os.PathLike[str], *, like: Any) -> tuple[Any, Mapping[str, Any]]:
    """Loads a theta and card written by `save`.

    Args:
      path: the file.
      like: a theta with the expected structure and shapes, e.g. `lopt.init(key)` or its
        `jax.eval_shape`.

    Returns:
      Theta, in the dtypes of `like`, and the card.

    Raises:
      ValueError: if the file does not exist, is damaged or does not match this
        architecture.
    """
    reading = path = _checked(path)
    try:
        arrays = _parse(path.read_bytes())
        reading = path.with_suffix(".json")
        card = json.loads(reading.read_text()) if reading.exists() else {}
        if not isinstance(card, dict):
            raise ValueError(f"a card is an object, not {type(card).__name__}")
    except FileNotFoundError as error:
        raise ValueError(f"`path` holds no weights: there is no {path}.") from error
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"`path` is damaged: {reading} ({error}).") from error
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
    return jax.tree.unflatten(jax.tree.structure(like), leaves), card


def _as_array(name, leaf):
    """The leaf as a storable array, or a ValueError that names it."""
    dtype = jnp.result_type(leaf) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    known = [np.dtype(x) for x in _DTYPES.values()]
    if dtype not in known:
        raise ValueError(
            f"`theta` must hold arrays of {', '.join(x.name for x in known)}, got "
            f"{dtype} at {name!r}. Cast it; for PRNG keys save `jax.random.key_data`."
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


def _checked(path):
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"`path` must end in .safetensors, got {path}.")
    return path
