"""The meta-learner LSTM: a learned update rule and its initialisation.

References:
  Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017,
  Algorithm 1. https://openreview.net/forum?id=rJY0-Kcll
"""

from collections.abc import Mapping

from jaxmeta import _describe, base, optimizers
from jaxmeta.learners import _maml


def meta_lstm(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    inner_steps: int,
    hidden_size: int = 20,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an LSTM whose cell state is the parameters, and its initial cell state.

    .. math::
      \theta_t = f_t \odot \theta_{t-1} - i_t \odot \nabla L_t,

    with gates that an LSTM over gradient and loss sets for every parameter. This is
    first-order `maml` with `jaxmeta.optimizers.meta_lstm` inside: the derivatives of
    gradients and losses are dropped, as in the paper.

    The paper's batch normalisation uses batch statistics in meta-training and the
    support set's in meta-testing: use a model with `statistics="support"` (`Conv4`,
    `MLP`, `from_linen`, ...), which trains identically.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      inner_steps: K, updates per task; the paper makes 12 for one shot, 5 for five.
        Static.
      hidden_size: LSTM units. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` with meta-parameters `MamlParams(params, theta)`.

    Raises:
      ValueError: if a count is not a positive int; while tracing, if the support is
        ragged or empty, parameters are not floats, or the loss is not a scalar.

    Differs from the paper:
      Every update sees the whole support set; the paper draws minibatches, which for
      one shot are the whole set too.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> learner = jm.meta_lstm(
      ...     jm.Model(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w),
      ...     lambda out, y: jnp.mean((out - y) ** 2),
      ...     inner_steps=5,
      ... )
      >>> x = jnp.eye(2)
      >>> support = jm.Examples(inputs=x, targets=jnp.array([1.0, -1.0]))
      >>> key = jax.random.key(0)
      >>> meta_params = learner.init(key, jm.Task(support, support))
      >>> _, info = learner.adapt(key, meta_params, support)
      >>> bool((info.losses[1:] < info.losses[:-1]).all())  # starts as gradient descent
      True
    """
    description = _describe.describe(meta_lstm, locals())
    learner = _maml.maml(
        model,
        loss,
        inner_tx=optimizers.meta_lstm(hidden_size),
        inner_steps=inner_steps,
        first_order=True,
        metrics=metrics,
    )
    return learner._replace(description=description)
