"""Shared by learners with an inner loop: all but which variables adapt, and from where.

A learner's `prepare` says where a task's variables start, how they map to the model's
parameters, and which rule updates them; `InnerLoop` combines that with a model and a
loss, and `as_learner` builds the five functions.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _messages, _model, _random, _unroll, base, losses


class Adaptation(NamedTuple):
    """The inner loop of one task.

    Attributes:
      start: the variables before the first inner step.
      to_params: `(variables, step) -> params`, the model's parameters after `step`
        inner steps.
      inner_tx: updates the variables.
      inner_state: state of `inner_tx`; None initialises it.
    """

    start: base.Params
    to_params: Callable[[base.Params, jax.Array], base.Params]
    inner_tx: optax.GradientTransformation
    inner_state: Any = None


Prepare = Callable[[jax.Array, base.Params, base.Examples], Adaptation]


class InnerLoop(NamedTuple):
    """A model, a loss and a way to adapt, made by `inner_loop`."""

    net: _model.NormalModel
    loss: base.LossFn
    prepare: Prepare
    inner_steps: int
    metrics: Mapping[str, base.MetricFn]
    order: _unroll.Order
    batch_size: int | None

    def run(
        self,
        key: jax.Array,
        meta_params: base.Params,
        support: base.Examples,
        inner_steps: int | None = None,
        probe: Callable[[base.Params, jax.Array], Any] | None = None,
    ) -> tuple[base.Params, _unroll.Unrolled]:
        """Adapts: returns the model's parameters and the unrolled inner loop.

        Args:
          key: for dropout and minibatches.
          meta_params: the learner's, or an `Adapted` to resume from.
          support: examples to adapt to.
          inner_steps: K; None is the learner's.
          probe: `(params, k) -> tree`, called on the model's parameters after k steps.
        """
        num_steps = self.inner_steps if inner_steps is None else inner_steps
        prepare_key, key = jax.random.split(key)
        first_step, adaptation = self._start(prepare_key, meta_params, support)
        start, to_params, inner_tx, inner_state = adaptation

        def support_loss(variables, key, step, support):
            if self.batch_size is not None:
                batch_key, key = jax.random.split(key)
                support = _draw(batch_key, support, self.batch_size, self.loss)
            params = to_params(variables, step)
            return self._loss_and_outputs(params, key, support)[0], None

        probe_variables = None
        if probe is not None:
            probe_variables = lambda variables, k: probe(to_params(variables, k), k)

        result = _unroll.unroll(
            support_loss,
            inner_tx,
            start,
            jax.random.split(key, num_steps),
            support,
            order=self.order,
            state=inner_state,
            first_step=first_step,
            probe=probe_variables,
            rematerialize=self.order != "constant",
        )
        last = jnp.asarray(first_step + num_steps, jnp.int32)
        return to_params(result.params, last), result

    def _start(self, key, meta_params, support):
        """Returns the number of completed inner steps, and the `Adaptation`."""
        if not isinstance(meta_params, base.Adapted):
            _checks.check_params(meta_params)
            return 0, self.prepare(key, meta_params, support)
        _, inner_state, step, meta_params, variables = meta_params
        adaptation = self.prepare(key, meta_params, support)
        start = adaptation.start if variables is None else variables
        return step, adaptation._replace(start=start, inner_state=inner_state)

    def _loss_and_outputs(self, params, key, examples):
        outputs = self.net.apply(params, examples.inputs, key=key, train=True)
        value = self.loss(outputs, examples.targets)
        _checks.check_scalar_loss("loss", value)
        return value, outputs

    def example_loss(
        self, params: base.Params, key: jax.Array, examples: base.Examples
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the differentiable loss and the metrics."""
        value, outputs = self._loss_and_outputs(params, key, examples)
        return value, self._measure(outputs, examples.targets)

    def predict(self, task_params: base.Params, inputs: base.PyTree) -> base.PyTree:
        """Returns outputs [N, ...] for inputs [N, ...]."""
        if isinstance(task_params, base.Adapted):
            task_params = task_params.params
        return self.net.apply(task_params, inputs)

    def evaluate_query(
        self, params: base.Params, query: base.Examples
    ) -> base.EvalInfo:
        """Returns loss and metrics of predictions, with leaves []."""
        outputs = self.predict(params, query.inputs)
        value = self.loss(outputs, query.targets)
        return base.EvalInfo(value, self._measure(outputs, query.targets))

    def _measure(self, outputs, targets):
        return {
            name: _checks.as_metric(name, metric(outputs, targets))
            for name, metric in self.metrics.items()
        }


def inner_loop(
    model: base.ModelLike,
    loss: base.LossFn,
    prepare: Prepare,
    *,
    inner_steps: int,
    metrics: Mapping[str, base.MetricFn] | None,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    batch_size: int | None = None,
) -> InnerLoop:
    """Checks the user's arguments and builds an `InnerLoop`.

    Args:
      model: takes the parameters that `Adaptation.to_params` returns.
      loss: `(outputs, targets) -> scalar`.
      prepare: `(key, meta_params, support) -> Adaptation`.
      inner_steps: K.
      metrics: metrics of the query outputs; None is the default for the loss.
      first_order: treat the inner gradients as constants.
      hvp: how Hessian-vector products are computed.
      batch_size: support examples per inner step, redrawn each step; None is all.
    """
    _checks.check_int("inner_steps", inner_steps)
    _checks.check_choice("hvp", hvp, _unroll.HVP_MODES)
    if batch_size is not None:
        _checks.check_int("batch_size", batch_size)
    _checks.check_callable("loss", loss)
    metrics = losses.default_metrics(loss) if metrics is None else metrics
    _checks.check_metric_names(metrics)
    return InnerLoop(
        net=_model.normalize(model),
        loss=loss,
        prepare=prepare,
        inner_steps=inner_steps,
        metrics=metrics,
        order="constant" if first_order else hvp,
        batch_size=batch_size,
    )


