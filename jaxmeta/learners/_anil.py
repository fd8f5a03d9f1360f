"""ANIL: almost no inner loop.

References:
  Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards
  Understanding the Effectiveness of MAML", ICLR 2020, Section 4.
  https://arxiv.org/abs/1909.09157
"""

from collections.abc import Mapping

import optax

from jaxmeta import _describe, _unroll, base
from jaxmeta.learners import _partial


def anil(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    inner_tx: optax.GradientTransformation,
    inner_steps: int,
    is_adapted: _partial.IsAdapted = _partial.is_head,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns features that stay fixed, and a head that adapts to each task.

    With parameters :math:`\theta = (\beta, w)` of body and head,

    .. math::
      w_{k+1} = w_k - \alpha \nabla_w L_s(\beta, w_k), \qquad
      g = \nabla_{\beta, w_0} L_q(\beta, w_K).

    The inner loop differentiates only the head, so a step costs little more than a
    forward pass of the body.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      inner_tx: the inner step, as in `maml`.
      inner_steps: K. Static.
      is_adapted: `(path) -> bool`, which parameters adapt, by paths such as
        "params/head/kernel". The default adapts the layer named `head`, as in `Conv4`;
        for an `MLP` of three layers use `lambda path: "Dense_2" in path`. Static.
      first_order: treat the inner gradients as constants. Static.
      hvp: as in `maml`. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` whose meta-parameters are the model's parameters.

    Raises:
      ValueError: if `inner_tx` is not a transformation, `inner_steps` is not a positive
        int, or `is_adapted` selects no parameter; while tracing, if the support is
        ragged or empty, parameters are not floats, or the loss is not a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> model = jm.Model(
      ...     init=lambda key, x: {"body": jnp.ones(()), "head": jnp.zeros(())},
      ...     apply=lambda params, x: params["head"] * params["body"] * x,
      ... )
      >>> learner = jm.anil(model, jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.5), inner_steps=1)
      >>> support = jm.Examples(inputs=jnp.ones(2), targets=jnp.ones(2))
      >>> key = jax.random.key(0)
      >>> params = learner.init(key, jm.Task(support, support))
      >>> task_params, _ = learner.adapt(key, params, support)
      >>> {name: float(x) for name, x in task_params.items()}
      {'body': 1.0, 'head': 1.0}
    """
    description = _describe.describe(anil, locals())
    return _partial.adapt_part(
        model,
        loss,
        is_adapted=is_adapted,
        inner_tx=inner_tx,
        inner_steps=inner_steps,
        first_order=first_order,
        hvp=hvp,
        metrics=metrics,
        description=description,
    )
