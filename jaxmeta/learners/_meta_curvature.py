"""Meta-Curvature: an initialisation with a learned transformation of gradients.

References:
  Park, Oliva, "Meta-Curvature", NeurIPS 2019, Section 3.
  https://arxiv.org/abs/1902.03356
"""

from collections.abc import Mapping

from jaxmeta import _describe, _unroll, base, optimizers
from jaxmeta.learners import _maml


def meta_curvature(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    learning_rate: float = 0.1,
    inner_steps: int = 1,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an initialisation, and matrices that transform the inner gradients.

    .. math::
      \theta_{k+1} = \theta_k - \alpha \, MC(\nabla L_s(\theta_k)), \qquad
      MC(G) = G \times_3 M_f \times_2 M_i \times_1 M_o

    This is `maml` with `jaxmeta.optimizers.curvature_sgd` inside.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      learning_rate: alpha, not learned; the matrices start at the identity.
      inner_steps: K. Static.
      first_order: treat the inner gradients as constants. Static.
      hvp: as in `maml`. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` with meta-parameters `MamlParams(params, theta)`; theta holds the
      matrices.

    Raises:
      ValueError: if the rate is not positive or `inner_steps` is not a positive int;
        while tracing, if the support is ragged or empty, parameters are not floats, or
        the loss is not a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> learner = jm.meta_curvature(
      ...     jm.Model(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w),
      ...     lambda out, y: jnp.mean((out - y) ** 2),
      ...     learning_rate=0.5,
      ... )
      >>> x = jnp.eye(2)
      >>> support = jm.Examples(inputs=x, targets=jnp.array([1.0, -1.0]))
      >>> key = jax.random.key(0)
      >>> meta_params = learner.init(key, jm.Task(support, support))
      >>> task_params, _ = learner.adapt(key, meta_params, support)
      >>> print(task_params.params)
      [ 0.5 -0.5]
    """
    description = _describe.describe(meta_curvature, locals())
    learner = _maml.maml(
        model,
        loss,
        inner_tx=optimizers.curvature_sgd(learning_rate),
        inner_steps=inner_steps,
        first_order=first_order,
        hvp=hvp,
        metrics=metrics,
    )
    return learner._replace(description=description)
