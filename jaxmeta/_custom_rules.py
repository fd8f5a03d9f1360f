"""Which derivatives of a traced program someone has redefined.

Whether a function's gradient is the gradient of a scalar cannot be read off its values,
but off its program: what JAX differentiates by itself is. A custom rule may be the true
derivative (`jax.nn.relu`), or not (gradient reversal, straight-through rounding).
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

# Rules that we know to be true derivatives, by who wrote them: the folders of JAX's
# elementwise and special functions, and of optax's losses and projections. Not all of
# JAX: `custom_root` is only as true as its solver, and fp8 products are not.
_JAX = pathlib.Path(jax.__file__).parent / "_src"
_OPTAX = pathlib.Path(optax.__file__).parent
_TRUSTED = (
    *(_JAX / name for name in ("nn/functions.py", "numpy", "scipy", "third_party")),
    *(_JAX / "lax" / name for name in ("lax.py", "other.py", "special.py")),
    *(_OPTAX / name for name in ("losses", "projections")),
)
# Where `custom_jvp.defjvps` makes one rule of several functions.
_GENERIC = _JAX / "custom_derivatives.py"
_UNTRUSTED_PRIMITIVES = ("custom_vjp_call", "linear_call", "custom_transpose_call")


def redefined_derivatives(fn: Callable[..., Any], *args: Any) -> list[str]:
    """Returns the custom rules in the program of `fn` that need not be derivatives.

    Args:
      fn: a function of arrays.
      args: arrays, or their shapes and dtypes.

    Returns:
      Where each is defined, such as "reverse at model.py:12". None of them: the
      gradient of `fn` is a gradient, and has a forward mode.

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

    JAX itself raises it when the program runs, or is lowered, far from its source.
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
            # A trusted rule is one of all that the function calls.
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
    """Whether a `custom_jvp` has a rule that we know."""
    rule = _source(params.get("jvp_jaxpr_fun"))
    file = _file(rule)
    if file == _GENERIC:
        # `relu.defjvps(...)`: then it is JAX's own object, not ours of JAX's function.
        name, file = _name(params["call_jaxpr"]), _file(_source(params["call_jaxpr"]))
        modules = (jax.nn, jax.numpy, jax.lax, jax.scipy.special)
        own = (getattr(module, name, None) for module in modules)
        if not any(isinstance(fn, jax.custom_jvp) for fn in own):
            return False
    return any(file == root or root in file.parents for root in _TRUSTED)


def _source(program) -> str:
    """What was traced, "relu at .../functions.py:71"; "" where JAX does not say."""
    program = getattr(program, "jaxpr", program)
    info = getattr(program, "debug_info", None)
    return getattr(info, "func_src_info", None) or ""


def _name(program) -> str:
    return _source(program).partition(" at ")[0]


def _file(source: str) -> pathlib.Path:
    return pathlib.Path(source.partition(" at ")[2].rpartition(":")[0])
