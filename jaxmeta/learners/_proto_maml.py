"""Proto-MAML: MAML with a head initialised from class prototypes.

References:
  Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from
  Few Examples", ICLR 2020, Section 4. https://arxiv.org/abs/1903.03096
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, _model, _unroll, base, losses
from jaxmeta.learners import _adaptation, _embeddings, _metric


class ProtoMamlParams(NamedTuple):
    """Task parameters of `proto_maml`: W ways, embeddings of D features."""

    params: base.Params  # the embedding's
    kernel: jax.Array  # [D, W]
    bias: jax.Array  # [W]
    present: jax.Array  # [W] 1 for classes with support examples, else 0


def proto_maml(
    model: base.ModelLike,
    *,
    inner_tx: optax.GradientTransformation,
    inner_steps: int,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    loss: base.LossFn = losses.cross_entropy,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding that adapts together with a linear head.

    With the prototype :math:`c_w` of class w, the mean embedding of its support
    examples, the head starts at

    .. math::
      W_w = 2 c_w, \qquad b_w = -\lVert c_w \rVert^2,

    where its logits are, up to a constant, minus the squared distances to the
    prototypes. Then embedding and head make K inner steps, as in `maml`; the gradient
    flows through the head's initialisation. The number of ways may differ at test time.

    Args:
      model: embeds inputs [N, ...] to [N, D], e.g. `Conv4(head=None)`.
      inner_tx: the inner step, as in `maml`.
      inner_steps: K. Static.
      first_order: treat the inner gradients as constants. Static.
      hvp: as in `maml`. Static.
      loss: `(outputs [N, W], targets [N, W]) -> scalar`, a mean over N. The outputs
        include logits of about -1e9 for classes without support examples.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` whose meta-parameters are the embedding's parameters; its task
      parameters are `ProtoMamlParams(params, kernel, bias, present)`. A class without
      support examples is never predicted, and rows of zeros in targets are padding.

    Raises:
      ValueError: if `inner_tx` is not a transformation or `inner_steps` is not a
        positive int; while tracing, if support targets are not one-hot, the support is
        ragged or empty, or parameters are not floats.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> model = jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x)
      >>> learner = jm.proto_maml(model, inner_tx=optax.sgd(0.1), inner_steps=1)
      >>> support = jm.Examples(jnp.array([[1.0], [-1.0]]), jnp.eye(2))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> result = learner.evaluate(key, learner.init(key, task), task)
      >>> print(result.loss[0])  # log(1 + exp(-4)): the squared distances are 0 and 4
      0.018149963
    """
    description = _describe.describe(proto_maml, locals())
    _checks.check_plain_transformation("inner_tx", inner_tx)
    net = _model.normalize(model)

    def embed(params, inputs, **options):
        return _embeddings.as_vectors(net.apply(params, inputs, **options))

    def apply(task_params, inputs, key=None, train=False):
        _checks.check_type("task_params", task_params, ProtoMamlParams)
        params, kernel, bias, present = task_params
        logits = embed(params, inputs, key=key, train=train) @ kernel + bias[None]
        return _embeddings.without_absent(logits, present > 0)

    def with_support_statistics(task_params, inputs):
        return task_params._replace(
            params=net.with_support_statistics(task_params.params, inputs)
        )

    def init(key, task):
        _metric.check_classification(task)
        return net.init(key, task.support.inputs)

    def prepare(key, meta_params, support):
        _metric.check_targets("support", support)
        resumes = isinstance(meta_params, ProtoMamlParams)
        params = meta_params.params if resumes else meta_params
        embeddings = embed(params, support.inputs, key=key, train=True)
        prototypes = _embeddings.class_means(base.Examples(embeddings, support.targets))
        kernel, bias = 2 * prototypes.T, -jnp.sum(jnp.square(prototypes), -1)
        # A float, since the inner gradient closes over it and may give it a cotangent.
        present = (jnp.sum(support.targets, 0) > 0).astype(embeddings.dtype)
        if resumes:  # New classes start from their prototypes.
            seen = meta_params.present > 0
            kernel = jnp.where(seen[None], meta_params.kernel, kernel)
            bias = jnp.where(seen, meta_params.bias, bias)
            present = jnp.maximum(present, meta_params.present)
        start = (params, kernel, bias)

        def to_params(variables, step):
            params, kernel, bias = variables
            return ProtoMamlParams(params, kernel, bias, present)

        return _adaptation.Adaptation(start, to_params, inner_tx)

    loop = _adaptation.inner_loop(
        base.Model(net.init, apply, with_support_statistics),
        loss,
        prepare,
        inner_steps=inner_steps,
        first_order=first_order,
        hvp=hvp,
        metrics=metrics,
    )
    return _adaptation.as_learner(
        loop, init, description=description, resumable=ProtoMamlParams
    )
