"""Few-shot embedding adaptation with a transformer (FEAT).

References:
  Ye, Hu, Zhan, Sha, "Few-Shot Learning via Embedding Adaptation with Set-to-Set
  Functions", CVPR 2020, equations 4, 6 and 7, and Algorithm 1.
  https://arxiv.org/abs/1812.03664
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _describe, base, losses
from jaxmeta.learners import _embeddings, _metric


class FeatParams(NamedTuple):
    """One layer of self-attention; H heads, each as wide as the D features."""

    query: jax.Array  # [H, D, D]
    key: jax.Array  # [H, D, D]
    value: jax.Array  # [H, D, D]
    output: jax.Array  # [H, D, D]
    output_bias: jax.Array  # [D]
    norm_scale: jax.Array  # [D]
    norm_bias: jax.Array  # [D]


def feat(
    model: base.ModelLike,
    *,
    num_heads: int = 1,
    temperature: float = 64.0,
    contrastive: float = 0.1,
    contrastive_temperature: float = 32.0,
    loss: base.LossFn = losses.cross_entropy,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding, and to adapt the prototypes of a task to each other.

    A set-to-set function, one layer of self-attention with a residual connection and
    layer normalisation, transforms the class means jointly:

    .. math::
      T(p) &= \operatorname{LayerNorm}\Big(p + \sum_h
        \operatorname{softmax}\Big(\frac{p W^Q_h (p W^K_h)^\top}{\sqrt{D}}\Big)
        p W^V_h W^O_h + b\Big), \\
      z_c(x) &= -\|f(x) - T(p)_c\|^2 / \tau.

    Meta-training adds :math:`\lambda` times the cross-entropy of
    :math:`-\|f(x) - m_c\|^2 / \tau'` over support and query examples, where
    :math:`m_c` is the mean of :math:`T` over all examples of class :math:`c`.

    Args:
      model: the embedding, anything with `init(key, inputs)` and
        `apply(params, inputs)`; its output is flattened to [N, D].
      num_heads: H. Static.
      temperature: tau, which divides the distances.
      contrastive: lambda.
      contrastive_temperature: tau'.
      loss: `(logits [Q, W], targets [Q, W]) -> scalar`, a mean over Q.
      metrics: name -> `(logits, targets) -> scalar`. None: accuracy for
        `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner`. Its meta-parameters are `MetricParams(params, head_params)`, the
      latter `FeatParams`. Ways and shots may differ from task to task; a class without
      support examples is never predicted, and rows of zeros in targets are padding.

    Raises:
      ValueError: if `num_heads` is not a positive int, a temperature not positive or
        `contrastive` negative; while tracing, if targets are not one-hot, support and
        query differ in classes, a set is ragged or empty, or parameters are not floats.

    Differs from the paper: no dropout in the transformer. The paper starts from a
    pretrained classifier's embedding; train one with a head, and put its parameters
    into `MetricParams.params`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import feat
      >>> learner = feat(
      ...     jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x), temperature=1.0
      ... )
      >>> support = jm.Examples(inputs=3 * jnp.eye(2), targets=jnp.eye(2))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> meta_params = learner.init(key, task)
      >>> silent = jax.tree.map(jnp.zeros_like, meta_params.head_params)
      >>> silent = silent._replace(norm_scale=jnp.ones(2))  # only the normalisation
      >>> meta_params = meta_params._replace(head_params=silent)
      >>> task_params, _ = learner.adapt(key, meta_params, support)
      >>> print(task_params.fitted.round(2))
      [[ 1. -1.]
       [-1.  1.]]
    """
    description = _describe.describe(feat, locals())
    _checks.check_int("num_heads", num_heads)
    _checks.check_positive("temperature", temperature)
    _checks.check_positive("contrastive_temperature", contrastive_temperature)
    _checks.check_not_negative("contrastive", contrastive)
    if metrics is None:
        metrics = losses.default_metrics(loss)

    def init(key, support):
        size, dtype = support.inputs.shape[1], jnp.result_type(float)
        *keys, output_key = jax.random.split(key, 4)
        draw = lambda key: jax.random.normal(key, (num_heads, size, size), dtype)
        # Xavier normal: W^Q, W^K, W^V are [D, D] per head, W^O is [H D, D].
        query, key, value = (draw(k) * size**-0.5 for k in keys)
        output = draw(output_key) * (2 / (size * (num_heads + 1))) ** 0.5
        zeros, ones = jnp.zeros(size, dtype), jnp.ones(size, dtype)
        return FeatParams(query, key, value, output, zeros, ones, zeros)

    def fit(head_params, support, **options):
        del options
        present = jnp.sum(support.targets, 0) > 0
        # [W, W]: each prototype attends to those of all classes present.
        everyone = jnp.broadcast_to(present[None], 2 * present.shape)
        return _transform(head_params, _embeddings.class_means(support), everyone), None

    def logits(head_params, prototypes, embeddings, **options):
        del head_params, options
        return -_embeddings.squared_distances(embeddings, prototypes) / temperature

    def contrast(head_params, prototypes, support, query):
        """Pulls examples towards the transformed centre of their class (eq. 7)."""
        del prototypes
        inputs, targets = (
            jnp.concatenate(both) for both in zip(support, query, strict=True)
        )
        of_one_class = targets @ targets.T > 0  # attention within each class only
        transformed = _transform(head_params, inputs, of_one_class)
        centres = _embeddings.class_means(base.Examples(transformed, targets))
        outputs = (
            -_embeddings.squared_distances(inputs, centres) / contrastive_temperature
        )
        present = jnp.sum(targets, 0) > 0
        outputs = jnp.where(present[None], outputs, _metric.LOWEST)
        return contrastive * losses.cross_entropy(outputs, targets)

    return _metric.metric_learner(
        model,
        _metric.Head(fit, logits, init, contrast if contrastive else None),
        loss=loss,
        metrics=metrics,
        description=description,
    )


def _transform(params, x, mask):
    """Set-to-set function T: [M, D] -> [M, D]; row i attends where mask[i] [M]."""
    project = lambda kernel: jnp.einsum("md,hde->hme", x, kernel)
    queries, keys, values = map(project, (params.query, params.key, params.value))
    scores = jnp.einsum("hme,hne->hmn", queries, keys) * x.shape[1] ** -0.5
    attention = jax.nn.softmax(jnp.where(mask[None], scores, _metric.LOWEST), -1)
    read = jnp.einsum("hmn,hne->hme", attention, values)
    read = jnp.einsum("hme,hed->md", read, params.output)
    return _layer_norm(params, x + read + params.output_bias[None])


def _layer_norm(params, x):
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
    scale, bias = params.norm_scale[None], params.norm_bias[None]
    return scale * centred * jax.lax.rsqrt(variance + 1e-5) + bias
