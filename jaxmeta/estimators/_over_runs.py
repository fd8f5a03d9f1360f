"""The meta-gradient over parallel runs: the only place that adds their axis."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from jaxmeta import _messages, _pytrees, base
from jaxmeta.estimators import _runs


def over_runs(
    one_run: Callable[..., Any],
    init: Callable[[jax.Array], tuple[Any, Any]],
    problem: base.OptimizationProblem,
    num_problems: int,
    mesh: Mesh | None,
    draw: Callable[[jax.Array], Any] | None = None,
    runs_of: Callable[[Any], _runs.Run] | None = None,
) -> base.GradientEstimator:
    """Returns an estimator that averages the gradients of `one_run` over runs.

    A run with a non-finite gradient is excluded and ended: one diverged run must not
    end training.

    Args:
      one_run: `(theta, problem, meta_step, key, carry) -> (grads, (carry, info))`.
      init: `(key) -> (theta, carry)`, with carry leaves [N, ...].
      problem: the family of problems.
      num_problems: N.
      mesh: shards the runs over this mesh's devices.
      draw: `(key) -> value` that all runs get in place of the meta-step.
      runs_of: `(carry) -> runs`, leaves [N, ...], if these start anew when they are
        over. `one_run` gets `(carry, start_key, drawn)` in place of the carry, what
        `_runs.start` takes.
    """

    def all_runs(theta, problem, meta_step, keys, carry):
        """Sum and number of the finite gradients, and (carry, info)."""
        if runs_of is not None:
            pairs = jax.vmap(jax.random.split)(keys)
            start_keys, keys = pairs[:, 0], pairs[:, 1]
            drawn = _runs.draw_if_over(start_keys, problem, runs_of(carry))
            carry = carry, start_keys, drawn
        if keys.shape[0] == 1:  # `vmap` is slower for one run.
            one = jax.tree.map(lambda x: x[0], carry)
            found = one_run(theta, problem, meta_step, keys[0], one)
            grads, (carry, info) = jax.tree.map(lambda x: x[None], found)
        else:
            vectorized = jax.vmap(one_run, (None, None, None, 0, 0))
            grads, (carry, info) = vectorized(theta, problem, meta_step, keys, carry)
        finite = lambda g: jnp.all(jnp.isfinite(g.reshape(g.shape[0], -1)), 1)
        flags = jax.tree.map(finite, jax.tree.leaves(grads))
        is_valid = jnp.all(jnp.stack([jnp.isfinite(info.loss), *flags]), 0)  # [N]

        def add(g):
            kept = is_valid.reshape(-1, *[1] * (g.ndim - 1))
            # `where`, not a product: 0 * NaN is NaN.
            return jnp.sum(jnp.where(kept, g, 0), 0)

        loss = jnp.where(is_valid, info.loss, jnp.nan)
        info = info._replace(loss=loss, is_valid=is_valid)
        if carry is not None:
            carry = _runs.end(carry, ~is_valid)
        # A float like the gradients, so that one all-reduce sums both.
        count = jnp.sum(is_valid, dtype=jnp.float32)
        return jax.tree.map(add, grads), count, (carry, info)

    def sharded(mesh, *args):
        axes = mesh.axis_names

        def on_device(*args):
            total, count, rest = all_runs(*args)
            return *jax.lax.psum((total, count), axes), rest

        everywhere, over = PartitionSpec(), PartitionSpec(axes)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(everywhere, everywhere, everywhere, over, over),
            out_specs=(everywhere, everywhere, over),
            check_vma=False,  # As in `over_tasks`.
        )(*args)

    def estimate(problem, key, meta_params, carry, *, step=0, **extra):
        del extra
        if draw is not None:
            key, draw_key = jax.random.split(key)
            step = draw(draw_key)
        keys = jax.random.split(key, num_problems)
        run = all_runs if mesh is None else functools.partial(sharded, mesh)
        with _messages.explain_reverse_mode():
            total, count, (carry, info) = run(meta_params, problem, step, keys, carry)
        mean = lambda g: (g / jnp.maximum(count, 1)).astype(g.dtype)
        return jax.tree.map(mean, total), carry, info

    return base.GradientEstimator(init, Partial(estimate, _pytrees.as_pytree(problem)))


def place(theta: Any, runs: Any, mesh: Mesh | None) -> tuple[Any, Any]:
    """Shards initial states as the steps return them, so that steps compile once."""
    if mesh is None:
        return theta, runs
    constrain = jax.lax.with_sharding_constraint
    everywhere = NamedSharding(mesh, PartitionSpec())
    over = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return constrain(theta, everywhere), constrain(runs, over)
