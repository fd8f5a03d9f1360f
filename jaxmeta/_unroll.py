r"""K updates of any optax transformation on anything, differentiable end to end.

Inner loops, the runs of learned optimizers and policies are all this loop:

.. math::
  g_k = \nabla L_k(\phi_k), \qquad
  (u_k, s_{k+1}) = \operatorname{update}(g_k, s_k, \phi_k), \qquad
  \phi_{k+1} = \phi_k + u_k.

For the cotangent v of each g_k its derivative needs J^T v, where J is the Jacobian of
the gradient field. Plain `jax.grad` through the loop takes it reverse over reverse and
keeps every activation of every step. Where J is a Hessian, J^T v = J v is a `jax.jvp`
of the gradient, forward over reverse. Here each step is rematerialised but for g_k, so
that it keeps a few copies of the parameters.

J is a Hessian unless someone redefined a derivative (gradient reversal, rounding that
is differentiated as the identity). By default that is looked up in the traced program.

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

from jaxmeta import _custom_rules, _messages, base

Hvp = Literal["auto", "forward-over-reverse", "reverse-over-reverse"]
HVP_MODES: tuple[Hvp, ...] = ("auto", "forward-over-reverse", "reverse-over-reverse")
# How the gradients of a loop are differentiated: as `Hvp` says; "first-order", not at
# all, while losses keep their derivative; or "constant", neither of them.
Order = Hvp | Literal["first-order", "constant"]
# (params, key, step, data) -> (scalar, aux)
StepLoss = Callable[[base.Params, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

_SAVED = "jaxmeta_grads"


class Unrolled(NamedTuple):
    """Where a loop of K updates ended, and how it went."""

    params: base.Params
    state: optax.OptState
    losses: jax.Array  # [K] before each update
    aux: Any  # leaves [K, ...]: what the loss returned beside its value
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
      tx: any optax transformation; it is given the loss as `value`.
      params: where to start.
      keys: [K], one for each update.
      data: any tree, the same for all updates.
      order: how gradients are differentiated; see `Order`. Static.
      state: of `tx`; None starts it fresh.
      first_step: what the steps count from.
      probe: `(params, step) -> tree`, called before each update and after the last.
      rematerialize: compute again, in the backward pass, all of an update but its
        gradient. Static.
    """
    tx = optax.with_extra_args_support(tx)
    steps = first_step + jnp.arange(len(keys), dtype=jnp.int32)
    gradient = differentiated(loss, order, params, keys[0], steps[0], data)

    def update(carry, key, step):
        params, state = carry
        (value, aux), grads = gradient(params, key, step, data)
        grads = checkpoint_name(grads, _SAVED)
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

    carry = (params, tx.init(params) if state is None else state)
    with _messages.explain_forward_mode():
        carry, (losses, aux, probed) = jax.lax.scan(body, carry, (keys, steps))
    params, state = carry
    if probe is not None:
        last = probe(params, jnp.asarray(first_step + len(keys), jnp.int32))
        probed = jax.tree.map(lambda x, y: jnp.append(x, y[None], 0), probed, last)
    return Unrolled(params, state, losses, aux, probed)


def differentiated(loss: StepLoss, order: Order, *args: Any) -> Callable[..., Any]:
    """`jax.value_and_grad(loss, has_aux=True)` whose derivative is that of `order`.

    Args:
      loss: see `unroll`.
      order: see `Order`.
      args: arguments of the loss, of which shapes and dtypes count.
    """
    if order == "constant":
        plain = jax.value_and_grad(loss, has_aux=True)
        return lambda *args: jax.lax.stop_gradient(plain(*args))
    if order == "first-order":
        return _first_order(loss)
    if order == "reverse-over-reverse":
        return _reverse_over_reverse(loss)
    # What is differentiated must be an argument of a custom rule: closures are hoisted.
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
    """Raises if a scalar's gradient has no forward mode, before JAX does elsewhere."""
    if is_gradient_field(value, *args):
        return
    params, *rest = args
    gradient = jax.grad(lambda params: value(params, *rest))
    with _messages.explain_forward_mode(model=True):
        _custom_rules.check_forward_mode(gradient, params)


def _first_order(loss):
    """`jax.value_and_grad` whose gradient is a constant to the derivative.

    The value still has its derivative, which is the gradient itself: nothing else is
    kept for the backward pass.
    """

    @jax.custom_vjp
    def value_and_grad(params, *rest):
        found, grads = jax.value_and_grad(loss, has_aux=True)(params, *rest)
        return found, jax.lax.stop_gradient(grads)

    def forward(params, *rest):
        found, grads = jax.value_and_grad(loss, has_aux=True)(params, *rest)
        # Named here too: else rematerialization computes what is kept once more.
        grads = checkpoint_name(grads, _SAVED)
        return (found, grads), (grads, [None] * len(rest))

    def backward(kept, cotangents):
        grads, rest_bar = kept
        (value_bar, _), _ = cotangents
        return jax.tree.map(lambda g: (value_bar * g).astype(g.dtype), grads), *rest_bar

    value_and_grad.defvjp(forward, backward)
    return value_and_grad


def _reverse_over_reverse(loss):
    """`jax.value_and_grad`, differentiated by JAX itself."""

    def value_and_grad(*args):
        grads, aux = jax.grad(loss, has_aux=True)(*args)
        # Not the value that comes beside the gradient: its derivative would be that of
        # the forward pass of a `custom_vjp`, and not the one that the rule defines.
        value, _ = loss(*args)
        return (value, aux), grads

    return value_and_grad


def _forward_over_reverse(loss):
    """`jax.value_and_grad` with a forward-over-reverse derivative."""

    @jax.custom_vjp
    def value_and_grad(*args):
        return jax.value_and_grad(loss, has_aux=True)(*args)

    def forward(*args):
        # Not the decorated function: its own rule would then be differentiated when
        # someone takes the gradient of a meta-gradient.
        return jax.value_and_grad(loss, has_aux=True)(*args), args

    def backward(args, cotangents):
        (loss_bar, _), grads_bar = cotangents  # bar L, and v of the shape of params
        params, *rest = args
        # Keys and integers have no cotangent; the rest of every argument has.
        leaves, treedef = jax.tree.flatten(rest)
        is_float = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves]
        floats = [x for x, use in zip(leaves, is_float, strict=True) if use]

        def merge(floats, others):
            floats = iter(floats)
            pairs = zip(others, is_float, strict=True)
            return treedef.unflatten([next(floats) if use else x for x, use in pairs])

        def all_grads(params):
            value = lambda params, floats: loss(params, *merge(floats, leaves))[0]
            return jax.grad(value, argnums=(0, 1))(params, floats)

        # Symmetry again: d/d(floats) of (v . dL/dparams) is d/dparams of dL/d(floats),
        # along v. So one jvp has the products with all mixed derivatives.
        grads, products = jax.jvp(all_grads, (params,), (grads_bar,))
        params_bar, floats_bar = jax.tree.map(
            lambda g, p: (loss_bar * g + p).astype(g.dtype), grads, products
        )
        return params_bar, *merge(floats_bar, [None] * len(leaves))

    value_and_grad.defvjp(forward, backward)
    return value_and_grad