def differentiate(loop: InnerLoop) -> base.MetaGradFn:
    """The gradient of the adapted query loss with respect to all meta-parameters."""

    def query_loss(meta_params, key, task):
        inner_key, query_key = jax.random.split(key)
        params, result = loop.run(inner_key, meta_params, task.support)
        value, metrics = loop.example_loss(params, query_key, task.query)
        return value, (metrics, base.AdaptInfo(result.losses))

    def meta_grad(key, meta_params, task, **extra):
        del extra
        grad_fn = jax.value_and_grad(query_loss, has_aux=True)
        (value, (metrics, adapt_info)), grads = grad_fn(meta_params, key, task)
        return grads, base.MetaGradInfo(value, metrics, adapt_info)

    return meta_grad


def as_learner(
    loop: InnerLoop,
    init: base.InitFn,
    meta_grad: base.MetaGradFn | None = None,
    *,
    description: str = "",
    resumable: type | None = None,
) -> base.MetaLearner:
    """Builds the five functions of a learner.

    Args:
      loop: the inner loop.
      init: `(key, task) -> meta_params`.
      meta_grad: None is `differentiate(loop)`.
      description: the learner's repr.
      resumable: the type of the model's parameters, if it differs from that of the
        meta-parameters and `loop.prepare` can start from it.
    """
    meta_grad = differentiate(loop) if meta_grad is None else meta_grad
    functions = _LearnerFunctions(loop, init, meta_grad, resumable)
    return base.MetaLearner(
        functions.init,
        functions.adapt,
        loop.predict,
        functions.meta_grad,
        functions.evaluate,
        description,
    )


class _LearnerFunctions(NamedTuple):
    """The functions of a learner, with their checks."""

    loop: InnerLoop
    unchecked_init: base.InitFn
    unchecked_meta_grad: base.MetaGradFn
    resumable: type | None

    def init(self, key, task):
        """Draws meta-parameters for tasks with the shapes of `task`."""
        _checks.check_task(task)
        meta_params = self.unchecked_init(key, task)
        _checks.check_params(meta_params)
        return meta_params

    def adapt(self, key, meta_params, support):
        """Makes K inner steps on `support`: returns `(task_params, info)`.

        Pass task parameters instead of meta-parameters to resume: K more steps on
        these examples, with the inner rule's state.
        """
        _checks.check_examples("support", support)
        params, result = self.loop.run(key, meta_params, support)
        task_params = self._task_params(meta_params, params, result, support)
        return task_params, base.AdaptInfo(result.losses)

    def _task_params(self, meta_params, params, result, support):
        """The model's parameters alone if they suffice to resume, else `Adapted`."""
        step = len(result.losses)
        if isinstance(meta_params, base.Adapted):
            step, meta_params = step + meta_params.step, meta_params.meta_params
        if self.resumable is None:
            can_start = jax.tree.structure(params) == jax.tree.structure(meta_params)
        else:
            can_start = isinstance(params, self.resumable)
        predicting = self.loop.net.with_support_statistics(params, support.inputs)
        adds_statistics = jax.tree.structure(predicting) != jax.tree.structure(params)
        if can_start and not adds_statistics and not jax.tree.leaves(result.state):
            return params
        # If the parameters can be the next start, they take the meta-parameters' place;
        # otherwise keep the meta-parameters and the variables that adapt.
        origin = (params,) if can_start else (meta_params, result.params)
        step = jnp.asarray(step, jnp.int32)
        return base.Adapted(predicting, result.state, step, *origin)

    def meta_grad(self, key, meta_params, task, **extra):
        """Returns `(meta_grads, info)`, the gradients shaped like `meta_params`."""
        _checks.check_task(task)
        _checks.check_params(meta_params)
        with _messages.explain_reverse_mode():
            return self.unchecked_meta_grad(key, meta_params, task, **extra)

    def evaluate(self, key, meta_params, task, *, inner_steps=None):
        """Returns query loss and metrics after 0 ... `inner_steps` inner steps."""
        _checks.check_task(task)
        steps = self.loop.inner_steps if inner_steps is None else inner_steps
        _checks.check_int("inner_steps", steps)

        def probe(params, step):
            del step
            params = self.loop.net.with_support_statistics(params, task.support.inputs)
            return self.loop.evaluate_query(params, task.query)

        _, result = self.loop.run(key, meta_params, task.support, steps, probe)
        return result.probed


def _draw(key, examples, batch_size, loss):
    """Draws a minibatch of at most `batch_size` distinct examples.

    Padding is drawn last. The loss decides whether all-zero rows are padding.
    """
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    if batch_size >= num_examples:
        return examples
    is_allowed = jnp.ones(num_examples, bool)
    if loss is losses.cross_entropy and jnp.ndim(examples.targets) == 2:
        is_allowed = losses.is_example(examples.targets)
    chosen = _random.draw_distinct(key, is_allowed, batch_size)
    return jax.tree.map(lambda x: x[chosen], examples)
