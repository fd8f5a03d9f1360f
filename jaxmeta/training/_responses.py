"""An optimizer's update as a function of one coordinate's gradient."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxmeta import _checks, _pytrees, base
from jaxmeta.estimators import _runs


class UpdateResponses(NamedTuple):
    """Updates of one coordinate at S steps of N runs, for G gradients."""

    steps: jax.Array  # [S] updates made before the probe
    gradients: jax.Array  # [G]
    updates: jax.Array  # [N, S, G]


def update_responses(
    lopt: base.LearnedOptimizer,
    theta: Any,
    problem: base.OptimizationProblem,
    *,
    gradients: Any,
    steps: Sequence[int],
    num_problems: int,
    key: jax.Array,
) -> UpdateResponses:
    """Probes an optimizer along its own runs.

    After each of `steps` updates, one coordinate of the gradient, fixed per run, is
    replaced by each of `gradients` in turn; the others are unchanged. This shows the
    rule's effective learning rate, momentum and clipping in that state.

    Args:
      lopt: a learned optimizer, or an optax one through `optimizers.learned_rate`.
      theta: its meta-parameters, or the learning rate.
      problem: the family of problems.
      gradients: [G], gradients to try.
      steps: [S], numbers of updates before each probe, ascending.
      num_problems: N, runs.
      key: draws the problems and coordinates.

    Raises:
      ValueError: if a count is not an int in range, or there are no gradients.

    References:
      Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
      NeurIPS 2016, Appendix C. https://arxiv.org/abs/1606.04474

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> sgd = jm.optimizers.learned_rate(optax.sgd)
      >>> found = update_responses(sgd, 0.5, jm.problems.quadratics(2), steps=[0, 3],
      ...                          gradients=[-1.0, 2.0], num_problems=1,
      ...                          key=jax.random.key(0))
      >>> found.updates.tolist()
      [[[0.5, -1.0], [0.5, -1.0]]]
    """
    _checks.check_int("num_problems", num_problems)
    steps = tuple(steps)
    for step in steps:
        _checks.check_int("steps", step, minimum=0)
    if not steps or list(steps) != sorted(set(steps)):
        raise ValueError(f"`steps` must be ascending, at least one, got {list(steps)}.")
    gradients = jnp.asarray(gradients, float)
    if gradients.ndim != 1 or not gradients.size:
        raise ValueError(
            f"`gradients` must have shape [G], not empty, got {gradients.shape}."
        )
    theta = jax.tree.map(jnp.asarray, theta)
    arrays = theta, _pytrees.as_pytree(problem), gradients
    updates = _respond(lopt, steps, num_problems, key, *arrays)
    return UpdateResponses(jnp.array(steps), gradients, updates)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _respond(lopt, steps, num_problems, key, theta, problem, gradients):
    """Returns [N, S, G]."""
    advance = _runs.advance(lopt, order="constant", rematerialize=False)

    def scalar_loss(params, instance, key):
        value = problem.loss(params, instance, key)
        _checks.check_scalar_loss("problem.loss", value)
        return value

    def probe(run, coordinate, key):
        tx = _runs.told_horizon(lopt.transform(theta), run.horizon)
        value, grads = jax.value_and_grad(scalar_loss)(run.params, run.instance, key)
        flat, unravel = ravel_pytree(grads)

        def respond(gradient):
            changed = unravel(flat.at[coordinate].set(gradient))
            updates, _ = tx.update(changed, run.opt_state, run.params, value=value)
            return ravel_pytree(updates)[0][coordinate]

        return jax.lax.map(respond, gradients)

    def one_run(key):
        start_key, coordinate_key, run_key = jax.random.split(key, 3)
        run = _runs.start(start_key, theta, lopt, problem, max(steps) + 1)
        size = sum(x.size for x in jax.tree.leaves(run.params))
        coordinate = jax.random.randint(coordinate_key, (), 0, size)
        found = []
        for i, length in enumerate(np.diff((0, *steps))):
            go_key, probe_key = jax.random.split(jax.random.fold_in(run_key, i))
            if length:
                run, _ = advance(go_key, problem, theta, run, int(length))
            found.append(probe(run, coordinate, probe_key))
        return jnp.stack(found)

    return jax.lax.map(one_run, jax.random.split(key, num_problems))
