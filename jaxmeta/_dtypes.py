"""Dtypes: widening, numbers and arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def widen(tree: Any) -> Any:
    """Returns arrays in at least float32, where half precision is too coarse."""
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )


def is_number(x: Any) -> bool:
    """Whether `x` is a JAX or NumPy array of numbers, or a Python or NumPy number."""
    if not isinstance(
        x, bool | int | float | complex | np.generic | np.ndarray | jax.Array
    ):
        return False
    dtype = getattr(x, "dtype", type(x))
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def as_arrays(tree: Any) -> Any:
    """Returns `tree` with its numbers as JAX arrays; other leaves are unchanged.

    The arrays are strongly typed: a weakly typed Python number would change its dtype
    when updated, which breaks the carry of a scan.
    """
    convert = lambda x: jnp.asarray(x, jnp.result_type(x)) if is_number(x) else x
    return jax.tree.map(convert, tree)
