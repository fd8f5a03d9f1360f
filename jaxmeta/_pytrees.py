"""Functions as pytrees: their data become arguments of `jit`, not constants."""

from collections.abc import Callable
from typing import Any

from jax.tree_util import Partial

from jaxmeta import base


def as_partial(fn: Callable[..., Any]) -> Any:
    """The function as a `jax.tree_util.Partial`; its bound data are leaves."""
    return fn if isinstance(fn, Partial) else Partial(fn)


def as_pytree(problem: base.OptimizationProblem) -> base.OptimizationProblem:
    """The problem with its functions as `jax.tree_util.Partial`."""
    sample, init, loss, full_loss = problem
    return base.OptimizationProblem(
        as_partial(sample),
        as_partial(init),
        as_partial(loss),
        None if full_loss is None else as_partial(full_loss),
    )
