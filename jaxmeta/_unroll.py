r"""K updates by any optax transformation, differentiable end to end.

Inner loops, runs of learned optimizers and policy adaptation all use this loop:

.. math::
  g_k = \nabla L_k(\phi_k), \qquad
  (u_k, s_{k+1}) = \operatorname{update}(g_k, s_k, \phi_k), \qquad
  \phi_{k+1} = \phi_k + u_k.

Its derivative needs J^T v for the cotangent v of each g_k, where J is the Jacobian of
the gradient field. Plain `jax.grad` through the loop takes it reverse over reverse and
keeps every activation of every step. If J is a Hessian, J^T v = J v is a `jax.jvp` of
the gradient, forward over reverse. Each step is rematerialised except for g_k, so that
it keeps only a few copies of the parameters.

J is a Hessian unless a derivative was redefined (gradient reversal, straight-through
rounding). By default the traced program is searched for that.

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

from jaxmeta import _custom_rules, _messages, _replay, base

Hvp = Literal["auto", "forward-over-reverse", "reverse-over-reverse"]
HVP_MODES: tuple[Hvp, ...] = ("auto", "forward-over-reverse", "reverse-over-reverse")
# How the gradients of a loop are differentiated: by `Hvp`; "first-order", not at all,
# while losses keep their derivative; or "constant", neither gradients nor losses.
Order = Hvp | Literal["first-order", "constant"]
# (params, key, step, data) -> (scalar, aux)
StepLoss = Callable[[base.Params, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

_SAVED = "jaxmeta_grads"


class Unrolled(NamedTuple):
    """Final state and history of a loop of K updates."""

    params: base.Params
    state: optax.OptState
    losses: jax.Array  # [K] before each update
    aux: Any  # leaves [K, ...]: auxiliary outputs of the loss
    probed: Any  # leaves [K + 1, ...]: `probe(params, k)` after 0 ... K updates


def unroll(
    loss: StepLoss,
    tx: optax.GradientTransformation,
    params: base.Params,
    keys: jax.Array,
    data: Any,
    *,
    order: Order,
    state: optax.OptState | None = None,
    first_step: jax.Array | int = 0,
    probe: Callable[[base.Params, jax.Array], Any] | None = None,
    rematerialize: bool = True,
) -> Unrolled:
    """Makes K updates.

    Args:
      loss: `(params, key, step, data) -> (scalar, aux)`. May close over values that are
        being differentiated.
      tx: any optax transformation; it receives the loss as `value`.
      params: initial parameters.
      keys: [K], one per update.
      data: any pytree, the same for all updates.
      order: how gradients are differentiated; see `Order`. Static.
      state: state of `tx`; None initialises it.
      first_step: number of the first step.
      probe: `(params, step) -> tree`, called before each update and after the last.
      rematerialize: recompute each update except its gradient in the backward pass.
        Static.
    """
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params) if state is None else state
    steps = first_step + jnp.arange(len(keys), dtype=jnp.int32)
    is_first_order = order in ("first-order", "constant")
    if is_first_order and probe is None and _replay.applies(tx, params, state):
        with _messages.explain_update():
            params, last, losses, aux = _replay.unroll(
                loss, tx, params, state, keys, steps, data
            )
        if order == "constant":
            losses = jax.lax.stop_gradient(losses)
        return Unrolled(params, last, losses, aux, None)
    gradient = differentiated(loss, order, params, keys[0], steps[0], data)

    def update(carry, key, step):
        params, state = carry
        (value, aux), grads = gradient(params, key, step, data)
        grads = checkpoint_name(grads, _SAVED)
        # First order: the loss as a rule's input is constant, like its gradients.
        seen = jax.lax.stop_gradient(value) if order == "first-order" else value
        with _messages.explain_update():
            updates, state = tx.update(grads, state, params, value=seen)
        return (optax.apply_updates(params, updates), state), (value, aux)

    if rematerialize:
        update = jax.checkpoint(
            update,
            policy=jax.checkpoint_policies.save_only_these_names(_SAVED),
            prevent_cse=False,  # Not needed under scan.
        )

    def body(carry, each):
        key, step = each
        probed = None if probe is None else probe(carry[0], step)
        carry, (value, aux) = update(carry, key, step)
        return carry, (value, aux, probed)

    carry = (params, state)
    with _messages.explain_forward_mode():
        carry, (losses, aux, probed) = jax.lax.scan(body, carry, (keys, steps))
    params, state = carry
    if probe is not None:
        # K probes before the updates and one after the last: [K + 1, ...].
        last = probe(params, jnp.asarray(first_step + len(keys), jnp.int32))
        probed = jax.tree.map(lambda x, y: jnp.append(x, y[None], 0), probed, last)
    return Unrolled(params, state, losses, aux, probed)


def differentiated(loss: StepLoss, order: Order, *args: Any) -> Callable[..., Any]:
    """`jax.value_and_grad(loss, has_aux=True)`, differentiated as `order` says.

    Args:
      loss: see `unroll`.
      order: see `Order`.
      args: arguments of the loss; only shapes and dtypes are used.
    """
    if order == "constant":
        plain = jax.value_and_grad(loss, has_aux=True)
        return lambda *args: jax.lax.stop_gradient(plain(*args))
    if order == "first-order":
        return _first_order(loss)
    if order == "reverse-over-reverse":
        return _reverse_over_reverse(loss)
    # Custom rules see only their arguments, so closed-over values become `constants`.
    loss, constants = jax.closure_convert(loss, *args)
    if order == "auto" and not is_gradient_field(loss, *args, *constants):
        exact = _reverse_over_reverse(loss)
    else:
        if order == "forward-over-reverse":
            check_forward_mode(lambda *args: loss(*args)[0], *args, *constants)
        exact = _forward_over_reverse(loss)
    return lambda *args: exact(*args, *constants)


def is_gradient_field(loss: Callable[..., Any], *args: Any) -> bool:
    """Whether J^T v = J v for the loss's gradient, and J v can be computed."""
    return not _custom_rules.redefined_derivatives(loss, *args)


