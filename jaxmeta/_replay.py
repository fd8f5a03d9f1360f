r"""K first-order updates by a coordinatewise rule, differentiated block by block.

With first order the gradients :math:`g_k` are constants, so that a loss's derivative
after an update is a later gradient:

.. math::
  \bar\phi_k = \bar{L}_k g_k + \left(I + \frac{\partial u_k}{\partial \phi_k}\right)^T
    \bar\phi_{k+1} + \dots

If the update of a coordinate depends on that coordinate alone, so do all its
derivatives. The backward pass then takes a block of coordinates, repeats all their K
updates within a CPU's cache, differentiates them there, and only sums the cotangents of
the rule's weights over the blocks. Beside the initial state it needs the K gradients.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import base

# Coordinates per block.
BLOCK = 256


class Coordinatewise(optax.GradientTransformationExtraArgs):
    """A rule whose update at a coordinate depends on that coordinate alone.

    That is its gradient, state and parameter, the loss, and scalars such as a step
    count. What is composed of it (`optax.chain`) is not marked.
    """


def applies(
    tx: optax.GradientTransformation, params: base.Params
) -> TypeGuard[Coordinatewise]:
    """Whether `unroll` can differentiate `tx` on these parameters."""
    leaves = jax.tree.leaves(params)
    return (
        isinstance(tx, Coordinatewise)
        and len({jnp.result_type(x) for x in leaves}) == 1
        # A block would gather coordinates from all devices.
        and not any(any(jax.typeof(x).sharding.spec) for x in leaves)
    )


def unroll(
    loss: Callable[..., tuple[jax.Array, Any]],
    tx: Coordinatewise,
    params: base.Params,
    state: Any,
    keys: jax.Array,
    steps: jax.Array,
    data: Any,
) -> tuple[base.Params, Any, jax.Array, Any]:
    """Makes K updates; arguments as in `_unroll.unroll`.

    Returns:
      The parameters and state after them, and losses and auxiliary outputs [K, ...]
      before each. Parameters, state and losses can be differentiated with respect to
      the initial ones and the rule's weights, to first order.
    """
    blocks = _Blocks(tx, params)
    update = lambda grads, state, params, value: tx.update(
        grads, state, params, value=value
    )
    # Custom rules see only their arguments: the rule's weights become `weights`.
    zero = jnp.zeros((), jax.eval_shape(loss, params, keys[0], steps[0], data)[0].dtype)
    whole_update, whole_weights = jax.closure_convert(
        update, params, state, params, zero
    )
    one = jnp.zeros(blocks.size, blocks.dtype)
    block_update, weights = jax.closure_convert(update, one, tx.init(one), one, zero)

    @jax.custom_vjp
    def run(params, state, weights, whole_weights, *rest):
        return forward(params, state, weights, whole_weights, *rest)[0]

    def forward(params, state, weights, whole_weights, keys, steps, data):
        def body(carry, each):
            params, state = carry
            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(
                params, *each, data
            )
            updates, state = whole_update(grads, state, params, value, *whole_weights)
            return (optax.apply_updates(params, updates), state), (value, aux, grads)

        last, (losses, aux, grads) = jax.lax.scan(body, (params, state), (keys, steps))
        return (*last, losses, aux), (params, state, weights, grads, losses)

    run.defvjp(forward, functools.partial(_backward, blocks, block_update))
    return run(params, state, weights, whole_weights, keys, steps, data)


def _backward(blocks, update, kept, bars):
    """The cotangents of `run`, block by block; `update` is the rule at one block."""
    params, state, weights, grads, losses = kept
    params_bar, state_bar, losses_bar, _ = bars

    def score(weights, params, floats, block):
        """What has the derivatives of the losses and of the last parameters."""
        grads, integers, params_bar, floats_bar = block

        def body(carry, each):
            params, state = carry
            grads, value, bar = each
            loss = bar * _vdot(grads, params)
            updates, state = update(grads, blocks.lead(state), params, value, *weights)
            return (
                optax.apply_updates(params, updates),
                blocks.trail(state),
            ), loss

        state = blocks.merge(floats, integers)
        (params, state), scores = jax.lax.scan(
            body, (params, state), (grads, losses, losses_bar)
        )
        last = params, *blocks.split(state)[0]
        products = map(_vdot, (params_bar, *floats_bar), last)
        return sum(products, jnp.sum(scores))

    def body(weights_bar, each):
        params, floats, block = each
        found = jax.grad(score, (0, 1, 2))(weights, params, floats, block)
        return optax.tree.add(weights_bar, found[0]), found[1:]

    floats, integers = blocks.split(blocks.cut_state(state, blocks.everywhere))
    # Cotangents of integers have no values.
    floats_bar, _ = blocks.split(blocks.cut_state(state_bar, blocks.once))
    each = (
        blocks.cut(params),
        floats,
        (blocks.cut(grads, 1), integers, blocks.cut(params_bar), floats_bar),
    )
    weights_bar, (params_bar, floats_bar) = jax.lax.scan(
        body, optax.tree.zeros_like(weights), each
    )
    state_bar = blocks.join_state(floats_bar, state)
    return blocks.join(params_bar), state_bar, weights_bar, *[None] * 4


def _vdot(bar, x):
    """The sum of products, at least in float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.vdot(bar.astype(wide), x.astype(wide))


