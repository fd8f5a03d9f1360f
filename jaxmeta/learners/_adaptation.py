"""What learners that adapt by an inner loop share: all but what moves, and from where.

A learner says, by `prepare`, where a task's variables start, how they make the model's
parameters, and which rule moves them; `inner_loop` ties that to a model and a loss, and
`as_learner` makes the five functions of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _inner_loop, _model, _random, base, losses


class Adaptation(NamedTuple):
    """The inner loop of one task.

    Attributes:
      start: the variables before the first inner step.
      to_params: `(variables, step) -> params`, the model's parameters after `step`
        inner steps.
      inner_tx: moves the variables.
      inner_state: of `inner_tx`; None starts it fresh.
    """

    start: base.Params
    to_params: Callable[[base.Params, jax.Array], base.Params]
    inner_tx: optax.GradientTransformation
    inner_state: Any = None


class InnerLoop(NamedTuple):
    """A model, a loss and a way to adapt, tied together.

    Attributes:
      inner_steps: K.
      run: `(key, meta_params, support, inner_steps=K, probe=None) -> InnerLoopResult`,
        its `params` the model's; `probe(params, k)` takes these too.
      example_loss: `(params, key, examples) -> (loss, metrics)`, to be differentiated.
      predict: `(params, inputs) -> outputs`.
      with_support_statistics: `(params, inputs) -> params`.
      judge: `(params, query) -> EvalInfo` of predictions, leaves [].
    """

    inner_steps: int
    run: Callable[..., _inner_loop.InnerLoopResult]
    example_loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    predict: base.PredictFn
    with_support_statistics: Callable[[base.Params, base.PyTree], base.Params]
    judge: Callable[[base.Params, base.Examples], base.EvalInfo]


def inner_loop(
    model: base.ModelLike,
    loss: base.LossFn,
    prepare: Callable[[jax.Array, base.Params, base.Examples], Adaptation],
    *,
    inner_steps: int,
    metrics: Mapping[str, base.MetricFn] | None,
    first_order: bool = False,
    hvp: _inner_loop.Hvp = "forward-over-reverse",
    batch_size: int | None = None,
) -> InnerLoop:
    """Checks what users gave, and ties it together.

    Args:
      model: its parameters are what `Adaptation.to_params` makes.
      loss: `(outputs, targets) -> scalar`.
      prepare: `(key, meta_params, support) -> Adaptation`.
      inner_steps: K.
      metrics: of the query outputs; None is what suits the loss.
      first_order: treat the inner gradients as constants.
      hvp: how Hessian-vector products are taken.
      batch_size: support examples of an inner step, drawn anew for each; None is all.
    """
    _checks.check_int("inner_steps", inner_steps)
    _checks.check_choice("hvp", hvp, _inner_loop.HVP_MODES)
    if batch_size is not None:
        _checks.check_int("batch_size", batch_size)
    _checks.check_callable("loss", loss)
    metrics = losses.default_metrics(loss) if metrics is None else metrics
    _checks.check_metric_names(metrics)
    default_steps, net = inner_steps, _model.normalize(model)

    def loss_and_outputs(params, key, examples):
        outputs = net.apply(params, examples.inputs, key=key, train=True)
        value = loss(outputs, examples.targets)
        _checks.check_scalar_loss("loss", value)
        return value, outputs

    def run(key, meta_params, support, inner_steps=default_steps, probe=None):
        _checks.check_params(meta_params)
        prepare_key, key = jax.random.split(key)
        start, to_params, inner_tx, inner_state = prepare(
            prepare_key, meta_params, support
        )

        def support_loss(variables, key, support, step):
            if batch_size is not None:
                batch_key, key = jax.random.split(key)
                support = _draw(batch_key, support, batch_size)
            return loss_and_outputs(to_params(variables, step), key, support)[0]

        probe_variables = None
        if probe is not None:
            probe_variables = lambda variables, k: probe(to_params(variables, k), k)
        unrolled = _inner_loop.unroll(
            support_loss, inner_tx, first_order=first_order, hvp=hvp
        )
        result = unrolled(
            key, start, support, inner_steps, probe_variables, inner_state
        )
        last = jnp.full((), inner_steps, jnp.int32)
        return result._replace(params=to_params(result.params, last))

    def measure(outputs, targets):
        return {
            name: _checks.as_metric(name, metric(outputs, targets))
            for name, metric in metrics.items()
        }

    def example_loss(params, key, examples):
        value, outputs = loss_and_outputs(params, key, examples)
        return value, measure(outputs, examples.targets)

    def predict(task_params, inputs):
        return net.apply(task_params, inputs)

    def judge(params, query):
        outputs = predict(params, query.inputs)
        value = loss(outputs, query.targets)
        return base.EvalInfo(value, measure(outputs, query.targets))

    return InnerLoop(
        default_steps, run, example_loss, predict, net.with_support_statistics, judge
    )


def differentiate(loop: InnerLoop) -> base.MetaGradFn:
    """The meta-gradient of the query loss after the inner loop, by all meta-params."""

    def query_loss(meta_params, key, task):
        inner_key, query_key = jax.random.split(key)
        result = loop.run(inner_key, meta_params, task.support)
        value, metrics = loop.example_loss(result.params, query_key, task.query)
        return value, (metrics, base.AdaptInfo(result.losses))

    def meta_grad(key, meta_params, task, **extra):
        del extra
        grad_fn = jax.value_and_grad(query_loss, has_aux=True)
        (value, (metrics, adapt_info)), grads = grad_fn(meta_params, key, task)
        return grads, base.MetaGradInfo(value, metrics, adapt_info)

    return meta_grad


def as_learner(
    loop: InnerLoop, init: base.InitFn, meta_grad: base.MetaGradFn | None = None
) -> base.MetaLearner:
    """Makes the five functions; the meta-gradient is `differentiate(loop)` if None."""
    unchecked_meta_grad = differentiate(loop) if meta_grad is None else meta_grad

    def checked_init(key, task):
        _checks.check_task(task)
        meta_params = init(key, task)
        _checks.check_params(meta_params)
        return meta_params

    def adapt(key, meta_params, support):
        _checks.check_examples("support", support)
        result = loop.run(key, meta_params, support)
        task_params = loop.with_support_statistics(result.params, support.inputs)
        return task_params, base.AdaptInfo(result.losses)

    def meta_grad_of_task(key, meta_params, task, **extra):
        _checks.check_task(task)
        _checks.check_params(meta_params)
        return unchecked_meta_grad(key, meta_params, task, **extra)

    def evaluate(key, meta_params, task, *, inner_steps=None):
        _checks.check_task(task)
        steps = loop.inner_steps if inner_steps is None else inner_steps
        _checks.check_int("inner_steps", steps)

        def probe(params, step):
            del step
            task_params = loop.with_support_statistics(params, task.support.inputs)
            return loop.judge(task_params, task.query)

        return loop.run(key, meta_params, task.support, steps, probe).probed

    return base.MetaLearner(
        checked_init, adapt, loop.predict, meta_grad_of_task, evaluate
    )


def _draw(key, examples, batch_size):
    """Draws a minibatch of at most `batch_size` distinct examples."""
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    if batch_size >= num_examples:
        return examples
    chosen = _random.draw_distinct(key, jnp.ones(num_examples, bool), batch_size)
    return jax.tree.map(lambda x: x[chosen], examples)