def check_forward_mode(value: Callable[..., jax.Array], *args: Any) -> None:
    """Raises early if a scalar's gradient has no forward mode."""
    if is_gradient_field(value, *args):
        return
    params, *rest = args
    gradient = jax.grad(lambda params: value(params, *rest))
    with _messages.explain_forward_mode(model=True):
        _custom_rules.check_forward_mode(gradient, params)


def _first_order(loss):
    """`jax.value_and_grad` whose gradient is treated as a constant.

    The value keeps its derivative, which is the gradient itself: the backward pass
    stores nothing else.
    """

    @jax.custom_vjp
    def value_and_grad(params, *rest):
        found, grads = jax.value_and_grad(loss, has_aux=True)(params, *rest)
        return found, jax.lax.stop_gradient(grads)

    def forward(params, *rest):
        found, grads = jax.value_and_grad(loss, has_aux=True)(params, *rest)
        # Named here too, else rematerialization would recompute this residual.
        grads = checkpoint_name(grads, _SAVED)
        return (found, grads), (grads, [None] * len(rest))

    def backward(kept, cotangents):
        # bar params = bar L * g; the cotangents of g and aux are dropped.
        grads, rest_bar = kept
        (value_bar, _), _ = cotangents
        return jax.tree.map(lambda g: (value_bar * g).astype(g.dtype), grads), *rest_bar

    value_and_grad.defvjp(forward, backward)
    return value_and_grad


def _reverse_over_reverse(loss):
    """`jax.value_and_grad`, differentiated by JAX itself."""

    def value_and_grad(*args):
        grads, aux = jax.grad(loss, has_aux=True)(*args)
        # Not the value from `value_and_grad`: its derivative would be that of a
        # `custom_vjp`'s forward pass, not the one that the rule defines.
        value, _ = loss(*args)
        return (value, aux), grads

    return value_and_grad


def _forward_over_reverse(loss):
    """`jax.value_and_grad` with a forward-over-reverse derivative."""

    @jax.custom_vjp
    def value_and_grad(*args):
        return jax.value_and_grad(loss, has_aux=True)(*args)

    def forward(*args):
        # Not the decorated function, or the gradient of a meta-gradient would
        # differentiate the custom rule itself.
        return jax.value_and_grad(loss, has_aux=True)(*args), args

    def backward(args, cotangents):
        (loss_bar, _), grads_bar = cotangents  # bar L, and v shaped like params
        params, *rest = args
        # Keys and integers have no cotangent; all float leaves do.
        leaves, treedef = jax.tree.flatten(rest)
        is_float = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves]
        floats = [x for x, use in zip(leaves, is_float, strict=True) if use]

        def merge(floats, others):
            floats = iter(floats)
            pairs = zip(others, is_float, strict=True)
            return treedef.unflatten([next(floats) if use else x for x, use in pairs])

        # (dL/dparams, dL/dfloats) as a function of the parameters alone.
        def all_grads(params):
            value = lambda params, floats: loss(params, *merge(floats, leaves))[0]
            return jax.grad(value, argnums=(0, 1))(params, floats)

        # Symmetry again: d/d(floats) of (v . dL/dparams) is d/dparams of dL/d(floats)
        # along v. So one jvp gives the products with all mixed derivatives.
        grads, products = jax.jvp(all_grads, (params,), (grads_bar,))
        params_bar, floats_bar = jax.tree.map(
            lambda g, p: (loss_bar * g + p).astype(g.dtype), grads, products
        )
        return params_bar, *merge(floats_bar, [None] * len(leaves))

    value_and_grad.defvjp(forward, backward)
    return value_and_grad
