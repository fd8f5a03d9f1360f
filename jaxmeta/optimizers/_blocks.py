"""Large leaves block by block, in place: networks at coordinates, elementwise rules."""

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


# `(shared, read, state) -> (sums, outputs, state)`, elementwise in arrays of one shape;
# the sums are over all their entries.
Elementwise: TypeAlias = Callable[..., tuple[Any, Any, Any]]

# Entries per piece: some twenty arrays of them stay in a CPU's second-level cache.
_CPU_PIECE = 4096


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def in_pieces(fn: Elementwise, shared: Any, read: Any, state: Any) -> Any:
    """`fn(shared, read, state)`, on a CPU piece by piece.

    Several functions of several large arrays are otherwise a pass through memory each.
    The state is updated in place. Multi-device programs and derivatives compute
    everything at once, as in `at_coordinates`.

    Args:
      fn: the function. Static, and the same object at every call.
      shared: what all entries see.
      read: a pytree of arrays of one shape.
      state: another, which `fn` returns anew.
    """
    leaf = jax.tree.leaves(read)[0]
    if leaf.size < 4 * _CPU_PIECE or any(jax.typeof(leaf).sharding.spec):
        return fn(shared, read, state)
    on_cpu = functools.partial(_in_pieces_on_one_device, fn)
    return jax.lax.platform_dependent(shared, read, state, cpu=on_cpu, default=fn)


@in_pieces.defjvp
def _(fn, primals, tangents):
    _, tangents = jax.jvp(fn, primals, tangents)
    return in_pieces(fn, *primals), tangents


@functools.partial(jax.jit, static_argnums=0)
def _in_pieces_on_one_device(fn, *operands):
    is_alone = _on_one_device.bind(*jax.tree.leaves(operands))
    by_piece = functools.partial(_by_piece, fn)
    return jax.lax.cond(is_alone, by_piece, fn, *operands)


def _by_piece(fn, shared, read, state):
    shape = jax.tree.leaves(read)[0].shape
    vary = functools.partial(_vary_like, (shared, read, state))
    sums, outputs, _ = jax.eval_shape(fn, shared, read, state)
    zeros = lambda x, shape: vary(jnp.zeros(shape, x.dtype))
    size = math.prod(shape)
    read, state = jax.tree.map(jnp.ravel, (read, state))
    carry = (
        jax.tree.map(lambda x: zeros(x, x.shape), sums),
        jax.tree.map(lambda x: zeros(x, (size,)), outputs),
        jax.tree.map(vary, state),
    )

    def advance(carry, start, length):
        sums, outputs, state = carry
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length)
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, 0)
        more, *new = fn(shared, *jax.tree.map(cut, (read, state)))
        placed = jax.tree.map(put, (outputs, state), tuple(new))
        return jax.tree.map(jnp.add, sums, more), *placed

    count, rest = divmod(size, _CPU_PIECE)
    body = lambda i, carry: advance(carry, i * _CPU_PIECE, _CPU_PIECE)
    carry = jax.lax.fori_loop(0, count, body, carry)
    if rest:  # The last, shorter piece has its own static size.
        carry = advance(carry, count * _CPU_PIECE, rest)
    sums, *arrays = carry
    return sums, *jax.tree.map(lambda x: x.reshape(shape), tuple(arrays))


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
