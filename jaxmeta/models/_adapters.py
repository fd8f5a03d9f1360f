"""Flax modules with dropout or running statistics, as the models learners take.

An episode has no running statistics that mean anything, so the adapters never use a
module's own: passes on which gradients are taken normalise by the batch, predictions
by the batch or by the support set, whatever the module asks its BatchNorm for.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxmeta import _checks, base
from jaxmeta.models import _norm

if TYPE_CHECKING:
    from flax import nnx

# What modules call the argument that says which pass this is, and its value in a pass
# on which gradients are taken.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
_NO_STATISTICS = (
    "The parameters hold no statistics of a support set. With statistics='support' "
    "predictions need `with_statistics(params, support_inputs)`, not `params` alone."
)


def from_linen(module: nn.Module, *, statistics: str = "batch") -> base.Model:
    """Makes a `Model` of a flax.linen module with dropout or BatchNorm.

    The module is called as `module(inputs)`. Where its `__call__` names one of `train`,
    `training`, `is_training`, `deterministic` or `use_running_average`, that argument
    says whether this is a pass on which gradients are taken (the last two are false
    then). `nn.BatchNorm` normalises by the batch in such passes and by `statistics` in
    predictions; `nn.Dropout` is off in predictions, and without such an argument on in
    the others.

    Args:
      module: a flax.linen module. Its running statistics are never used.
      statistics: where predictions take the statistics of `nn.BatchNorm` from: "batch",
        the inputs predicted together (transductive), or "support", the support set.
        Static.

    Returns:
      A `Model`. `init` returns `{"params": ...}`, all of it trainable; the key of
      `apply` seeds every random stream of the module.

    Raises:
      ValueError: if `module` is no flax.linen module or `statistics` is unknown; from
        `init`, if the module has collections other than "params" and the statistics of
        `nn.BatchNorm`; from `apply`, if the support set's statistics are missing.

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
    modes = _accepted_modes(module)

    def call(method, first, inputs, train, *, stored=False, norms=None, **options):
        change = functools.partial(
            _change_layer,
            stored=stored,
            # A module that is told the mode may have its reasons to drop nothing.
            dropout=None if train and modes else train,
            norms=set() if norms is None else norms,
        )
        with nn.intercept_methods(change):
            return method(first, inputs, **_mode(modes, train), **options)

    def on_batch(params, inputs, key, train):
        """Normalises by the batch: returns the outputs and the batch's statistics."""
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

    def with_statistics(params, inputs):
        if statistics == "batch":
            return params
        return {**params, **on_batch(params, inputs, None, False)[1]}

    return base.Model(init, apply, with_statistics)


def from_nnx(
    module: "nnx.Module | Callable[..., nnx.Module]", *, statistics: str = "batch"
) -> base.Model:
    """Makes a `Model` of a flax.nnx module.

    The module is called as `module(inputs)`, with the argument for the kind of pass
    that `from_linen` describes where `__call__` names one. `nnx.BatchNorm` normalises
    by the batch in passes on which gradients are taken and by `statistics` in
    predictions; dropout is off in predictions.

    Args:
      module: a constructor `rngs -> nnx.Module`, such as a class or a
        `functools.partial` of one, from which `init` draws new parameters with its key;
        or an nnx.Module, such as a pretrained one, of whose parameters `init` returns
        a copy whatever its key. Only `nnx.Param` is trainable. Running statistics are
        never used, and arrays outside variables are constants.
      statistics: as for `from_linen`. Static.

    Returns:
      A `Model`. `init` returns `{"params": ...}`, nested dicts of arrays, all of it
      trainable; the key of `apply` seeds every random stream of the module.

    Raises:
      ValueError: if `module` is neither, has variables other than `nnx.Param`, random
        streams and the statistics of `nnx.BatchNorm`, or `statistics` is unknown; from
        `apply`, if the key or the support set's statistics are missing.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = from_nnx(functools.partial(nnx.Linear, 2, 3))
      >>> params = model.init(jax.random.key(0), jnp.ones((4, 2)))
      >>> print(jax.tree.map(jnp.shape, params))
      {'params': {'bias': (3,), 'kernel': (2, 3)}}
      >>> model.apply(params, jnp.ones((4, 2))).shape
      (4, 3)
    """
    from flax import nnx  # Loads slowly, and few need it.

    _checks.check_choice("statistics", statistics, _norm.STATISTICS)
    make = None if isinstance(module, nnx.Module) else _constructor(module)
    reference: Any = module if make is None else make(nnx.Rngs(0))
    _check_nnx_module(reference)
    modes = _accepted_modes(reference)
    graph, present, unused, constants = nnx.split(
        reference, nnx.Param, nnx.BatchStat, ...
    )
    # Without their variables, which belong to `reference` and to this trace.
    present, unused, constants = map(nnx.to_pure_dict, (present, unused, constants))
    streams = sorted(
        {x.tag for _, x in nnx.iter_graph(reference) if isinstance(x, nnx.RngStream)}
    )

    def call(params, batch_stats, inputs, key, train, stored):
        net = nnx.merge(graph, params["params"], batch_stats, constants)
        net.set_attributes(deterministic=not train, raise_if_not_found=False)
        for _, layer in nnx.iter_modules(net):
            if isinstance(layer, nnx.BatchNorm):
                # Its argument overrides its attribute; only its class decides.
                object.__setattr__(layer, "__class__", _own_mode(type(layer)))
                layer.use_running_average, layer.momentum = stored, 0.0
            elif isinstance(layer, nnx.Dropout) and not train:
                layer.rate = 0.0  # Its argument overrides `deterministic`.
        if train and streams:
            if key is None:
                raise ValueError("`key` must be given with `train=True`, got None.")
            keys = jax.random.split(key, len(streams))
            seeds = dict(zip(streams, keys, strict=True))
            nnx.reseed(net, policy="match_shape", **seeds)
        outputs = net(inputs, **_mode(modes, train))
        return outputs, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

    def init(key, inputs):
        del inputs  # An nnx module knows its shapes.
        params = present
        if make is not None:
            params = nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))
        return {"params": jax.tree.map(jnp.copy, params)}

    def apply(params, inputs, *, key=None, train=False):
        if train or statistics == "batch" or not unused:
            return call(params, unused, inputs, key, train, stored=False)[0]
        if "batch_stats" not in params:
            raise ValueError(_NO_STATISTICS)
        return call(params, params["batch_stats"], inputs, key, train, stored=True)[0]

    def with_statistics(params, inputs):
        if statistics == "batch" or not unused:
            return params
        _, batch_stats = call(params, unused, inputs, None, False, stored=False)
        return {**params, "batch_stats": batch_stats}

    return base.Model(init, apply, with_statistics)