class _Blocks:
    """Coordinates of all parameters in blocks, and back.

    The state of the rule for one leaf, [size], says how the state for the parameters
    splits: each of its leaves, [size, ...], is a tree like the parameters there. Other
    leaves, such as a step count, are `shared`.
    """

    def __init__(self, tx, params):
        leaves = jax.tree.leaves(params)
        self.shapes = [jnp.shape(x) for x in leaves]
        self.dtype = jnp.result_type(leaves[0])
        self.treedef = jax.tree.structure(params)
        self.total = sum(math.prod(shape) for shape in self.shapes)
        self.num = max(1, round(self.total / BLOCK))
        self.size = max(1, math.ceil(self.total / self.num))
        of_size = lambda n: jax.ShapeDtypeStruct((n,), self.dtype)
        one, longer = (
            jax.eval_shape(tx.init, of_size(n)) for n in (self.size, self.size + 1)
        )
        self.statedef = jax.tree.structure(one)
        pairs = [*zip(jax.tree.leaves(one), jax.tree.leaves(longer), strict=True)]
        self.is_shared = [a.shape == b.shape for a, b in pairs]
        self.is_float = [jnp.issubdtype(a.dtype, jnp.floating) for a, _ in pairs]

    def cut(self, tree, leading=0):
        """Leaves [*leading, *shape, ...] to [num, *leading, size, ...]."""
        flat = []
        for x, shape in zip(jax.tree.leaves(tree), self.shapes, strict=True):
            rest = x.shape[leading + len(shape) :]
            flat.append(x.reshape(*x.shape[:leading], -1, *rest))
        x = jnp.concatenate(flat, leading)
        # Zero gradients and states: what is padded adds nothing.
        widths = [(0, 0)] * x.ndim
        widths[leading] = (0, self.num * self.size - self.total)
        x = jnp.pad(x, widths)
        shape = x.shape
        x = x.reshape(*shape[:leading], self.num, self.size, *shape[leading + 1 :])
        return jnp.moveaxis(x, leading, 0)

    def join(self, x):
        """Undoes `cut` for [num, size, ...]."""
        flat = x.reshape(-1, *x.shape[2:])
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = jnp.split(flat[: self.total], ends[:-1])
        leaves = [
            part.reshape(*shape, *x.shape[2:])
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return self.treedef.unflatten(leaves)

    def cut_state(self, state, share):
        """The state's leaves, [num, size, ...]; `share` spreads one that is shared."""
        parts = self.statedef.flatten_up_to(state)
        pairs = zip(parts, self.is_shared, strict=True)
        return [
            share(x) if shared else jnp.moveaxis(self.cut(x), 1, -1)
            for x, shared in pairs
        ]

    def join_state(self, floats, state):
        """Undoes `cut_state` for the cotangents of the floats; None for integers."""
        floats = iter(floats)
        parts = []
        for part, is_shared, is_float in zip(
            self.statedef.flatten_up_to(state),
            self.is_shared,
            self.is_float,
            strict=True,
        ):
            if not is_float:
                parts.append(jax.tree.map(lambda _: None, part))
            else:
                x = next(floats)
                parts.append(
                    jnp.sum(x, 0) if is_shared else self.join(jnp.moveaxis(x, -1, 1))
                )
        return self.statedef.unflatten(parts)

    def split(self, leaves):
        """Separates floats from integers."""
        pairs = [*zip(leaves, self.is_float, strict=True)]
        return [x for x, use in pairs if use], [x for x, use in pairs if not use]

    def merge(self, floats, integers):
        """Undoes `split`."""
        floats, integers = iter(floats), iter(integers)
        return [next(floats) if use else next(integers) for use in self.is_float]

    def lead(self, leaves):
        """A state whose coordinates lead, as the rule has them."""
        pairs = zip(leaves, self.is_shared, strict=True)
        return self.statedef.unflatten(
            [x if shared else jnp.moveaxis(x, -1, 0) for x, shared in pairs]
        )

    def trail(self, state):
        """Undoes `lead`."""
        pairs = zip(jax.tree.leaves(state), self.is_shared, strict=True)
        return [x if shared else jnp.moveaxis(x, 0, -1) for x, shared in pairs]

    def everywhere(self, x):
        """A shared value, the same in every block."""
        return jnp.broadcast_to(x, (self.num, *x.shape))

    def once(self, x):
        """A cotangent of a shared value, in one block alone."""
        return jnp.zeros((self.num, *x.shape), x.dtype).at[0].set(x)
