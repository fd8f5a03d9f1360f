"""Adapts Equinox modules to the model interface of learners.

An Equinox module is a pytree that maps ONE example: its floating-point arrays are the
parameters, everything else is closed over, and `vmap` adds the example axis.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmeta import _modes, base

if TYPE_CHECKING:
    import equinox as eqx


def from_equinox(module: "eqx.Module | Callable[..., eqx.Module]") -> base.Model:
    """Makes a `Model` from an Equinox module.

    The module is called on one example at a time, as `module(x)` under `jax.vmap`. If
    its `__call__` takes a mode argument (see `from_linen`) or `inference`, that is set.
    If it takes `key`, each example gets its own key in training passes. In predictions
    `inference` is true everywhere, so dropout is off, and there is no key.

    Args:
      module: a constructor `key -> eqx.Module`, such as a `functools.partial` of a
        class, with which `init` draws new parameters; or an eqx.Module, such as a
        pretrained one, whose parameters `init` copies, ignoring its key.

    Returns:
      A `Model`. Its parameters are the module's floating-point (and complex) arrays, as
      from `eqx.filter(module, eqx.is_inexact_array)`; `eqx.combine(params, module)` is
      a module again. Integer arrays and non-arrays are constants.

    Raises:
      ImportError: if Equinox is not installed.
      ValueError: if `module` is neither, is not callable, or keeps state (`eqx.nn`'s
        BatchNorm and SpectralNorm); from `apply`, if inputs share no example axis.

    Example:
      >>> import functools, equinox as eqx, jax, jax.numpy as jnp
      >>> model = from_equinox(functools.partial(eqx.nn.Linear, 2, 3))
      >>> params = model.init(jax.random.key(0), jnp.ones((4, 2)))
      >>> params.weight.shape, params.bias.shape
      ((3, 2), (3,))
      >>> model.apply(params, jnp.ones((4, 2))).shape
      (4, 3)
    """
    try:
        import equinox as eqx
    except ImportError as error:
        raise ImportError(
            "`from_equinox` requires Equinox: pip install equinox"
        ) from error

    make = None if isinstance(module, eqx.Module) else _constructor(module)
    reference: Any = module if make is None else make(jax.random.key(0))
    _check_equinox_module(reference)
    arguments = inspect.signature(type(reference).__call__).parameters
    modes = _modes.accepted_modes(reference)
    if "inference" in arguments:  # Equinox's own name; others beside it are deprecated.
        modes = {"inference": False}
    like, static = eqx.partition(reference, eqx.is_inexact_array)
    structure = jax.tree.structure(like)

    def init(key, inputs):
        del inputs  # An Equinox module knows its shapes.
        drawn = like if make is None else eqx.filter(make(key), eqx.is_inexact_array)
        # `like`'s structure: static fields, e.g. lambdas, of `drawn` may be unequal.
        return structure.unflatten(jnp.copy(x) for x in jax.tree.leaves(drawn))

    def apply(params, inputs, *, key=None, train=False):
        net: Any = eqx.nn.inference_mode(eqx.combine(params, static), not train)
        call = functools.partial(net, **_modes.mode(modes, train))
        num_examples = _count_examples(inputs)
        if "key" not in arguments or key is None or not train:
            return jax.vmap(call)(inputs)
        keys = jax.random.split(key, num_examples)
        return jax.vmap(lambda x, key: call(x, key=key))(inputs, keys)

    return base.Model(init, apply)


def _constructor(module):
    """Returns `key -> eqx.Module`; Equinox's own layers take `key` by name only."""
    if not callable(module):
        raise ValueError(
            "`module` must be an eqx.Module or a constructor `key -> eqx.Module`, got "
            f"{module!r}."
        )
    if "key" in inspect.signature(module).parameters:
        return lambda key: module(key=key)
    return module


def _check_equinox_module(module):
    """Raises unless this is a callable module without state."""
    import equinox as eqx

    is_state = lambda x: isinstance(x, eqx.nn.State | eqx.nn.StateIndex)
    if any(map(is_state, jax.tree.leaves(module, is_leaf=is_state))):
        raise ValueError(
            "`module` keeps state (`eqx.nn.State`), which episodes do not have. Use "
            "stateless normalisation (`eqx.nn.LayerNorm`, `GroupNorm`); for batch "
            "normalisation use `jaxmeta.models.from_linen` or `from_nnx`."
        )
    if not (isinstance(module, eqx.Module) and callable(module)):
        raise ValueError(
            "`module` must construct a callable eqx.Module, got "
            f"{type(module).__name__}."
        )


def _count_examples(inputs):
    """The number of examples in inputs, leaves [N, ...]."""
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "`inputs` of an Equinox module must have leaves [N, ...] with the same N, "
            f"got shapes {jax.tree.map(jnp.shape, inputs)}: it is called on one "
            "example at a time."
        )
    return sizes.pop()[0]
