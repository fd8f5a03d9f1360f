"""Applies a network at every coordinate of a large leaf, block by block in place."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.extend import core as extend
from jax.interpreters import batching, mlir

# `(theta, inputs, state, axis) -> (outputs, state)`, independent per coordinate: inputs
# [..., I], state [..., S], outputs [..., O]; with axis 0, transposed.
Step: TypeAlias = Callable[..., tuple[jax.Array, jax.Array]]

# Coordinates per block, so that their gates stay in a CPU's second-level cache.
_CPU_BLOCK = 256


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def at_coordinates(
    step: Step,
    block_size: int | None,
    theta: object,
    inputs: jax.Array,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One step at all coordinates of a leaf.

    On a CPU the gates of a large leaf would make a round trip to memory, and allocating
    it costs more than computing them. So they are computed in blocks, features first,
    and the state is updated in place. Derivatives, which need the gates, are computed
    for the whole leaf. Multi-device programs also compute it at once: blocks cut across
    shards, so every device would gather all of them.

    Args:
      step: the function to compute. Static.
      block_size: coordinates per block on other devices; None is all. Static.
      theta: the network's weights.
      inputs: [..., I].
      state: [..., S].
    """
    size = math.prod(state.shape[:-1])
    # Explicit shardings are known at trace time, others only at lowering.
    sharded = any(jax.typeof(state).sharding.spec)

    def in_blocks_of(block):
        if sharded or block is None or size <= block:
            return step
        return functools.partial(_in_blocks_on_one_device, step, block)

    # Only for large leaves, of 16 blocks or more.
    on_cpu = in_blocks_of(_CPU_BLOCK) if size >= 16 * _CPU_BLOCK else step
    others = in_blocks_of(block_size)
    if on_cpu is others:
        return step(theta, inputs, state)
    return jax.lax.platform_dependent(theta, inputs, state, cpu=on_cpu, default=others)


@at_coordinates.defjvp
def _(step, block_size, primals, tangents):
    # Tangents of the whole leaf; values by blocks, also for `jax.checkpoint`'s forward.
    _, tangents = jax.jvp(step, primals, tangents)
    return at_coordinates(step, block_size, *primals), tangents


# Under `jit`, so that it is traced once per shape.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _in_blocks_on_one_device(step, block, *operands):
    is_alone = _on_one_device.bind(*jax.tree.leaves(operands))
    # The predicate is a compile-time constant: the other branch is dropped.
    in_blocks = functools.partial(_in_blocks, step, block)
    return jax.lax.cond(is_alone, in_blocks, step, *operands)


# Whether the program with these operands runs on one device: [] bool, a constant known
# only at lowering. The operands tie it to the programs that transformations create.
_on_one_device = extend.Primitive("on_one_device")
_on_one_device.def_abstract_eval(lambda *_: core.ShapedArray((), np.dtype(bool)))
_on_one_device.def_impl(  # Under `jax.disable_jit`.
    lambda *xs: all(len(jnp.asarray(x).sharding.device_set) == 1 for x in xs)
)
batching.primitive_batchers[_on_one_device] = lambda operands, _: (
    _on_one_device.bind(*operands),
    None,  # No batch axis.
)


def _lower_on_one_device(ctx, *_):
    context: Any = ctx.module_context.axis_context
    num_devices = getattr(context, "num_devices", 1)
    if hasattr(context, "manual_axes"):  # In `shard_map` manual axes are one device.
        sizes = context.mesh.shape.items()
        num_devices = math.prod(n for x, n in sizes if x not in context.manual_axes)
    return [mlir.ir_constant(np.bool_(num_devices == 1))]


mlir.register_lowering(_on_one_device, _lower_on_one_device)


def _in_blocks(step, block, theta, inputs, state):
    flat = lambda x: x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    num_features = jax.eval_shape(step, theta, inputs, state)[0].shape[-1]
    outputs = jnp.zeros((*state.shape[:-1], num_features), inputs.dtype)
    vary = functools.partial(_vary_like, (theta, inputs, state))
    carry = vary(flat(outputs)), vary(_as_bits(flat(state)))
    inputs = flat(inputs)

    def advance(carry, start, size):
        outputs, bits = carry
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size).T
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new.T, start, 0)
        old = jax.lax.bitcast_convert_type(cut(bits), state.dtype)
        new_outputs, new = step(theta, cut(inputs), old, axis=0)
        return put(outputs, new_outputs), put(bits, _as_bits(new))

    count, rest = divmod(len(inputs), block)
    carry = jax.lax.fori_loop(
        0, count, lambda i, c: advance(c, i * block, block), carry
    )
    if rest:  # The last, shorter block has its own static size.
        carry = advance(carry, count * block, rest)
    outputs, bits = carry
    new_state = jax.lax.bitcast_convert_type(bits, state.dtype)
    return outputs.reshape(*state.shape[:-1], -1), new_state.reshape(state.shape)


def _vary_like(operands, x):
    """Makes a loop carry vary in `shard_map` over the devices like its updates.

    It is a `where` whose predicate is false but depends on the operands; the compiler
    removes it.
    """
    never = [jnp.zeros_like(leaf, bool, shape=()) for leaf in jax.tree.leaves(operands)]
    return jnp.where(functools.reduce(jnp.logical_or, never), jnp.zeros_like(x), x)


def _as_bits(x):
    """Half precision as integers: XLA on CPU would widen the whole array per update."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.itemsize == 2 else x