def _accepted_modes(module: Any) -> dict[str, bool]:
    names = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in _MODES.items() if name in names}


def _mode(modes: dict[str, bool], train: bool) -> dict[str, bool]:
    return {name: value == train for name, value in modes.items()}


# flax.linen.


def _change_layer(next_fun, args, kwargs, context, *, stored, dropout, norms):
    """Sets the mode of `nn.BatchNorm` and `nn.Dropout`; adds to the norms' paths."""
    layer = context.module
    if context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    if isinstance(layer, nn.BatchNorm):
        norms.add(layer.path)
        if stored and not layer.has_variable("batch_stats", "mean"):
            raise ValueError(_NO_STATISTICS)
        # What it would store is then exactly what it normalises by.
        object.__setattr__(layer, "momentum", 0.0)
        args, kwargs = _set(context, args, kwargs, "use_running_average", stored)
    elif isinstance(layer, nn.Dropout) and dropout is not None:
        args, kwargs = _set(context, args, kwargs, "deterministic", not dropout)
    return next_fun(*args, **kwargs)


def _set(context, args, kwargs, name, value):
    """Sets an attribute of a layer that may also be an argument of this call."""
    # Frozen, but this call's own: flax clones modules when it binds them.
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
            f"`module` keeps the collections {extra}; `from_linen` knows what to do "
            "with 'params' and 'batch_stats' only. Constants can be attributes."
        )
    stored = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    strange = sorted("/".join(path) for path in stored if path[:-1] not in norms)
    if strange:
        raise ValueError(
            f"`module` keeps the 'batch_stats' {strange}, which are not those of an "
            "`nn.BatchNorm`: `from_linen` cannot tell what they mean in an episode."
        )


# flax.nnx.


def _constructor(module):
    """Returns `rngs -> nnx.Module`; flax's own layers take `rngs` by name only."""
    if not callable(module):
        raise ValueError(
            f"`module` must be an nnx.Module or a constructor `rngs -> nnx.Module`, "
            f"got {module!r}."
        )
    function = module
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):  # nnx's metaclass hides the signature.
        function = function.__init__
    if "rngs" in inspect.signature(function).parameters:
        return lambda rngs: module(rngs=rngs)
    return module


@functools.cache
def _own_mode(norm):
    """Returns `norm`, a class of BatchNorm, deaf to its argument for the mode."""
    from flax import nnx

    class OwnMode(nnx.BatchNorm):
        def __call__(self, x, use_running_average=None, *, mask=None):
            if not self.use_running_average:
                # Statistics start as float32, and float64 ones would not fit in.
                scales = [y[...] for y in (self.scale, self.bias) if y is not None]
                dtype = jnp.result_type(x, jnp.float32, *scales)
                for stat in (self.mean, self.var):
                    stat.set_value(jnp.zeros(stat.shape, dtype))
            return super().__call__(x, mask=mask)

    if norm is nnx.BatchNorm:
        return OwnMode
    return type(norm.__name__, (norm, OwnMode), {})  # After its own `__call__`.


def _check_nnx_module(module):
    """Raises unless all state is parameters, random streams and BatchNorm's."""
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ValueError(f"`module` must construct an nnx.Module, got {module!r}.")
    known = (nnx.Param, nnx.BatchStat, nnx.RngState)
    strange = {
        "/".join(map(str, path)): type(leaf).__name__
        for path, leaf in nnx.to_flat_state(nnx.state(module))
        if isinstance(leaf, nnx.Variable) and not isinstance(leaf, known)
    }
    for path, layer in nnx.iter_modules(module):
        if not isinstance(layer, nnx.BatchNorm):
            strange |= {
                "/".join(map(str, (*path, name))): type(value).__name__
                for name, value in vars(layer).items()
                if isinstance(value, nnx.BatchStat)
            }
    if strange:
        raise ValueError(
            f"`module` keeps the variables {strange}; `from_nnx` knows what to do with "
            "nnx.Param, random streams and the statistics of nnx.BatchNorm only. "
            "Constants can be plain arrays."
        )
