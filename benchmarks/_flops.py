"""Floating-point operations of matrix products, counted in a traced function."""

import math
from typing import Any

import jax


def count(fn: Any, *args: Any) -> float:
    """FLOPs of all matrix products and convolutions of `fn(*args)` on a CPU.

    Loops count as often as they run; of a branch, the dearest counts.
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr):
    return math.fsum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "jaxmeta_product"):
        axes, _ = params.get("dimension_numbers", (((1,), (0,)), None))
        shape = equation.invars[0].aval.shape
        contracted = math.prod(shape[axis] for axis in axes[0])
        return 2.0 * contracted * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        raise ValueError("Count on a CPU, where convolutions are matrix products.")
    if name == "cond":  # platform_dependent is one too: every branch is the same.
        return max(map(_of_branch, params["branches"]))
    inner = math.fsum(_of_jaxpr(jaxpr) for jaxpr in _sub_jaxprs(params))
    return inner * (params["length"] if name == "scan" else 1)


def _of_branch(branch):
    try:
        return _of_jaxpr(branch.jaxpr)
    except ValueError:  # The other platforms' convolution.
        return 0.0


def _sub_jaxprs(params):
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
