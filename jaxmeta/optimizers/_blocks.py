"""Networks at every coordinate of a large leaf, block by block in one state."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

# `(theta, inputs, units, axis) -> (outputs, units)`, each coordinate by itself: inputs
# [..., I], units [..., S] and outputs [..., O], or, where axis is 0, the transposed.
Step: TypeAlias = Callable[..., tuple[jax.Array, jax.Array]]

# Coordinates whose gates stay in a CPU's second-level cache.
_CPU_BLOCK = 256


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def at_coordinates(
    step: Step,
    block_size: int | None,
    theta: object,
    inputs: jax.Array,
    units: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One step at all coordinates of a leaf.

    On a CPU the gates of a large leaf would go to memory and come back, and new memory
    costs more than their computation. So they are computed in blocks, features first,
    and the state is overwritten where it is. Derivatives, which need the gates, are
    those of the whole.

    Args:
      step: what is to be computed. Static.
      block_size: how many coordinates at once on other devices; None is all. Static.
      theta: the network's weights.
      inputs: [..., I].
      units: the state, [..., S].
    """
    size = math.prod(units.shape[:-1])
    sharded = any(jax.typeof(units).sharding.spec)

    def in_blocks_of(block):
        if sharded or block is None or size <= block:
            return step
        return functools.partial(_in_blocks, step, block)

    on_cpu = in_blocks_of(_CPU_BLOCK) if size >= 16 * _CPU_BLOCK else step
    others = in_blocks_of(block_size)
    if on_cpu is others:
        return step(theta, inputs, units)
    return jax.lax.platform_dependent(theta, inputs, units, cpu=on_cpu, default=others)


@at_coordinates.defjvp
def _(step, block_size, primals, tangents):
    _, tangents = jax.jvp(step, primals, tangents)
    # Where `jax.checkpoint` wants the value alone, that comes from the blocks too.
    return at_coordinates(step, block_size, *primals), tangents


def _in_blocks(step, block, theta, inputs, units):
    flat = lambda x: x.reshape(-1, x.shape[-1])
    num_features = jax.eval_shape(step, theta, inputs, units)[0].shape[-1]
    outputs = jnp.zeros((*units.shape[:-1], num_features), inputs.dtype)
    inputs, carry = flat(inputs), (flat(outputs), _as_bits(flat(units)))

    def advance(carry, start, size):
        outputs, bits = carry
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size).T
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new.T, start, 0)
        old = jax.lax.bitcast_convert_type(cut(bits), units.dtype)
        new_outputs, new = step(theta, cut(inputs), old, axis=0)
        return put(outputs, new_outputs), put(bits, _as_bits(new))

    count, rest = divmod(len(inputs), block)
    carry = jax.lax.fori_loop(
        0, count, lambda i, c: advance(c, i * block, block), carry
    )
    if rest:
        carry = advance(carry, count * block, rest)
    outputs, bits = carry
    new_units = jax.lax.bitcast_convert_type(bits, units.dtype)
    return outputs.reshape(*units.shape[:-1], -1), new_units.reshape(units.shape)


def _as_bits(x):
    """Half precision as integers: XLA's CPU would widen all of it to write a part."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.itemsize == 2 else x
