"""Shared by metric learners: embed, fit a head on the support, classify the queries.

Only the embedding is meta-trained; adaptation is a forward pass. Learners differ in
the `Head` on the embeddings.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _model, base, losses
from jaxmeta.learners import _embeddings

# Far below any score of an example, yet finite, so that 0 times it is 0.
LOWEST = -1e9


class MetricParams(NamedTuple):
    """Meta-parameters of a metric learner that learns more than one network."""

    params: base.Params  # the model's
    support_params: base.Params = ()  # the `support_model`'s
    head_params: Any = ()  # the head's


class MetricTaskParams(NamedTuple):
    """Task parameters of a metric learner with W ways."""

    params: base.Params  # the model's, to embed the queries
    head_params: Any
    fitted: Any  # the head fitted to the support, e.g. prototypes
    present: jax.Array  # [W] bool, classes with support examples
    support: base.Examples  # embeddings [N, D] of all support examples so far
    meta_params: MetricParams  # to embed further support examples


class FitFn(Protocol):
    """Fits a head to the embedded support."""

    def __call__(
        self,
        head_params: Any,
        support: base.Examples,
        /,
        *,
        key: jax.Array,
        train: bool,
    ) -> tuple[Any, Any]:
        """Returns `(fitted, info)`; `adapt` returns the info."""
        ...


class LogitsFn(Protocol):
    """Classifies embedded queries."""

    def __call__(
        self, head_params: Any, fitted: Any, embeddings: jax.Array, /, **options: Any
    ) -> jax.Array:
        """Returns [Q, W] for embeddings [Q, D]; options are `key` and `train`."""
        ...


class Head(NamedTuple):
    """Classifier head on embedded `Examples`, inputs [N, D] and targets [N, W].

    All-zero rows in targets are padding, all-zero columns in the support's targets are
    classes without examples; a head excludes both. All but `init` and `regularizer`
    also receive `key=` and `train=`, as models do.

    Attributes:
      fit: `(head_params, support) -> (fitted, info)`; `adapt` returns the info.
      logits: `(head_params, fitted, embeddings [Q, D]) -> [Q, W]`.
      init: `(key, support) -> head_params`; None if the head has no parameters.
      regularizer: `(head_params, fitted, support, query) -> scalar`, added to the
        meta-training objective but not to the reported loss; or None.
      evaluate_query: `(head_params, fitted, query) -> (loss, metrics)`, if the loss is
        not a function of the logits; or None.
      absent: output for a class without support examples; None is below all others.
    """

    fit: FitFn
    logits: LogitsFn
    init: Callable[[jax.Array, base.Examples], Any] | None = None
    regularizer: (
        Callable[[Any, Any, base.Examples, base.Examples], jax.Array] | None
    ) = None
    evaluate_query: Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]] | None = (
        None
    )
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
    description: str = "",
) -> base.MetaLearner:
    """Returns a learner that meta-trains `model`, and `head` if it has parameters.

    Args:
      model: embeds the queries, and the support if there is no `support_model`.
      head: see `Head`.
      loss: `(outputs [Q, W], targets [Q, W]) -> scalar`. `squared_error` averages over
        the examples and classes of the task, without padding.
      metrics: name -> `(outputs, targets) -> scalar`.
      support_model: embeds the support if its inputs differ in kind from the queries'.
      flatten: whether the head requires embeddings [N, D] in at least 32 bits; if not,
        it receives the model's outputs. Static.
      augment: enlarges the support before everything else.
      description: the learner's repr.

    Returns:
      A `MetaLearner`. Its meta-parameters are the model's own, or `MetricParams` if the
      head or a `support_model` has parameters too.
    """
    _checks.check_callable("loss", loss)
    _checks.check_metric_names(metrics)
    support_net = None if support_model is None else _model.normalize(support_model)
    parts = _Parts(
        _model.normalize(model), support_net, head, loss, metrics, flatten, augment
    )
    return base.MetaLearner(
        parts.init,
        parts.adapt,
        parts.predict,
        parts.meta_grad,
        parts.evaluate,
        description,
    )


class _Parts(NamedTuple):
    """Arguments of `metric_learner`; the methods are the learner's functions."""

    net: _model.NormalModel
    support_net: _model.NormalModel | None
    head: Head
    loss: base.LossFn
    metrics: Mapping[str, base.MetricFn]
    flatten: bool
    augment: Callable[[base.Examples], base.Examples] | None

    def init(self, key: jax.Array, task: base.Task) -> base.Params:
        """Draws initial meta-parameters for tasks with the shapes of `task`."""
        self.check_task(task)
        model_key, support_key, embed_key, head_key = jax.random.split(key, 4)
        params = self.net.init(model_key, task.query.inputs)
        if self.is_plain:
            return params
        support, net = self.prepare(task.support), self.net
        own, support_params, head_params = params, (), ()
        if self.support_net is not None:
            net = self.support_net
            own = support_params = net.init(support_key, support.inputs)
        if self.head.init is not None:
            embedded = self.embed(net, own, support, key=embed_key, train=True)
            head_params = self.head.init(head_key, embedded)
        return MetricParams(params, support_params, head_params)

    def adapt(
        self, key: jax.Array, meta_params: base.Params, support: base.Examples
    ) -> tuple[MetricTaskParams, Any]:
        """Embeds the support and fits the head to it: `(task_params, info)`.

        Pass task parameters instead of meta-parameters to resume: the head is refitted
        to these and all earlier examples.
        """
        task_params, _, info = self.adapt_and_embed(key, meta_params, support)
        return task_params, info

    def predict(self, task_params: MetricTaskParams, inputs: base.PyTree) -> jax.Array:
        """Returns outputs [N, W] for inputs [N, ...]."""
        _checks.check_type("task_params", task_params, MetricTaskParams)
        embeddings = self.net.apply(task_params.params, inputs)
        if self.flatten:
            embeddings = _embeddings.as_vectors(embeddings)
        return self.outputs(task_params, embeddings)

    def meta_grad(
        self, key: jax.Array, meta_params: base.Params, task: base.Task, **extra: Any
    ) -> tuple[base.Params, base.MetaGradInfo]:
        """Differentiates the query loss w.r.t. all meta-parameters: `(grads, info)`."""
        del extra
        self.check_task(task)
        self.unpack(meta_params)  # Raises a clearer error than JAX would.
        return jax.grad(self.meta_loss, has_aux=True)(meta_params, key, task)

    def evaluate(
        self,
        key: jax.Array,
        meta_params: base.Params,
        task: base.Task,
        *,
        inner_steps: int | None = None,
    ) -> base.EvalInfo:
        """Returns query loss and metrics [1]; there are no inner steps."""
        if inner_steps is not None:
            raise ValueError(
                f"`inner_steps` must be None, got {inner_steps!r}: a metric learner "
                "makes no inner steps."
            )
        self.check_task(task)
        task_params, support, _ = self.adapt_and_embed(key, meta_params, task.support)
        query = self.embed(self.net, task_params.params, task.query)
        check_widths(support, query)
        found = self.evaluate_query(task_params, query)
        # K = 0 inner steps: leaves [K + 1] = [1].
        return base.EvalInfo(*jax.tree.map(lambda x: x[None], found))

    @property
    def is_plain(self) -> bool:
        """Whether the meta-parameters are the model's own."""
        return self.support_net is None and self.head.init is None

    def check_task(self, task):
        """Raises unless support and query match."""
        check_classification(task)
        sizes = lambda inputs: jax.tree.map(lambda x: str(jnp.shape(x)[1:]), inputs)
        shapes = sizes(task.support.inputs), sizes(task.query.inputs)
        if self.support_net is None and shapes[0] != shapes[1]:
            raise ValueError(
                "Support and query inputs must have the same shapes, got "
                f"{shapes[0]} and {shapes[1]} per example. If the support holds class "
                "descriptions (zero-shot), pass a `support_model`."
            )

    def unpack(self, meta_params):
        """Returns checked `MetricParams`."""
        params = MetricParams(meta_params) if self.is_plain else meta_params
        _checks.check_type("meta_params", params, MetricParams)
        for part in params:
            _checks.check_params(part)
        return params

    def prepare(self, support):
        """Checks the support's targets and enlarges it."""
        check_targets("support", support)
        return support if self.augment is None else self.augment(support)

    def embed(self, net, params, examples, **options):
        """Returns `examples` with embeddings as inputs."""
        embeddings = net.apply(params, examples.inputs, **options)
        num_examples = examples.targets.shape[0]
        if getattr(embeddings, "shape", ())[:1] != (num_examples,):
            raise ValueError(
                f"`model` must map {num_examples} examples to one array of embeddings "
                f"[{num_examples}, ...], got {jax.tree.map(jnp.shape, embeddings)}."
            )
        if self.flatten:
            embeddings = _embeddings.as_vectors(embeddings)
        return base.Examples(embeddings, examples.targets.astype(embeddings.dtype))

    def fit(self, params, support, key, train, earlier=None):
        """Returns task parameters, the embedded support and the head's info."""
        model_key, head_key = jax.random.split(key)
        net, own = self.net, params.params
        if self.support_net is not None:
            net, own = self.support_net, params.support_params
        support = self.embed(net, own, support, key=model_key, train=train)
        if earlier is not None:
            together = lambda *x: jnp.concatenate(x)
            support = jax.tree.map(together, earlier, support)
        fitted, info = self.head.fit(
            params.head_params, support, key=head_key, train=train
        )
        present = jnp.sum(support.targets, 0) > 0
        task_params = MetricTaskParams(
            params.params, params.head_params, fitted, present, support, params
        )
        return task_params, support, info

    def adapt_and_embed(self, key, meta_params, support):
        """Fits for predictions, with the statistics of the support set."""
        _checks.check_examples("support", support)
        support, earlier = self.prepare(support), None
        if isinstance(meta_params, MetricTaskParams):
            earlier, params = meta_params.support, meta_params.meta_params
        else:
            params = self.unpack(meta_params)
        predicting = params
        if self.support_net is None:
            own = self.net.with_support_statistics(params.params, support.inputs)
            predicting = params._replace(params=own)
        found = self.fit(predicting, support, key, False, earlier)
        return found[0]._replace(meta_params=params), *found[1:]

    def outputs(self, task_params, embeddings, **options):
        """Returns the head's outputs [Q, W], constant for absent classes."""
        _, head_params, fitted, present, *_ = task_params
        outputs = self.head.logits(head_params, fitted, embeddings, **options)
        if self.head.absent is not None:
            return jnp.where(present[None], outputs, self.head.absent)
        return _embeddings.without_absent(outputs, present)

    def evaluate_query(self, task_params, query, **options):
        """Returns the loss and the metrics of an embedded query set."""
        if self.head.evaluate_query is not None:
            return self.head.evaluate_query(
                task_params.head_params, task_params.fitted, query, **options
            )
        outputs, targets = (
            self.outputs(task_params, query.inputs, **options),
            query.targets,
        )
        if self.loss is losses.squared_error:
            value = _squared_error(outputs, targets, task_params.present)
        else:
            value = self.loss(outputs, targets)
        _checks.check_scalar_loss("loss", value)
        return value, {
            name: _checks.as_metric(name, fn(outputs, targets))
            for name, fn in self.metrics.items()
        }

    def meta_loss(self, meta_params, key, task):
        """Returns the meta-training objective and `MetaGradInfo`."""
        support_key, query_key, head_key = jax.random.split(key, 3)
        params, support = self.unpack(meta_params), self.prepare(task.support)
        task_params, support, info = self.fit(params, support, support_key, train=True)
        query = self.embed(
            self.net, params.params, task.query, key=query_key, train=True
        )
        check_widths(support, query)
        value, values = self.evaluate_query(
            task_params, query, key=head_key, train=True
        )
        total = value
        if self.head.regularizer is not None:
            total = value + self.head.regularizer(
                params.head_params, task_params.fitted, support, query
            )
        return total, base.MetaGradInfo(value, values, info)


