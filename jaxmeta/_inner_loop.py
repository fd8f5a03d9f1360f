"""K steps of any optax transformation on one task, differentiable end to end.

Exact second order costs a Hessian-vector product per inner step. Plain `jax.grad`
through the loop takes it reverse over reverse and keeps every activation of every
inner step. Here the inner gradient carries its own VJP, a `jax.jvp` of the gradient
(forward over reverse: the Hessian is symmetric, and the mixed derivatives with
respect to everything else come out of the same jvp), and each step is rematerialised
but for its inner gradient. What is kept for an inner step is then a few copies of
the parameters.

References:
  Kemaev et al., "Scalable Meta-Learning via Mixed-Mode Differentiation", ICML 2025.
  https://arxiv.org/abs/2505.00793
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from jaxmeta import base

Hvp = Literal["forward-over-reverse", "reverse-over-reverse"]
HVP_MODES: tuple[Hvp, ...] = ("forward-over-reverse", "reverse-over-reverse")
SupportLoss = Callable[..., jax.Array]  # (params, key, examples, step) -> scalar

_SAVED = "jaxmeta_inner_grads"


class InnerLoopResult(NamedTuple):
    """What `unroll` returns; K inner steps."""

    params: base.Params
    inner_state: optax.OptState
    losses: jax.Array  # [K] support loss before each step
    probed: Any  # leaves [K + 1, ...]: `probe(params, k)` after 0 ... K steps


def unroll(
    support_loss: SupportLoss,
    inner_tx: optax.GradientTransformation,
    *,
    first_order: bool = False,
    hvp: Hvp = "forward-over-reverse",
) -> Callable[..., InnerLoopResult]:
    """Returns `run(key, params, support, inner_steps, probe=None, inner_state=None)`.

    Args:
      support_loss: `(params, key, support, step) -> scalar`, `step` counting from 0.
        May close over values that are being differentiated.
      inner_tx: any optax transformation; its state starts fresh for every task unless
        `inner_state` is given.
      first_order: treat the inner gradients as constants. Static.
      hvp: how Hessian-vector products are taken. "forward-over-reverse" keeps least
        but adaptation cannot then be differentiated in forward mode (`jax.jvp`,
        `jax.hessian`; of a meta-gradient it can); "reverse-over-reverse" can. Static.
    """
    inner_tx = optax.with_extra_args_support(inner_tx)

    def run(key, params, support, inner_steps, probe=None, inner_state=None):
        data = (support, jnp.zeros((), jnp.int32))
        value_and_grad, constants = _inner_gradient(
            lambda params, key, data: support_loss(params, key, *data),
            first_order,
            hvp,
            params,
            key,
            data,
        )

        def inner_step(carry, step_key, step):
            params, inner_state = carry
            loss, grads = value_and_grad(params, step_key, (support, step), *constants)
            if first_order:
                loss, grads = jax.lax.stop_gradient((loss, grads))
            grads = checkpoint_name(grads, _SAVED)
            updates, inner_state = _update(inner_tx, grads, inner_state, params, loss)
            return optax.apply_updates(params, updates), inner_state, loss

        if not first_order:
            inner_step = jax.checkpoint(
                inner_step,
                policy=jax.checkpoint_policies.save_only_these_names(_SAVED),
                prevent_cse=False,  # Not needed under scan.
            )

        def body(carry, each):
            _, step = each
            probed = None if probe is None else probe(carry[0], step)
            *carry, loss = inner_step(carry, *each)
            return tuple(carry), (loss, probed)

        carry = (params, inner_tx.init(params) if inner_state is None else inner_state)
        each = (
            jax.random.split(key, inner_steps),
            jnp.arange(inner_steps, dtype=jnp.int32),
        )
        try:
            (params, inner_state), (losses, probed) = jax.lax.scan(body, carry, each)
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            raise TypeError(
                "`jax.jvp` and `jax.jacfwd` do not pass this inner loop, whose "
                "Hessian-vector products are forward over reverse. Take reverse mode "
                "(`jax.grad`, `jax.jacrev`), or `jaxmeta.maml` with "
                'hvp="reverse-over-reverse".'
            ) from error
        if probe is not None:
            last = probe(params, jnp.full((), inner_steps, jnp.int32))
            probed = jax.tree.map(lambda x, y: jnp.append(x, y[None], 0), probed, last)
        return InnerLoopResult(params, inner_state, losses, probed)

    return run


def _update(inner_tx, grads, inner_state, params, loss):
    try:
        return inner_tx.update(grads, inner_state, params, value=loss)
    except TypeError as error:
        if "missing" not in str(error):
            raise
        raise ValueError(
            f"`inner_tx` needs more than gradients and the loss (`value`): {error}. "
            "Line searches (`optax.lbfgs`) cannot be differentiated through; use a "
            "plain chain such as `optax.sgd` or `jaxmeta.optimizers.adam`."
        ) from error


def _inner_gradient(loss, first_order, hvp, params, key, data):
    """Returns `value_and_grad(params, key, data, *constants)` and its constants."""
    if first_order or hvp == "reverse-over-reverse":
        return jax.value_and_grad(loss), ()
    return exact_gradient(loss, params, key, data)


def exact_gradient(loss, params, key, data):
    """A `jax.value_and_grad(loss)` whose own derivative is taken forward over reverse.

    Returns:
      `value_and_grad(params, key, data, *constants)` and its constants: the values that
      `loss` closes over. What is differentiated must be an argument of a custom VJP.
    """
    loss, constants = jax.closure_convert(loss, params, key, data)
    return _forward_over_reverse(loss), constants


def _forward_over_reverse(loss):
    """`jax.value_and_grad(loss)` with a forward-over-reverse VJP."""

    @jax.custom_vjp
    def value_and_grad(*args):
        return jax.value_and_grad(loss)(*args)

    def forward(*args):
        # Not the decorated function: its own rule would then be differentiated when
        # someone takes the gradient of a meta-gradient.
        return jax.value_and_grad(loss)(*args), args

    def backward(args, cotangents):
        loss_bar, grads_bar = cotangents
        params, *rest = args
        # Keys and integers have no cotangent; the rest of every argument has.
        leaves, treedef = jax.tree.flatten(rest)
        is_float = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves]
        floats = [x for x, use in zip(leaves, is_float, strict=True) if use]

        def loss_of_floats(params, floats):
            remaining = iter(floats)
            merged = [
                next(remaining) if use else x
                for x, use in zip(leaves, is_float, strict=True)
            ]
            return loss(params, *treedef.unflatten(merged))

        def all_grads(params):
            return jax.grad(loss_of_floats, argnums=(0, 1))(params, floats)

        grads, products = jax.jvp(all_grads, (params,), (grads_bar,))
        params_bar, floats_bar = jax.tree.map(
            lambda g, p: (loss_bar * g + p).astype(g.dtype), grads, products
        )
        remaining = iter(floats_bar)
        rest_bar = [next(remaining) if use else None for use in is_float]
        return params_bar, *treedef.unflatten(rest_bar)

    value_and_grad.defvjp(forward, backward)
    return value_and_grad
