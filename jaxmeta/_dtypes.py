"""Precisions."""

from typing import Any

import jax
import jax.numpy as jnp


def widen(tree: Any) -> Any:
    """Returns arrays in at least float32, for what half precision would spoil."""
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )
