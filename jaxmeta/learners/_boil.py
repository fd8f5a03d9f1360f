"""BOIL: body-only updates in the inner loop.

References:
  Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR
  2021, Section 3. https://arxiv.org/abs/2008.08882
"""

from collections.abc import Mapping

import jax
import optax

from jaxmeta import _describe, _unroll, base
from jaxmeta.learners import _partial


def is_body(path: str) -> bool:
    """Whether a parameter is in the body, i.e. outside the layer named `head`."""
    return not _partial.is_head(path)


def boil(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    inner_tx: optax.GradientTransformation,
    inner_steps: int,
    is_adapted: _partial.IsAdapted = is_body,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns a head that stays fixed, and features that adapt to each task.

    The counterpart of `anil`: with parameters :math:`\theta = (\beta, w)` of body and
    head,

    .. math::
      \beta_{k+1} = \beta_k - \alpha \nabla_\beta L_s(\beta_k, w), \qquad
      g = \nabla_{\beta_0, w} L_q(\beta_K, w).

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      inner_tx: the inner step, as in `maml`.
      inner_steps: K. Static.
      is_adapted: `(path) -> bool`, which parameters adapt, by paths such as
        "params/head/kernel". The default adapts all except the layer named `head`,
        which must exist. Static.
      first_order: treat the inner gradients as constants. Static.
      hvp: as in `maml`. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` whose meta-parameters are the model's parameters.

    Raises:
      ValueError: if `inner_tx` is not a transformation, `inner_steps` is not a positive
        int, or `is_adapted` selects no parameter or, by default, all; while tracing, if
        the support is ragged or empty, parameters are not floats, or the loss is not a
        scalar.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> model = jm.Model(
      ...     init=lambda key, x: {"body": jnp.zeros(()), "head": jnp.ones(())},
      ...     apply=lambda params, x: params["head"] * params["body"] * x,
      ... )
      >>> learner = jm.boil(model, jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.5), inner_steps=1)
      >>> support = jm.Examples(inputs=jnp.ones(2), targets=jnp.ones(2))
      >>> key = jax.random.key(0)
      >>> params = learner.init(key, jm.Task(support, support))
      >>> task_params, _ = learner.adapt(key, params, support)
      >>> {name: float(x) for name, x in task_params.items()}
      {'body': 1.0, 'head': 1.0}
    """
    description = _describe.describe(boil, locals())
    learner = _partial.adapt_part(
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
    if is_adapted is not is_body:
        return learner

    def init(key, task):
        params = learner.init(key, task)
        _, kept = _partial.split(params, is_body)
        if not jax.tree.leaves(kept):
            raise ValueError(
                "`is_adapted` selects all parameters, since no path contains a "
                f'"head": {_partial.path_names(params)}. Pass a predicate over such '
                "paths that excludes the last layer."
            )
        return params

    return learner._replace(init=init)