def _squared_error(outputs, targets, present):
    """The squared error to one-hot targets, excluding padding and absent classes."""
    squares = jnp.where(present[None], jnp.square(outputs - targets), 0)
    num_classes = jnp.maximum(jnp.sum(present), 1).astype(squares.dtype)
    return losses.mean_over_examples(jnp.sum(squares, -1) / num_classes, targets)


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
            f"`{name}.targets` must be one-hot [N, W], got shape {shape}. For batched "
            "tasks [T, N, ...] use `jax.vmap` or "
            "`jaxmeta.estimators.over_tasks`, which adds the task axis."
        )
    dtype = jnp.result_type(examples.targets)
    is_labels = shape[1:] == (1,) and jnp.issubdtype(dtype, jnp.integer)
    if len(shape) != 2 or is_labels:
        raise ValueError(
            f"`{name}.targets` must be one-hot [N, W], so that their shape gives the "
            f"number of ways, got {dtype} of shape {shape}. Convert integer labels [N] "
            "by `jax.nn.one_hot(labels, ways)`."
        )


def check_classification(task: base.Task) -> None:
    """Raises unless support and query have the same one-hot classes."""
    _checks.check_task(task)
    check_targets("support", task.support)
    check_targets("query", task.query)
    ways = [examples.targets.shape[1] for examples in task]
    if ways[0] != ways[1]:
        raise ValueError(
            "`support` and `query` must have the same classes, got targets with "
            f"{ways[0]} and {ways[1]} ways. Sample both from one task."
        )


def check_widths(support: base.Examples, query: base.Examples) -> None:
    """Raises unless the embeddings of both sets have the same shape."""
    shapes = support.inputs.shape[1:], query.inputs.shape[1:]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`support_model` must return embeddings with the shape of `model`'s, "
            f"{shapes[1]}, got {shapes[0]}."
        )
