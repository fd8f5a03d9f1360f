"""Adapts flax.linen modules with dropout or BatchNorm to the learners' interface.

Running statistics have no meaning in an episode, so `from_linen` never uses them:
training passes normalise by the batch, predictions by the batch or by the support set,
whatever the module requests of its BatchNorm.
"""

import functools
import inspect

import flax.linen as nn
from flax import traverse_util

from jaxmeta import _checks, _modes, base
from jaxmeta.models import _norm


def from_linen(module: nn.Module, *, statistics: str = "batch") -> base.Model:
    """Makes a `Model` from a flax.linen module with dropout or BatchNorm.

    The module is called as `module(inputs)`. If its `__call__` takes one of `train`,
    `training`, `is_training`, `deterministic` or `use_running_average`, that argument
    is set to say whether this is a training pass, one on which gradients are taken (the
    last two are false then). `nn.BatchNorm` normalises by the batch in training passes
    and by `statistics` in predictions; `nn.Dropout` is off in predictions and, without
    such an argument, on in training passes.

    Args:
      module: a flax.linen module. Its running statistics are never used.
      statistics: source of the `nn.BatchNorm` statistics for predictions: "batch", the
        inputs predicted together (transductive), or "support", the support set. Static.

    Returns:
      A `Model`. `init` returns a dict of "params", all trainable; the key of `apply`
      seeds every random stream of the module.

    Raises:
      ValueError: if `module` is not a flax.linen module or `statistics` is unknown;
        from `init`, if the module has collections other than "params" and the
        statistics of `nn.BatchNorm`; from `apply`, if the support set's statistics are
        missing.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> model = from_linen(nn.Sequential([nn.Dense(3), nn.Dropout(0.5)]))
      >>> inputs, key = jnp.ones((4, 2)), jax.random.key(0)
      >>> params = model.init(key, inputs)
      >>> print(jax.tree.map(jnp.shape, params))
      {'params': {'layers_0': {'bias': (3,), 'kernel': (2, 3)}}}
      >>> bool((model.apply(params, inputs) == 0).any())
      False
      >>> bool((model.apply(params, inputs, key=key, train=True) == 0).any())
      True
    """
    _checks.check_choice("statistics", statistics, _norm.STATISTICS)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"`module` must be a flax.linen module such as `nn.Dense(1)`, got {module}."
        )
    modes = _modes.accepted_modes(module)

    def call(method, first, inputs, train, *, stored=False, norms=None, **options):
        change = functools.partial(
            _change_layer,
            stored=stored,
            # A module with a mode argument decides itself whether to drop units.
            dropout=None if train and modes else train,
            norms=set() if norms is None else norms,
        )
        with nn.intercept_methods(change):
            return method(first, inputs, **_modes.mode(modes, train), **options)

    def on_batch(params, inputs, key, train):
        """Normalises by the batch; returns the outputs and the batch statistics."""
        params = {"params": params["params"]}
        return call(
            module.apply, params, inputs, train, rngs=key, mutable=["batch_stats"]
        )

    def init(key, inputs):
        norms = set()
        variables = call(module.init, key, inputs, False, norms=norms)
        _check_collections(variables, norms)
        return {"params": variables.get("params", {})}

    def apply(params, inputs, *, key=None, train=False):
        if train or statistics == "batch":
            return on_batch(params, inputs, key if train else None, train)[0]
        return call(module.apply, params, inputs, train, stored=True)

    def with_support_statistics(params, inputs):
        if statistics == "batch":
            return params
        return {**params, **on_batch(params, inputs, None, False)[1]}

    return base.Model(init, apply, with_support_statistics)


def _change_layer(next_fun, args, kwargs, context, *, stored, dropout, norms):
    """Sets the mode of `nn.BatchNorm` and `nn.Dropout`; records paths in `norms`."""
    layer = context.module
    if context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    if isinstance(layer, nn.BatchNorm):
        norms.add(layer.path)
        if stored and not layer.has_variable("batch_stats", "mean"):
            raise ValueError(_modes.NO_STATISTICS)
        # With momentum 0 it stores exactly the batch statistics it normalises by.
        object.__setattr__(layer, "momentum", 0.0)
        args, kwargs = _set(context, args, kwargs, "use_running_average", stored)
    elif isinstance(layer, nn.Dropout) and dropout is not None:
        args, kwargs = _set(context, args, kwargs, "deterministic", not dropout)
    return next_fun(*args, **kwargs)


def _set(context, args, kwargs, name, value):
    """Sets an attribute of a layer that may also be an argument of this call."""
    # The layer is frozen, but private to this call: flax clones modules on binding.
    object.__setattr__(context.module, name, value)
    bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
    if name in bound.arguments:
        bound.arguments[name] = None  # flax refuses both, even when they agree.
    return bound.args, bound.kwargs


def _check_collections(variables, norms):
    """Raises unless `variables` are parameters and the statistics of `norms`."""
    extra = sorted(set(variables) - {"params", "batch_stats"})
    if extra:
        raise ValueError(
            f"`module` has the collections {extra}; `from_linen` supports only "
            "'params' and 'batch_stats'. Make constants attributes."
        )
    stored = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    strange = sorted("/".join(path) for path in stored if path[:-1] not in norms)
    if strange:
        raise ValueError(
            f"`module` has the 'batch_stats' {strange}, which do not belong to an "
            "`nn.BatchNorm`: `from_linen` does not know their meaning in an episode."
        )
