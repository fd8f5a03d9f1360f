"""Adapts flax.nnx modules to the model interface of learners.

Running statistics have no meaning in an episode, so `from_nnx` never uses them:
training passes normalise by the batch, predictions by the batch or by the support set,
whatever the module requests of its BatchNorm.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _modes, base
from jaxmeta.models import _norm

if TYPE_CHECKING:
    from flax import nnx


def from_nnx(
    module: "nnx.Module | Callable[..., nnx.Module]", *, statistics: str = "batch"
) -> base.Model:
    """Makes a `Model` from a flax.nnx module.

    The module is called as `module(inputs)`, with a mode argument (see `from_linen`) if
    its `__call__` takes one. `nnx.BatchNorm` normalises by the batch in training passes
    and by `statistics` in predictions; dropout is off in predictions.

    Args:
      module: a constructor `rngs -> nnx.Module`, such as a class or a
        `functools.partial` of one, with which `init` draws new parameters; or an
        nnx.Module, such as a pretrained one, whose parameters `init` copies, ignoring
        its key. Only `nnx.Param` is trainable. Running statistics are never used, and
        arrays outside variables are constants.
      statistics: as for `from_linen`. Static.

    Returns:
      A `Model`. `init` returns a dict of "params", nested dicts of arrays, all
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
    from flax import nnx  # Slow to import and rarely needed.

    _checks.check_choice("statistics", statistics, _norm.STATISTICS)
    make = None if isinstance(module, nnx.Module) else _constructor(module)
    reference: Any = module if make is None else make(nnx.Rngs(0))
    _check_nnx_module(reference)
    modes = _modes.accepted_modes(reference)
    graph, present, unused, constants = nnx.split(
        reference, nnx.Param, nnx.BatchStat, ...
    )
    # Plain arrays: the variables belong to `reference` and to this trace.
    present, unused, constants = map(nnx.to_pure_dict, (present, unused, constants))
    streams = sorted(
        {x.tag for _, x in nnx.iter_graph(reference) if isinstance(x, nnx.RngStream)}
    )

    def call(params, batch_stats, inputs, key, train, stored):
        net = nnx.merge(graph, params["params"], batch_stats, constants)
        net.set_attributes(deterministic=not train, raise_if_not_found=False)
        for _, layer in nnx.iter_modules(net):
            if isinstance(layer, nnx.BatchNorm):
                # The call argument overrides the attribute, so replace the class.
                object.__setattr__(layer, "__class__", _own_mode(type(layer)))
                layer.use_running_average, layer.momentum = stored, 0.0
            elif isinstance(layer, nnx.Dropout) and not train:
                layer.rate = 0.0  # The call argument may override `deterministic`.
        if train and streams:
            if key is None:
                raise ValueError("`key` must be given with `train=True`, got None.")
            keys = jax.random.split(key, len(streams))
            seeds = dict(zip(streams, keys, strict=True))
            nnx.reseed(net, policy="match_shape", **seeds)
        outputs = net(inputs, **_modes.mode(modes, train))
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
            raise ValueError(_modes.NO_STATISTICS)
        return call(params, params["batch_stats"], inputs, key, train, stored=True)[0]

    def with_support_statistics(params, inputs):
        if statistics == "batch" or not unused:
            return params
        _, batch_stats = call(params, unused, inputs, None, False, stored=False)
        return {**params, "batch_stats": batch_stats}

    return base.Model(init, apply, with_support_statistics)


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
    """Returns `norm`, a BatchNorm class, modified to ignore its mode argument."""
    from flax import nnx

    class OwnMode(nnx.BatchNorm):
        def __call__(self, x, use_running_average=None, *, mask=None):
            if not self.use_running_average:
                # Initial statistics are float32; reset them to hold float64 too.
                scales = [y[...] for y in (self.scale, self.bias) if y is not None]
                dtype = jnp.result_type(x, jnp.float32, *scales)
                for stat in (self.mean, self.var):
                    stat.set_value(jnp.zeros(stat.shape, dtype))
            return super().__call__(x, mask=mask)

    if norm is nnx.BatchNorm:
        return OwnMode
    # In the MRO after `norm`, whose own `__call__` runs first, but before BatchNorm.
    return type(norm.__name__, (norm, OwnMode), {})


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
            f"`module` has the variables {strange}; `from_nnx` supports only "
            "nnx.Param, random streams and the statistics of nnx.BatchNorm. Make "
            "constants plain arrays."
        )
