"""Model-agnostic meta-learning.

References:
  Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
  Networks", ICML 2017, Algorithm 1. https://arxiv.org/abs/1703.03400
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from jaxmeta import _checks, _describe, _unroll, base
from jaxmeta.learners import _adaptation


class MamlParams(NamedTuple):
    """Meta-parameters of `maml` with a learned inner rule."""

    params: base.Params  # the initialisation
    theta: Any  # the learned inner rule's


def maml(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    inner_tx: optax.GradientTransformation | base.LearnedOptimizer,
    inner_steps: int,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an initialisation that a few gradient steps turn into a solution.

    For one task with support loss :math:`L_s` and query loss :math:`L_q`,

    .. math::
      \theta_{k+1} = \theta_k - \alpha \nabla L_s(\theta_k), \qquad
      g = \nabla_{\theta_0} L_q(\theta_K),

    where any optax transformation can make the step.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      inner_tx: the inner step; `optax.sgd(0.01)` is the paper's. Its state is
        initialised for every task, and it receives the loss as `value`. A
        `LearnedOptimizer` is meta-learned together with the initialisation. For
        clipping, normalisation or Adam use the rules in `jaxmeta.optimizers`: the
        derivatives of optax's are NaN where a gradient is zero.
      inner_steps: K, the number of inner steps. Static.
      first_order: treat the inner gradients as constants (FOMAML): cheaper by a
        Hessian-vector product per step, and biased. Static.
      hvp: how the inner gradients are differentiated. "forward-over-reverse" is fastest
        and needs the least memory, and is right if they are gradients of a scalar: it
        relies on a symmetric Jacobian. "reverse-over-reverse" is right for every model,
        even with redefined derivatives (gradient reversal, straight-through rounding,
        clipping inside the model) or without forward mode (`jax.custom_vjp`); it can
        itself be differentiated in forward mode (`jax.jvp`). "auto" looks for custom
        derivatives in the traced model and loss, other than those of `jax.nn`,
        `jax.numpy`, `jax.scipy` and optax's losses, and uses "reverse-over-reverse" if
        there are any; see `jaxmeta.testing.check_gradient_field`. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner`. Its meta-parameters are the initial model parameters, or
      `MamlParams(params, theta)` with a learned inner rule. Its task parameters are the
      adapted parameters, or `Adapted(params, ...)` if resuming requires more: the inner
      rule's state, a learned rule, or statistics of the support set.

    Raises:
      ValueError: if `inner_tx` is not a rule, `inner_steps` is not a positive int or
        `hvp` is unknown; while tracing, if the support is ragged or empty, parameters
        are not floats, or the loss is not a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> learner = jm.maml(
      ...     jm.Model(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w),
      ...     lambda out, y: jnp.mean((out - y) ** 2),
      ...     inner_tx=optax.sgd(0.5),
      ...     inner_steps=1,
      ... )
      >>> x = jnp.eye(2)
      >>> support = jm.Examples(inputs=x, targets=jnp.array([1.0, -1.0]))
      >>> key = jax.random.key(0)
      >>> meta_params = learner.init(key, jm.Task(support, support))
      >>> task_params, _ = learner.adapt(key, meta_params, support)
      >>> print(task_params)
      [ 0.5 -0.5]
    """
    description = _describe.describe(maml, locals())
    _checks.check_transformation("inner_tx", inner_tx)

    def init(key, task):
        params_key, theta_key = jax.random.split(key)
        params = loop.net.init(params_key, task.support.inputs)
        if isinstance(inner_tx, base.LearnedOptimizer):
            return MamlParams(params, inner_tx.init(theta_key, params))
        return params

    def prepare(key, meta_params, support):
        del key, support
        if isinstance(inner_tx, base.LearnedOptimizer):
            _checks.check_type("meta_params", meta_params, MamlParams)
            params, tx = meta_params.params, inner_tx.transform(meta_params.theta)
        else:
            params, tx = meta_params, inner_tx
        return _adaptation.Adaptation(params, lambda params, step: params, tx)

    loop = _adaptation.inner_loop(
        model,
        loss,
        prepare,
        inner_steps=inner_steps,
        first_order=first_order,
        hvp=hvp,
        metrics=metrics,
    )
    return _adaptation.as_learner(loop, init, description=description)
