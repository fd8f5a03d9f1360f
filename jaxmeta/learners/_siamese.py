"""Siamese networks.

References:
  Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition",
  ICML Deep Learning Workshop 2015, sections 3.1 to 3.2 and 4.3.
  https://www.cs.cmu.edu/~rsalakhu/papers/oneshot1.pdf
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _describe, base, losses
from jaxmeta.learners import _metric


class SiameseParams(NamedTuple):
    """Weights on the differences between two embeddings of D features."""

    weights: jax.Array  # [D]
    bias: jax.Array  # []


def siamese(
    model: base.ModelLike,
    *,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns to verify whether two examples have the same class.

    With the embedding :math:`f`, a pair has the same class with probability

    .. math::
      p(x, x') = \operatorname{sigmoid}\Big(\sum_j \alpha_j |f_j(x) - f_j(x')|
        + b\Big).

    Meta-training is verification: it minimises the binary cross-entropy over the pairs
    of each query and support example; same-class and different-class pairs weigh one
    half each. A query's logit for a class is that of its best match in the class.

    Args:
      model: the twin, anything with `init(key, inputs)` and `apply(params, inputs)`;
        its output is flattened to [N, D].
      metrics: name -> `(logits [Q, W], targets [Q, W]) -> scalar`. None: accuracy.

    Returns:
      A `MetaLearner`. Its meta-parameters are `MetricParams(params, head_params)`, the
      latter `SiameseParams`. It reports the verification loss, and adds the metric
      "verification_accuracy": the mean of the accuracies on same-class and on
      different-class pairs. Ways and shots may differ from task to task; a class
      without support examples is never predicted, and rows of zeros in targets are
      padding.

    Raises:
      ValueError: while tracing, if targets are not one-hot, support and query differ in
        classes, a set is ragged or empty, or parameters are not floats.

    Differs from the paper: pairs come from one task, not from the whole data set; all
    are used, with weights, where the paper draws equally many of each kind. The weights
    start at -1 / √D and the bias at 1, so that nearby pairs match from the start.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import siamese
      >>> learner = siamese(jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x))
      >>> support = jm.Examples(inputs=jnp.array([[0.0], [4.0]]), targets=jnp.eye(2))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> task_params, _ = learner.adapt(key, learner.init(key, task), support)
      >>> print(learner.predict(task_params, jnp.array([[1.0]])))  # 1 - |1 - 0|, ...
      [[ 0. -2.]]
    """
    description = _describe.describe(siamese, locals())
    if metrics is None:
        metrics = {"accuracy": losses.accuracy}

    def init(key, support):
        del key
        size, dtype = support.inputs.shape[1], jnp.result_type(float)
        return SiameseParams(jnp.full(size, -(size**-0.5), dtype), jnp.ones((), dtype))

    def fit(head_params, support, **options):
        del head_params, options
        return support, None

    def pair_logits(head_params, support, embeddings):
        """Returns the logits [Q, N] that query and support example share a class."""
        differences = jnp.abs(embeddings[:, None] - support.inputs[None])
        weights = head_params.weights[None, None]
        return jnp.sum(weights * differences, -1) + head_params.bias

    def best_match(pairs, targets):
        """Returns the largest logit in each class: [Q, N] -> [Q, W]."""
        of_class = jnp.where(targets[None] > 0, pairs[:, :, None], _metric.LOWEST)
        return jnp.max(of_class, 1)

    def logits(head_params, support, embeddings, **options):
        del options
        return best_match(
            pair_logits(head_params, support, embeddings), support.targets
        )

    def evaluate_query(head_params, support, query, **options):
        del options
        pairs = pair_logits(head_params, support, query.inputs)
        # [Q, N] weights; both are 0 for padding, whose targets sum to 0.
        same = query.targets @ support.targets.T
        of_some = [jnp.sum(x.targets, 1) for x in (query, support)]
        # 1 for two examples minus 1 if they share the class.
        different = of_some[0][:, None] * of_some[1][None] - same
        loss = _balanced(
            jax.nn.softplus(-pairs), jax.nn.softplus(pairs), same, different
        )
        outputs = best_match(pairs, support.targets)
        values = {
            name: _checks.as_metric(name, fn(outputs, query.targets))
            for name, fn in metrics.items()
        }
        said_same = (pairs > 0).astype(pairs.dtype)
        values["verification_accuracy"] = _balanced(
            said_same, 1 - said_same, same, different
        )
        return loss, values

    return _metric.metric_learner(
        model,
        _metric.Head(fit, logits, init, evaluate_query=evaluate_query),
        loss=losses.cross_entropy,
        metrics=metrics,
        description=description,
    )


def _balanced(of_same, of_different, same, different):
    """The mean of both weighted means, or of the one that has pairs."""
    total, num_kinds = 0.0, 0.0
    for values, weights in ((of_same, same), (of_different, different)):
        weight = jnp.sum(weights)
        total += jnp.sum(values * weights) / jnp.where(weight > 0, weight, 1)
        num_kinds += (weight > 0).astype(values.dtype)
    return total / jnp.maximum(num_kinds, 1)
