"""Finds redefined derivatives in a traced program.

Whether a function's gradient is the gradient of a scalar shows in its program, not in
its values: JAX's own derivatives are true. A custom rule may be the true derivative
(`jax.nn.relu`) or not (gradient reversal, straight-through rounding).
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

# Folders whose rules are known to be true derivatives: JAX's elementwise and special
# functions, optax's losses and projections. Not all of JAX: `custom_root` is only as
# exact as its solver, and fp8 products are not exact.
_JAX = pathlib.Path(jax.__file__).parent / "_src"
_OPTAX = pathlib.Path(optax.__file__).parent
_TRUSTED = (
    *(_JAX / name for name in ("nn/functions.py", "numpy", "scipy", "third_party")),
    *(_JAX / "lax" / name for name in ("lax.py", "other.py", "special.py")),
    *(_OPTAX / name for name in ("losses", "projections")),
)
# Rules made by `custom_jvp.defjvps` have this file as their source, whoever calls it.
_GENERIC = _JAX / "custom_derivatives.py"
_UNTRUSTED_PRIMITIVES = ("custom_vjp_call", "linear_call", "custom_transpose_call")


def redefined_derivatives(fn: Callable[..., Any], *args: Any) -> list[str]:
    """Returns the custom rules in `fn`'s program that may not be true derivatives.

    Args:
      fn: a function of arrays.
      args: arrays, or their shapes and dtypes.

    Returns:
      Where each is defined, such as "reverse at model.py:12". If empty, the gradient
      of `fn` is a true gradient and supports forward mode.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> redefined_derivatives(lambda x: jnp.sum(jax.nn.relu(x)), jnp.ones(3))
      []
      >>> floor = jax.custom_jvp(jnp.floor)
      >>> floor.defjvps(lambda tangent, out, x: tangent)  # straight-through
      >>> len(redefined_derivatives(lambda x: jnp.sum(floor(x)), jnp.ones(3)))
      1
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return sorted(set(_redefined_in(jaxpr)))


def check_forward_mode(fn: Callable[..., Any], x: Any) -> None:
    """Raises JAX's TypeError unless `jax.jvp` of `fn` can be computed.

    JAX itself raises it only at lowering or run time, far from the source.
    """
    jaxpr = jax.make_jaxpr(lambda x: jax.jvp(fn, (x,), (x,)))(x).jaxpr
    if "custom_lin" in _operations_in(jaxpr):
        raise TypeError("can't apply forward-mode autodiff to a custom_vjp function")


def _operations_in(jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in _programs_in(tuple(eqn.params.values())):
            yield from _operations_in(inner)


def _redefined_in(jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name.startswith(_UNTRUSTED_PRIMITIVES):
            yield _source(eqn.params.get("call_jaxpr")) or name
        elif name == "custom_jvp_call":
            # A trusted rule covers everything the function calls: no need to descend.
            if not _is_true(eqn.params):
                yield _source(eqn.params["call_jaxpr"]) or name
        else:
            for inner in _programs_in(tuple(eqn.params.values())):
                yield from _redefined_in(inner)


def _programs_in(value) -> Iterator[Any]:
    """The programs inside an operation such as `scan`, `cond` or `jit`."""
    if isinstance(value, tuple | list):
        for each in value:
            yield from _programs_in(each)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr


def _is_true(params) -> bool:
    """Whether the rule of a `custom_jvp` is known to be a true derivative."""
    rule = _source(params.get("jvp_jaxpr_fun"))
    file = _file(rule)
    if file == _GENERIC:
        # A rule made by `defjvps`: trust it only if the function is one of JAX's own
        # `custom_jvp` objects, not a user's rule on a JAX function (`jnp.floor`).
        name, file = _name(params["call_jaxpr"]), _file(_source(params["call_jaxpr"]))
        modules = (jax.nn, jax.numpy, jax.lax, jax.scipy.special)
        own = (getattr(module, name, None) for module in modules)
        if not any(isinstance(fn, jax.custom_jvp) for fn in own):
            return False
    return any(file == root or root in file.parents for root in _TRUSTED)


def _source(program) -> str:
    """The traced function, "relu at .../functions.py:71"; "" if JAX does not say."""
    program = getattr(program, "jaxpr", program)
    info = getattr(program, "debug_info", None)
    return getattr(info, "func_src_info", None) or ""


def _name(program) -> str:
    return _source(program).partition(" at ")[0]


def _file(source: str) -> pathlib.Path:
    return pathlib.Path(source.partition(" at ")[2].rpartition(":")[0])
