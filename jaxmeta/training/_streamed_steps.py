"""Meta-steps on tasks from the host."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmeta import base

# Batches transferred to the device ahead of their meta-step.
AHEAD = 2


def piece_runner(
    stream: base.TaskStream, step: int, totals_of: Callable[[Any], Any]
) -> Callable[..., Any]:
    """Returns `(train_step, state, totals, length) -> (state, totals)`, from `step`."""
    batches = on_device(stream, step)
    one_step = jax.jit(
        lambda train_step, state, tasks: train_step(state, tasks=tasks),
        donate_argnums=1,
    )
    # Metric by metric, as in the compiled loop: the sums are the same in any pieces.
    start = jax.jit(totals_of)
    add = jax.jit(lambda totals, info: jax.tree.map(jnp.add, totals, totals_of(info)))

    def run_piece(train_step, state, totals, length):
        for _ in range(length):
            state, info = one_step(train_step, state, next(batches))
            totals = start(info) if totals is None else add(totals, info)
        return state, totals

    return run_piece


def on_device(stream: base.TaskStream, step: int) -> Iterator[base.Task]:
    """Yields the batches from `step` on, transferring `AHEAD` batches in advance."""
    # Device transfers are asynchronous: they overlap with the running meta-step.
    waiting = collections.deque()
    for batch in stream.read(step):
        waiting.append(_put(batch, stream.mesh))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting
    raise ValueError("`stream.read` ended before the last meta-step.")


def _put(batch, mesh):
    if mesh is None:
        return jax.device_put(batch)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    put = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: put(sharding, np.asarray(x)), batch)
