"""CAVIA: adapts a few context parameters.

References:
  Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via
  Meta-Learning", ICML 2019, Algorithm 1. https://arxiv.org/abs/1810.03642
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, _model, _unroll, base
from jaxmeta.learners import _adaptation

_MODES = ("input", "model")


class CaviaParams(NamedTuple):
    """Task parameters of `cavia`."""

    params: base.Params  # shared by all tasks
    context: jax.Array  # [num_context]


def cavia(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    num_context: int,
    inner_tx: optax.GradientTransformation,
    inner_steps: int,
    context: Literal["input", "model"] = "input",
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns a network, and adapts a few context parameters that are its inputs.

    Every task starts at :math:`\phi_0 = 0`:

    .. math::
      \phi_{k+1} = \phi_k - \alpha \nabla_\phi L_s(\phi_k, \theta), \qquad
      g = \nabla_\theta L_q(\phi_K, \theta).

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      num_context: the number of context parameters. Static.
      inner_tx: the inner step; the paper's for regression is `optax.sgd(1.0)`.
      inner_steps: K. Static.
      context: "input" appends the context to every example's flattened inputs; "model"
        calls the model with the pair `(inputs, context)`, as for
        `jaxmeta.models.FilmConv4`. Static.
      first_order: treat the inner gradients as constants. Static.
      hvp: as in `maml`. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` whose meta-parameters are the model's parameters; its task
      parameters are `CaviaParams(params, context)`.

    Raises:
      ValueError: if a count is not a positive int, `inner_tx` is not a transformation
        or `context` is unknown; while tracing, if the support is ragged or empty,
        parameters are not floats, or the loss is not a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> model = jm.Model(
      ...     init=lambda key, inputs: jnp.ones(inputs.shape[-1]),  # 1 input, 1 context
      ...     apply=lambda w, inputs: inputs @ w,
      ... )
      >>> learner = jm.cavia(model, lambda out, y: jnp.mean((out - y) ** 2),
      ...                    num_context=1, inner_tx=optax.sgd(0.5), inner_steps=1)
      >>> x = jnp.array([[0.0], [1.0]])
      >>> support = jm.Examples(inputs=x, targets=x[:, 0] + 3)
      >>> key = jax.random.key(0)
      >>> params = learner.init(key, jm.Task(support, support))
      >>> task_params, _ = learner.adapt(key, params, support)
      >>> print(task_params.context)
      [3.]
    """
    description = _describe.describe(cavia, locals())
    _checks.check_int("num_context", num_context)
    _checks.check_choice("context", context, _MODES)
    _checks.check_plain_transformation("inner_tx", inner_tx)
    net = _model.normalize(model)

    def join(inputs, phi):
        if context == "model":
            return inputs, phi
        if not hasattr(inputs, "reshape"):
            raise ValueError(
                'context="input" requires inputs in one array, got '
                f'{type(inputs).__name__}. Use context="model" with a model that takes '
                "`(inputs, context)`."
            )
        flat = inputs.reshape(inputs.shape[0], -1)
        phi = jnp.broadcast_to(phi[None], (flat.shape[0], num_context))
        return jnp.concatenate([flat, phi], -1)

    def apply(task_params, inputs, key=None, train=False):
        _checks.check_type("task_params", task_params, CaviaParams)
        params, phi = task_params
        return net.apply(params, join(inputs, phi), key=key, train=train)

    def with_support_statistics(task_params, inputs):
        params, phi = task_params
        return CaviaParams(net.with_support_statistics(params, join(inputs, phi)), phi)

    def init(key, task):
        return net.init(key, join(task.support.inputs, jnp.zeros(num_context)))

    def prepare(key, meta_params, support):
        del key, support
        if isinstance(meta_params, CaviaParams):  # Resumes.
            params, start = meta_params
        else:
            dtype = jnp.result_type(*jax.tree.leaves(meta_params))
            params, start = meta_params, jnp.zeros(num_context, dtype)
        to_params = lambda phi, step: CaviaParams(params, phi)
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
        loop, init, description=description, resumable=CaviaParams
    )
