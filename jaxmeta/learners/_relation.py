"""Relation networks.

References:
  Sung, Yang, Zhang, Xiang, Torr, Hospedales, "Learning to Compare: Relation Network
  for Few-Shot Learning", CVPR 2018, equations 1 and 2.
  https://arxiv.org/abs/1711.06025
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _describe, _dtypes, _model, base, losses
from jaxmeta.learners import _embeddings, _metric
from jaxmeta.models import _relation_net


class RelationSupport(NamedTuple):
    """The support that queries are compared with."""

    features: jax.Array  # [W, ...], means over the shots
    relation_params: Any  # with the support's batch statistics, if used


def relation(
    model: base.ModelLike,
    *,
    relation_model: base.ModelLike | None = None,
    support_model: base.ModelLike | None = None,
    loss: base.LossFn = losses.squared_error,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding and a similarity measure on it.

    With the embedding :math:`f`, the relation module :math:`g` and the support
    examples :math:`S_c` of class :math:`c`, the relation of a query to the class is

    .. math::
      r_c(x) = \operatorname{sigmoid} g\Big(\big[\tfrac{1}{|S_c|}
        \sum_{x_i \in S_c} f(x_i), \; f(x)\big]\Big),

    meta-trained by the squared error to 1 for the query's class and 0 for the others.

    Args:
      model: the embedding, anything with `init(key, inputs)` and
        `apply(params, inputs)`, to feature maps [N, H, W, channels], like
        `jaxmeta.models.RelationEmbedding`, or vectors [N, D].
      relation_model: g, from the two embeddings concatenated along the last axis,
        [P, ..., 2 channels], to [P, 1], before the sigmoid. It receives `key` and
        `train` as `model` does. If its attribute `takes_sets` is true, it receives the
        tuple of class and query embeddings instead of all their pairs. None: the
        paper's, `jaxmeta.models.RelationModule()`.
      support_model: embeds the support's inputs instead of `model`. With class
        descriptions as support, inputs [W, A] and targets `jnp.eye(W)`, this is
        zero-shot learning. Batch-normalised networks must then predict with the
        statistics of the queries: pass `statistics="batch"` to the flax adapters.
      loss: `(relations [Q, W], targets [Q, W]) -> scalar`, a mean over Q. The squared
        error averages over the classes of the task too, without padding.
      metrics: name -> `(relations, targets) -> scalar`. None: accuracy.

    Returns:
      A `MetaLearner` whose outputs are relations in [0, 1]. Its meta-parameters are
      `MetricParams(params, support_params, head_params)`; `head_params` are the
      relation module's. Ways and shots may differ from task to task; a class without
      support examples has relation 0, and rows of zeros in targets are padding.

    Raises:
      ValueError: while tracing, if support and query embeddings differ in shape, the
        relation module does not return one number per pair, targets are not one-hot,
        support and query differ in classes, a set is ragged or empty, or parameters are
        not floats.

    Differs from the paper: a class is represented by the mean of its embeddings, not
    their sum, so that shots may differ from meta-training. For one shot they are equal;
    for a fixed number they differ by a factor that g can learn.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import relation
      >>> constant = lambda key, x: jnp.ones(())
      >>> learner = relation(
      ...     jm.Model(constant, lambda w, x: w * x),
      ...     relation_model=jm.Model(constant, lambda w, x: w * x[:, :1] - x[:, 1:]),
      ... )
      >>> support = jm.Examples(
      ...     inputs=jnp.array([[1.0], [2.0], [9.0]]),
      ...     targets=jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
      ... )
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> task_params, _ = learner.adapt(key, learner.init(key, task), support)
      >>> relations = learner.predict(task_params, jnp.array([[1.5]]))
      >>> print(relations[0, 0])  # (1 + 2) / 2 - 1.5 = 0
      0.5
    """
    description = _describe.describe(relation, locals())
    if relation_model is None:
        # Same normalisation as the embedding, or predictions would still depend on each
        # other through the relation module's batch statistics.
        relation_model = _relation_net.RelationModule(
            norm=None if getattr(model, "norm", "batch") is None else "batch",
            statistics=getattr(model, "statistics", "batch"),
        )
    net = _model.normalize(relation_model)
    if metrics is None:
        metrics = {"accuracy": losses.accuracy}

    def pairs_with(features, embeddings):
        """Pairs of each query and class, [Q * W, ..., 2 channels], or both sets."""
        if getattr(relation_model, "takes_sets", False):
            return features, embeddings
        return _relation_net.all_pairs(features, embeddings)

    def class_features(support):
        shape = support.inputs.shape
        flat = support._replace(inputs=support.inputs.reshape(shape[0], -1))
        return _embeddings.class_means(flat).reshape(-1, *shape[1:])

    def init(key, support):
        features = class_features(support)
        return net.init(key, pairs_with(features, support.inputs))

    def fit(relation_params, support, *, train, **options):
        del options
        features = class_features(support)
        if support_model is None and not train:
            pairs = pairs_with(features, support.inputs)
            relation_params = net.with_support_statistics(relation_params, pairs)
        return RelationSupport(features, relation_params), None

    def relations(relation_params, support, embeddings, **options):
        del relation_params
        features, relation_params = support
        pairs = pairs_with(features, embeddings)
        scores = net.apply(relation_params, pairs, **options)
        scores = _dtypes.widen(scores)
        num_pairs = embeddings.shape[0] * features.shape[0]
        if jnp.shape(scores) != (num_pairs, 1):
            raise ValueError(
                f"`relation_model` must map {num_pairs} pairs to ({num_pairs}, 1), got "
                f"shape {jnp.shape(scores)}."
            )
        return jax.nn.sigmoid(scores.reshape(embeddings.shape[0], -1))

    return _metric.metric_learner(
        model,
        _metric.Head(fit, relations, init, absent=0.0),
        loss=loss,
        metrics=metrics,
        support_model=support_model,
        flatten=False,
        description=description,
    )
