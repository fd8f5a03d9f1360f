"""Functions as pytrees: what they close over becomes an argument of `jit`."""

from collections.abc import Callable
from typing import Any

from jax.tree_util import Partial

from jaxmeta import base


def as_partial(fn: Callable[..., Any]) -> Any:
    """The function as a `jax.tree_util.Partial`, whose data, if any, are leaves."""
    return fn if isinstance(fn, Partial) else Partial(fn)


def as_pytree(problem: base.OptimizationProblem) -> base.OptimizationProblem:
    """The problem, its functions `jax.tree_util.Partial` whose data are leaves."""
    return base.OptimizationProblem(*map(as_partial, problem))
