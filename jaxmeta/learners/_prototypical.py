"""Prototypical networks.

References:
  Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
  Algorithm 1. https://arxiv.org/abs/1703.05175
"""

from collections.abc import Mapping

from jaxmeta import _checks, _describe, base, losses
from jaxmeta.learners import _embeddings, _metric

DISTANCES = ("euclidean", "cosine")


def prototypical(
    model: base.ModelLike,
    *,
    distance: str = "euclidean",
    temperature: float | None = None,
    support_model: base.ModelLike | None = None,
    normalize_prototypes: bool = False,
    loss: base.LossFn = losses.cross_entropy,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding in which each class clusters around its mean.

    With the embedding :math:`f` and the support examples :math:`S_c` of class
    :math:`c`, a query's logits are

    .. math::
      p_c = \frac{1}{|S_c|} \sum_{x \in S_c} f(x), \qquad
      z_c(x) = -\frac{d(f(x), p_c)}{\tau}.

    Args:
      model: the embedding, anything with `init(key, inputs)` and
        `apply(params, inputs)`; its output is flattened to [N, D].
      distance: "euclidean" (squared) or "cosine" (one minus the cosine). Static.
      temperature: tau. None: 1, or 0.1 for cosines, whose softmax is too flat
        otherwise.
      support_model: embeds the support's inputs instead of `model`, into the same D
        features. With class descriptions as support, inputs [W, A] and targets
        `jnp.eye(W)`, this is zero-shot learning. A batch-normalised `model` must then
        predict with the statistics of the queries: pass `statistics="batch"` to the
        flax adapters.
      normalize_prototypes: scale prototypes to unit length, as the paper does for
        zero-shot learning. Static.
      loss: `(logits [Q, W], targets [Q, W]) -> scalar`, a mean over Q.
      metrics: name -> `(logits, targets) -> scalar`. None: accuracy for
        `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner`. Its meta-parameters are the model's own, or
      `MetricParams(params, support_params)` with a `support_model`. Ways and shots may
      differ from task to task; a class without support examples is never predicted, and
      rows of zeros in targets are padding.

    Raises:
      ValueError: if `distance` is unknown or `temperature` not positive; while
        tracing, if targets are not one-hot, support and query differ in classes, a set
        is ragged or empty, or parameters are not floats.

    Differs from the paper: cosines are divided by a temperature; the paper's is 1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import prototypical
      >>> learner = prototypical(
      ...     jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x)
      ... )
      >>> support = jm.Examples(
      ...     inputs=jnp.array([[0.0], [2.0], [5.0]]),
      ...     targets=jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
      ... )
      >>> key = jax.random.key(0)
      >>> task_params, _ = learner.adapt(key, jnp.ones(()), support)
      >>> print(learner.predict(task_params, jnp.array([[3.0]])))  # from means 1 and 5
      [[-4. -4.]]
    """
    description = _describe.describe(prototypical, locals())
    _checks.check_choice("distance", distance, DISTANCES)
    if temperature is None:
        temperature = 1.0 if distance == "euclidean" else 0.1
    _checks.check_positive("temperature", temperature)
    if metrics is None:
        metrics = losses.default_metrics(loss)

    def fit(head_params, support, **options):
        del head_params, options
        prototypes = _embeddings.class_means(support)
        if normalize_prototypes:
            prototypes = _embeddings.unit(prototypes)
        return prototypes, None

    def logits(head_params, prototypes, embeddings, **options):
        del head_params, options
        if distance == "euclidean":
            distances = _embeddings.squared_distances(embeddings, prototypes)
        else:
            distances = 1 - _embeddings.cosines(embeddings, prototypes)
        return -distances / temperature

    return _metric.metric_learner(
        model,
        _metric.Head(fit, logits),
        loss=loss,
        metrics=metrics,
        support_model=support_model,
        description=description,
    )
