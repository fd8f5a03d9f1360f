"""Meta-SGD: an initialisation with a learned rate for every parameter.

References:
  Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning",
  2017, Algorithm 1. https://arxiv.org/abs/1707.09835
"""

from collections.abc import Mapping

from jaxmeta import _describe, _unroll, base, optimizers
from jaxmeta.learners import _maml


def meta_sgd(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    learning_rate: float | tuple[float, float] = 0.01,
    inner_steps: int = 1,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an initialisation, and the step size and sign of every coordinate.

    .. math::
      \theta_{k+1} = \theta_k - \alpha \odot \nabla L_s(\theta_k), \qquad
      g = \nabla_{\theta_0, \alpha} L_q(\theta_K)

    This is `maml` with `jaxmeta.optimizers.learned_sgd(shared_by="none")` inside.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      learning_rate: initial value of all rates, or (low, high) to draw them uniformly;
        the paper uses (0.005, 0.1).
      inner_steps: K; one in the paper. Static.
      first_order: treat the inner gradients as constants. Static.
      hvp: as in `maml`. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` with meta-parameters `MamlParams(params, theta)`; theta holds the
      rates, shaped like the parameters. They may become negative.

    Raises:
      ValueError: if a rate is not positive or `inner_steps` is not a positive int;
        while tracing, if the support is ragged or empty, parameters are not floats, or
        the loss is not a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> learner = jm.meta_sgd(
      ...     jm.Model(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w),
      ...     lambda out, y: jnp.mean((out - y) ** 2),
      ...     learning_rate=0.5,
      ... )
      >>> x = jnp.eye(2)
      >>> support = jm.Examples(inputs=x, targets=jnp.array([1.0, -1.0]))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> grads, _ = learner.meta_grad(key, learner.init(key, task), task)
      >>> print(grads.theta)  # longer steps are better
      [-0.5 -0.5]
    """
    description = _describe.describe(meta_sgd, locals())
    learner = _maml.maml(
        model,
        loss,
        inner_tx=optimizers.learned_sgd(learning_rate, shared_by="none"),
        inner_steps=inner_steps,
        first_order=first_order,
        hvp=hvp,
        metrics=metrics,
    )
    return learner._replace(description=description)
