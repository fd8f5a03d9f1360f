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

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import base

# Coordinates per block: a multiple of a vector's 16 floats.
BLOCK = 256
# Blocks at once on devices that need more to do.
_TOGETHER = 256


class Coordinatewise(optax.GradientTransformationExtraArgs):
    """A rule whose update at a coordinate depends on that coordinate alone.

    That is its gradient, state and parameter, the loss, and scalars such as a step
    count. What is composed of it (`optax.chain`) is not marked.
    """

    def split(
        self, params: base.Params, state: Any
    ) -> "list[tuple[Coordinatewise, base.Params, Any]]":
        """One rule, its parameters and its state for each group of parameters."""
        return [(self, params, state)]

    def join_params(self, like: base.Params, parts: list[base.Params]) -> base.Params:
        """The parameters, from those of the groups; `like` has their structure."""
        del like
        return parts[0]

    def join_state(self, state: Any, parts: list[Any]) -> Any:
        """`state`, with those of the groups in it."""
        del state
        return parts[0]


def applies(
    tx: optax.GradientTransformation, params: base.Params, state: Any
) -> TypeGuard[Coordinatewise]:
    """Whether `unroll` can differentiate `tx` on these parameters."""
    if not isinstance(tx, Coordinatewise):
        return False
    groups = [jax.tree.leaves(group) for _, group, _ in tx.split(params, state)]
    one_dtype = all(len({jnp.result_type(x) for x in xs}) == 1 for xs in groups)
    # A block would gather coordinates from all devices.
    return one_dtype and not any(
        any(jax.typeof(x).sharding.spec) for x in jax.tree.leaves(params)
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
    value = jax.eval_shape(loss, params, keys[0], steps[0], data)[0]
    split = tx.split(params, state)
    groups = [_Group(rule, part, value.dtype) for rule, part, _ in split]
    # Labels of parameters may depend on shapes.
    like, like_state = jax.eval_shape(lambda *trees: trees, params, state)

    @jax.custom_vjp
    def run(initial, *rest):
        return forward(initial, *rest)[0]

    def forward(initial, weights, keys, steps, data):
        def body(carry, each):
            value_and_grad = jax.value_and_grad(loss, has_aux=True)
            parts = _each(lambda group, x: group.join(x[0]), groups, carry)
            params = tx.join_params(like, parts)
            (value, aux), grads = value_and_grad(params, *each, data)
            grads = [part for _, part, _ in tx.split(grads, like_state)]
            grads = _each(_Group.cut, groups, grads)
            advance = lambda group, *args: group.advance_all(value, *args)
            carry = _each(advance, groups, weights, carry, grads)
            return carry, (value, aux, grads)

        carry = _each(lambda group, x: group.enter(*x), groups, initial)
        last, (losses, aux, grads) = jax.lax.scan(body, carry, (keys, steps))
        results = _each(lambda group, x: group.leave(*x), groups, last)
        return (results, losses, aux), (losses, carry, weights, grads)

    def backward(kept, bars):
        losses, *kept = kept
        results_bar, losses_bar, _ = bars
        pull = lambda group, *args: group.pull_back(losses, losses_bar, *args)
        bars = _each(pull, groups, *kept, results_bar)
        return [bar for bar, _ in bars], [bar for _, bar in bars], *[None] * 3

    run.defvjp(forward, backward)
    initial = [(part, state) for _, part, state in split]
    weights = [group.weights for group in groups]
    results, losses, aux = run(initial, weights, keys, steps, data)
    parts, states = map(list, zip(*results, strict=True))
    params, state = tx.join_params(like, parts), tx.join_state(state, states)
    return params, state, losses, aux


def _each(fn, *lists):
    return [fn(*args) for args in zip(*lists, strict=True)]


def _over_blocks(step, zero, shared, blocks):
    """`step(shared, block) -> (summand, result)` at all: the sum, and every result.

    Args:
      step: at one block.
      zero: the sum of none.
      shared: what all blocks see.
      blocks: leaves [num, size] or [num, ..., size].
    """
    num, *_, size = jax.tree.leaves(blocks)[0].shape

    def in_turn(zero, shared, blocks):
        def body(total, block):
            summand, result = step(shared, block)
            return optax.tree.add(total, summand), result

        return jax.lax.scan(body, zero, blocks)

    def together(zero, shared, blocks):
        del zero
        at_all = lambda block: step(shared, block)
        summands, results = jax.lax.map(at_all, blocks, batch_size=_TOGETHER)
        return jax.tree.map(lambda x: jnp.sum(x, 0), summands), results

    in_turn = _map_if_batched(in_turn, batch_size=BLOCK // (num * size))
    return jax.lax.platform_dependent(
        zero, shared, blocks, cpu=in_turn, default=together
    )


def _map_if_batched(fn, batch_size):
    """`fn`, but `vmap` only takes so many at once: more would leave the cache."""
    mapped = jax.custom_batching.custom_vmap(fn)

    @mapped.def_vmap
    def rule(axis_size, is_batched, *args):
        del axis_size
        leaves, treedef = jax.tree.flatten(args)
        pairs = [*zip(leaves, jax.tree.leaves(is_batched), strict=True)]

        def one(batched):
            batched = iter(batched)
            merged = [next(batched) if each else x for x, each in pairs]
            return (fn if batch_size > 1 else mapped)(*treedef.unflatten(merged))

        batched = [x for x, each in pairs if each]
        size = batch_size if batch_size > 1 else None
        results = jax.lax.map(one, batched, batch_size=size)
        return results, jax.tree.map(lambda _: True, results)

    return mapped


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
        self.size = max(1, min(self.total, BLOCK))
        self.num = max(1, math.ceil(self.total / self.size))
        of_size = lambda n: jax.ShapeDtypeStruct((n,), self.dtype)
        one, longer = (
            jax.eval_shape(tx.init, of_size(n)) for n in (self.size, self.size + 1)
        )
        self.statedef = jax.tree.structure(one)
        pairs = [*zip(jax.tree.leaves(one), jax.tree.leaves(longer), strict=True)]
        self.is_shared = [a.shape == b.shape for a, b in pairs]
        self.is_float = [jnp.issubdtype(a.dtype, jnp.floating) for a, _ in pairs]

    def enter(self, params, state):
        """Parameters and state in blocks, shared values the same in all of them."""
        everywhere = lambda x: jnp.broadcast_to(x, (self.num, *x.shape))
        return self.cut(params), self.cut_state(state, everywhere)

    def leave(self, params, state):
        """Undoes `enter`."""
        return self.join(params), self.join_state(state, lambda x: x[0])

    def cut(self, tree):
        """Leaves [*shape, ...] to [num, size, ...]."""
        pairs = zip(jax.tree.leaves(tree), self.shapes, strict=True)
        x = jnp.concatenate(
            [x.reshape(-1, *x.shape[len(shape) :]) for x, shape in pairs]
        )
        # Zero gradients and states: what is padded adds nothing.
        padding = self.num * self.size - self.total
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(self.num, self.size, *x.shape[1:])

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
        """The state's leaves, [num, ..., size]; `share` spreads one that is shared."""
        parts = self.statedef.flatten_up_to(state)
        pairs = zip(parts, self.is_shared, strict=True)
        return [
            share(x) if shared else jnp.moveaxis(self.cut(x), 1, -1)
            for x, shared in pairs
        ]

    def join_state(self, leaves, share):
        """Undoes `cut_state`; `share` reduces [num, ...] of one that is shared.

        In place of a leaf that is None, as integers' cotangents are, there are Nones.
        """

        def join(x, is_shared):
            if is_shared:
                return None if x is None else share(x)
            if x is None:
                return self.treedef.unflatten([None] * len(self.shapes))
            return self.join(jnp.moveaxis(x, -1, 1))

        pairs = zip(leaves, self.is_shared, strict=True)
        return self.statedef.unflatten([join(*pair) for pair in pairs])

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

    def once(self, x):
        """A cotangent of a shared value, in one block alone."""
        return jnp.zeros((self.num, *x.shape), x.dtype).at[0].set(x)


class _Group(_Blocks):
    """One rule, and its parameters in blocks."""

    def __init__(self, tx, params, loss_dtype):
        super().__init__(tx, params)
        # Custom rules see only their arguments: the rule's weights become `weights`.
        block = jnp.zeros(self.size, self.dtype)
        self.update, self.weights = jax.closure_convert(
            lambda grads, *args: tx.update(grads, *args[:2], value=args[2]),
            *(block, tx.init(block), block, jnp.zeros((), loss_dtype)),
        )

    def advance(self, weights, params, state, grads, value):
        """One update of a block: parameters and gradients [size], state [..., size]."""
        args = grads, self.lead(state), params, value
        updates, state = self.update(*args, *weights)
        return optax.apply_updates(params, updates), self.trail(state)

    def advance_all(self, value, weights, carry, grads):
        """One update of all blocks: those of `carry` are the parameters and states."""

        def step(shared, block):
            (weights, value), (params, state, grads) = shared, block
            return (), self.advance(weights, params, state, grads, value)

        _, carry = _over_blocks(step, (), (weights, value), (*carry, grads))
        return carry

    def pull_back(self, losses, losses_bar, carry, weights, grads, results_bar):
        """From the cotangents of K losses and the results: those of what went in.

        Args:
          losses: [K].
          losses_bar: [K].
          carry: the initial parameters and states in blocks.
          weights: the rule's.
          grads: [K, num, size].
          results_bar: of the last parameters and state, as `leave` returns them.

        Returns:
          Those of the initial parameters and state; and of the weights.
        """
        (params, state), (params_bar, state_bar) = carry, results_bar

        def score(weights, params, floats, losses, losses_bar, block):
            """What has the derivatives of the losses and of the last parameters."""
            integers, grads, params_bar, floats_bar = block

            def body(carry, each):
                params, state = carry
                grads, value, bar = each
                loss = bar * _vdot(grads, params)
                return self.advance(weights, params, state, grads, value), loss

            carry = params, self.merge(floats, integers)
            (params, state), scores = jax.lax.scan(
                body, carry, (grads, losses, losses_bar)
            )
            last = params, *self.split(state)[0]
            products = map(_vdot, (params_bar, *floats_bar), last)
            return sum(products, jnp.sum(scores))

        def gradients(shared, block):
            weights, losses, losses_bar = shared
            (params, floats), rest = block
            weights_bar, *bars = jax.grad(score, (0, 1, 2))(
                weights, params, floats, losses, losses_bar, rest
            )
            return weights_bar, bars

        floats, integers = self.split(state)
        # Cotangents of integers have no values.
        floats_bar, _ = self.split(self.cut_state(state_bar, self.once))
        block = integers, jnp.moveaxis(grads, 1, 0), self.cut(params_bar), floats_bar
        weights_bar, (params_bar, floats_bar) = _over_blocks(
            gradients,
            optax.tree.zeros_like(weights),
            (weights, losses, losses_bar),
            ((params, floats), block),
        )
        state_bar = self.merge(floats_bar, [None] * len(integers))
        state_bar = self.join_state(state_bar, lambda x: jnp.sum(x, 0))
        return (self.join(params_bar), state_bar), weights_bar
