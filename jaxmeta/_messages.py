"""Rewrites JAX's and optax's errors about derivatives in terms of learners."""

import contextlib
from collections.abc import Iterator

_FORWARD_MODE = (
    "`jax.jvp`, `jax.jacfwd` and `jax.hessian` cannot differentiate through this inner "
    "loop, whose Hessian-vector products are forward over reverse. Use reverse mode "
    '(`jax.grad`, `jax.jacrev`), or a learner with hvp="reverse-over-reverse".'
)
_NO_FORWARD_MODE = (
    'hvp="forward-over-reverse" needs forward-mode derivatives, but the model or loss '
    "has a `jax.custom_vjp` without them. Leave `hvp` at its default or choose "
    '"reverse-over-reverse".'
)
_NO_REVERSE_MODE = (
    "The model, the loss or the inner rule has an operation whose derivative cannot be "
    "differentiated again in reverse mode, such as a `while_loop` or `fori_loop` of "
    "unknown length (ODE solvers, fixed points). Exact second order requires it. "
    "Choose `first_order=True` (`second_order=False` in estimators), give the "
    "operation a `jax.custom_vjp` whose rule is differentiable, or use `jax.lax.scan`."
)
_MORE_ARGUMENTS = (
    "`inner_tx` needs more than gradients and the loss (`value`): {error}. Line "
    "searches (`optax.lbfgs`) cannot be differentiated through; use a plain chain such "
    "as `optax.sgd` or `jaxmeta.optimizers.adam`."
)


@contextlib.contextmanager
def explain_forward_mode(model: bool = False) -> Iterator[None]:
    """Explains what lacks forward mode: the inner loop, or part of the model."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        message = _NO_FORWARD_MODE if model else _FORWARD_MODE
        raise TypeError(message) from error


@contextlib.contextmanager
def explain_reverse_mode() -> Iterator[None]:
    """Suggests fixes when reverse mode meets a loop of unknown length."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Reverse-mode differentiation does not work"):
            raise
        raise ValueError(f"{_NO_REVERSE_MODE} ({error})") from error


@contextlib.contextmanager
def explain_update() -> Iterator[None]:
    """Explains which arguments an inner rule receives when it requires more."""
    try:
        yield
    except TypeError as error:
        if "missing" not in str(error):
            raise
        raise ValueError(_MORE_ARGUMENTS.format(error=error)) from error
