"""What metric learners share: embed, fit a head on the support, compare the queries.

Only the embedding is learned slowly; adapting is a forward pass. What differs from
one learner to the next is the `Head` that stands on the embeddings.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _model, base
from jaxmeta.learners import _embeddings

# Far below any score of an example, and finite, so that zero times it is zero.
LOWEST = -1e9


class MetricParams(NamedTuple):
    """Meta-parameters of a metric learner that learns more than one network."""

    params: base.Params  # of the model
    support_params: base.Params = ()  # of `support_model`
    head_params: Any = ()  # of what stands on the embeddings


class MetricTaskParams(NamedTuple):
    """What a metric learner predicts with; W ways."""

    params: base.Params  # of the model, which embeds the queries
    head_params: Any
    fitted: Any  # what the head made of the support: prototypes, for one
    present: jax.Array  # [W] bool, the classes with support examples


class Head(NamedTuple):
    """What stands on the embeddings, which are `Examples`: [N, D] beside [N, W].

    All but `init` and `regularizer` are given `key=` and `train=` too, as models are.

    Attributes:
      fit: `(head_params, support) -> (fitted, info)`; info is what `adapt` reports.
      logits: `(head_params, fitted, embeddings [Q, D]) -> [Q, W]`.
      init: `(key, support) -> head_params`; None where the head learns nothing.
      regularizer: `(head_params, fitted, support, query) -> scalar`, added to what is
        meta-trained, not to the loss that is reported; or None.
      judge: `(head_params, fitted, query) -> (loss, metrics)`, where the loss is not
        one of the logits; or None.
      absent: the output for a class without support examples; None is below all the
        others.
    """

    fit: Callable[..., tuple[Any, Any]]
    logits: Callable[..., jax.Array]
    init: Callable[[jax.Array, base.Examples], Any] | None = None
    regularizer: Callable[..., jax.Array] | None = None
    judge: Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]] | None = None
    absent: float | None = None


def metric_learner(
    model: base.ModelLike,
    head: Head,
    *,
    loss: base.LossFn,
    metrics: Mapping[str, base.MetricFn],
    support_model: base.ModelLike | None = None,
    flatten: bool = True,
    augment: Callable[[base.Examples], base.Examples] | None = None,
) -> base.MetaLearner:
    """Returns the learner that meta-trains `model`, and `head` if it learns.

    Args:
      model: embeds queries, and the support where there is no `support_model`.
      head: see `Head`.
      loss: `(outputs [Q, W], targets [Q, W]) -> scalar`.
      metrics: name -> `(outputs, targets) -> scalar`.
      support_model: embeds the support's inputs, of another kind than the queries'.
      flatten: whether the head wants embeddings [N, D] of at least 32 bits; otherwise
        it gets what the model makes. Static.
      augment: enlarges the support before anything else is done with it.

    Returns:
      A `MetaLearner`. Its meta-parameters are the model's own, or `MetricParams` where
      the head or a `support_model` learns too.
    """
    _checks.check_callable("loss", loss)
    _checks.check_metric_names(metrics)
    net = _model.normalize(model)
    support_net = net if support_model is None else _model.normalize(support_model)
    is_plain = support_model is None and head.init is None

    def unpack(meta_params):
        params = MetricParams(meta_params) if is_plain else meta_params
        _checks.check_type("meta_params", params, MetricParams)
        for part in params:
            _checks.check_params(part)
        return params

    def embed(net, params, examples, **options):
        embeddings = net.apply(params, examples.inputs, **options)
        num_examples = examples.targets.shape[0]
        if getattr(embeddings, "shape", ())[:1] != (num_examples,):
            raise ValueError(
                f"`model` must map {num_examples} examples to one array of embeddings "
                f"[{num_examples}, ...], got {jax.tree.map(jnp.shape, embeddings)}."
            )
        if flatten:
            embeddings = _embeddings.as_vectors(embeddings)
        return base.Examples(embeddings, examples.targets.astype(embeddings.dtype))

    def fit(params, support, key, train):
        model_key, head_key = jax.random.split(key)
        own = params.params if support_model is None else params.support_params
        support = embed(support_net, own, support, key=model_key, train=train)
        fitted, info = head.fit(params.head_params, support, key=head_key, train=train)
        present = jnp.sum(support.targets, 0) > 0
        task_params = MetricTaskParams(
            params.params, params.head_params, fitted, present
        )
        return task_params, support, info

    def outputs_of(task_params, embeddings, **options):
        _, head_params, fitted, present = task_params
        outputs = head.logits(head_params, fitted, embeddings, **options)
        if head.absent is not None:
            return jnp.where(present[None], outputs, head.absent)
        return _embeddings.without_absent(outputs, present)

    def judge(task_params, query, **options):
        if head.judge is not None:
            return head.judge(
                task_params.head_params, task_params.fitted, query, **options
            )
        outputs = outputs_of(task_params, query.inputs, **options)
        value = loss(outputs, query.targets)
        _checks.check_scalar_loss("loss", value)
        return value, {
            name: _checks.as_metric(name, fn(outputs, query.targets))
            for name, fn in metrics.items()
        }

    def prepare(support):
        check_targets("support", support)
        return support if augment is None else augment(support)

    def check(task):
        check_classification(task)
        sizes = lambda inputs: jax.tree.map(lambda x: str(jnp.shape(x)[1:]), inputs)
        shapes = sizes(task.support.inputs), sizes(task.query.inputs)
        if support_model is None and shapes[0] != shapes[1]:
            raise ValueError(
                f"Support and query inputs must be of one kind, got shapes {shapes[0]} "
                f"and {shapes[1]} an example. Where descriptions stand for examples "
                "(zero-shot), give a `support_model` for them."
            )

    def init(key, task):
        check(task)
        model_key, support_key, embed_key, head_key = jax.random.split(key, 4)
        params = net.init(model_key, task.query.inputs)
        _checks.check_params(params)
        if is_plain:
            return params
        support, support_params, head_params = prepare(task.support), (), ()
        if support_model is not None:
            support_params = support_net.init(support_key, support.inputs)
            _checks.check_params(support_params)
        if head.init is not None:
            own = params if support_model is None else support_params
            embedded = embed(support_net, own, support, key=embed_key, train=True)
            head_params = head.init(head_key, embedded)
        return MetricParams(params, support_params, head_params)

    def adapt_and_embed(key, meta_params, support):
        _checks.check_examples("support", support)
        support, params = prepare(support), unpack(meta_params)
        if support_model is None:
            params = params._replace(
                params=net.with_support_statistics(params.params, support.inputs)
            )
        return fit(params, support, key, train=False)

    def adapt(key, meta_params, support):
        task_params, _, info = adapt_and_embed(key, meta_params, support)
        return task_params, info

    def predict(task_params, inputs):
        _checks.check_type("task_params", task_params, MetricTaskParams)
        embeddings = net.apply(task_params.params, inputs)
        if flatten:
            embeddings = _embeddings.as_vectors(embeddings)
        return outputs_of(task_params, embeddings)

    def meta_loss(meta_params, key, task):
        support_key, query_key, head_key = jax.random.split(key, 3)
        params, support = unpack(meta_params), prepare(task.support)
        task_params, support, info = fit(params, support, support_key, train=True)
        query = embed(net, params.params, task.query, key=query_key, train=True)
        check_widths(support, query)
        value, values = judge(task_params, query, key=head_key, train=True)
        total = value
        if head.regularizer is not None:
            total = value + head.regularizer(
                params.head_params, task_params.fitted, support, query
            )
        return total, base.MetaGradInfo(value, values, info)

    def meta_grad(key, meta_params, task, **extra):
        del extra
        check(task)
        unpack(meta_params)  # Raises before JAX does.
        return jax.grad(meta_loss, has_aux=True)(meta_params, key, task)

    def evaluate(key, meta_params, task, *, inner_steps=None):
        if inner_steps is not None:
            raise ValueError(
                f"`inner_steps` must be None, got {inner_steps!r}: a metric learner "
                "makes no inner steps."
            )
        check(task)
        task_params, support, _ = adapt_and_embed(key, meta_params, task.support)
        query = embed(net, task_params.params, task.query)
        check_widths(support, query)
        judged = judge(task_params, query)
        return base.EvalInfo(*jax.tree.map(lambda x: x[None], judged))

    return base.MetaLearner(init, adapt, predict, meta_grad, evaluate)


def check_targets(name: str, examples: base.Examples) -> None:
    """Raises unless the targets are one-hot or class probabilities [N, W]."""
    if not hasattr(examples.targets, "shape"):
        raise ValueError(
            f"`{name}.targets` must be one array, one-hot [N, W], got "
            f"{type(examples.targets).__name__}."
        )
    shape = jnp.shape(examples.targets)
    if len(shape) == 3:
        raise ValueError(
            f"`{name}.targets` must be one-hot [N, W], got shape {shape}. Batched "
            "tasks [T, N, ...] go through `jax.vmap`, or "
            "`jaxmeta.estimators.over_tasks`, which adds the task axis."
        )
    dtype = jnp.result_type(examples.targets)
    is_labels = shape[1:] == (1,) and jnp.issubdtype(dtype, jnp.integer)
    if len(shape) != 2 or is_labels:
        raise ValueError(
            f"`{name}.targets` must be one-hot [N, W], so that the number of ways is "
            f"in the shape, got {dtype} of shape {shape}. Integer labels [N] go "
            "through `jax.nn.one_hot(labels, ways)`."
        )


def check_classification(task: base.Task) -> None:
    """Raises unless support and query are of the same one-hot classes."""
    _checks.check_task(task)
    check_targets("support", task.support)
    check_targets("query", task.query)
    ways = [examples.targets.shape[1] for examples in task]
    if ways[0] != ways[1]:
        raise ValueError(
            "`support` and `query` must be of the same classes, got targets of "
            f"{ways[0]} and {ways[1]} ways. Sample both of one task."
        )


def check_widths(support: base.Examples, query: base.Examples) -> None:
    """Raises unless the embeddings of both sets are of one shape."""
    shapes = support.inputs.shape[1:], query.inputs.shape[1:]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`support_model` must make embeddings of the shape of `model`'s, "
            f"{shapes[1]}, got {shapes[0]}."
        )
