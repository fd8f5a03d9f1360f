"""Optimization runs in progress, which estimators for learned optimizers advance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from jaxmeta import _checks, _inner_loop, base

_SAVED = "jaxmeta_run_grads"


class Run(NamedTuple):
    """An optimization run; `vmap` adds the axis of runs in front."""

    instance: Any  # of the problem
    params: base.Params
    opt_state: optax.OptState
    step: jax.Array  # [] int32, updates made


class RunInfo(NamedTuple):
    """Diagnostics of one stretch of a run."""

    loss: jax.Array  # [] mean over the stretch


def start(key: jax.Array, theta: Any, lopt: base.LearnedOptimizer, problem: Any) -> Run:
    """Draws an instance and where to start."""
    sample_key, init_key = jax.random.split(key)
    instance = problem.sample(sample_key)
    params = problem.init(init_key, instance)
    _checks.check_params(params)
    opt_state = lopt.transform(theta).init(params)
    return Run(instance, params, opt_state, jnp.zeros((), jnp.int32))


def advance(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    *,
    second_order: bool,
    rematerialize: bool = True,
) -> Callable[..., tuple[Run, jax.Array]]:
    """Returns `go(key, theta, run, length) -> (run, losses [length])`.

    The losses are those after each of the `length` updates.

    Args:
      lopt: makes the updates.
      problem: what is optimized.
      second_order: differentiate the gradients that the optimizer sees, by
        Hessian-vector products; if not, the paper's dropped edges. Static.
      rematerialize: keep the gradients of each step, and compute again what else the
        backward pass needs. Static.
    """

    def scalar_loss(params, key, instance):
        value = problem.loss(params, instance, key)
        _checks.check_scalar_loss("problem.loss", value)
        return value

    def go(key, theta, run, length):
        tx = optax.with_extra_args_support(lopt.transform(theta))
        if second_order:
            gradient, constants = _inner_loop.exact_gradient(
                scalar_loss, run.params, key, run.instance
            )
        else:
            gradient, constants = _first_order_gradient(scalar_loss), ()

        def step(carry, step_key):
            params, opt_state = carry
            loss, grads = gradient(params, step_key, run.instance, *constants)
            grads = checkpoint_name(grads, _SAVED)
            value = loss if second_order else jax.lax.stop_gradient(loss)
            updates, opt_state = tx.update(grads, opt_state, params, value=value)
            return (optax.apply_updates(params, updates), opt_state), loss

        if rematerialize:
            step = jax.checkpoint(
                step,
                policy=jax.checkpoint_policies.save_only_these_names(_SAVED),
                prevent_cse=False,  # Not needed under scan.
            )
        *step_keys, last_key = jax.random.split(key, length + 1)
        carry = (run.params, run.opt_state)
        (params, opt_state), losses = jax.lax.scan(step, carry, jnp.stack(step_keys))
        last = scalar_loss(params, last_key, run.instance)
        losses = jnp.append(losses[1:], last)
        return Run(run.instance, params, opt_state, run.step + length), losses

    return go


def _first_order_gradient(loss):
    """`jax.value_and_grad(loss)` whose gradient is a constant to the derivative.

    The value still has its derivative, which is the gradient itself: nothing else is
    kept for the backward pass.
    """

    @jax.custom_vjp
    def value_and_grad(params, key, instance):
        value, grads = jax.value_and_grad(loss)(params, key, instance)
        return value, jax.lax.stop_gradient(grads)

    def forward(params, key, instance):
        value, grads = jax.value_and_grad(loss)(params, key, instance)
        return (value, grads), grads

    def backward(grads, cotangents):
        value_bar, _ = cotangents
        return (
            jax.tree.map(lambda g: (value_bar * g).astype(g.dtype), grads),
            None,
            None,
        )

    value_and_grad.defvjp(forward, backward)
    return value_and_grad
