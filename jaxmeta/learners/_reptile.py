"""Reptile: moves the initialisation towards each task's trained parameters.

References:
  Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018,
  Algorithm 2. https://arxiv.org/abs/1803.02999
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.learners import _adaptation


class ReptileParams(NamedTuple):
    """Meta-parameters of `reptile(keep_inner_state=True)`."""

    params: base.Params  # the initialisation
    inner_state: Any  # the inner rule's; counts are floats, so that they average


def reptile(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    inner_tx: optax.GradientTransformation,
    inner_steps: int,
    batch_size: int | None = None,
    keep_inner_state: bool = False,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an initialisation by moving it towards each task's trained parameters.

    After K inner steps from :math:`\theta` to :math:`\phi`, each on a minibatch of the
    support set, the meta-gradient is

    .. math::
      g = \theta - \phi,

    so an outer `optax.sgd(epsilon)` is the paper's interpolation. The inner loop is not
    differentiated, and the query set is used only for the reported loss.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      inner_tx: the inner step; the paper's is `optax.adam(1e-3, b1=0.0)`.
      inner_steps: K. Static.
      batch_size: support examples per inner step, redrawn each step without
        replacement; None is all of them. A smaller support set is used whole. Static.
      keep_inner_state: carry the inner rule's state from task to task, as the
        released code does for Adam. The outer rule must then be
        `jaxmeta.learners.reptile_outer_tx(outer_tx)`: any other corrupts the state, and
        the loss becomes NaN after some steps. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner`. Its meta-parameters are the initial model parameters, or with
      `keep_inner_state` `ReptileParams(params, inner_state)`.

    Raises:
      ValueError: if a count is not a positive int, `inner_tx` is not a transformation,
        or its state cannot be averaged; while tracing, if the support is ragged or
        empty, parameters are not floats, or the loss is not a scalar.

    Differs from the paper:
      The released code cycles through a shuffled support set; here each minibatch is
      drawn independently. It keeps the state of the previous task; here it is the mean
      over the tasks of a meta-step.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> learner = jm.reptile(
      ...     jm.Model(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w),
      ...     lambda out, y: jnp.mean((out - y) ** 2),
      ...     inner_tx=optax.sgd(0.5),
      ...     inner_steps=1,
      ... )
      >>> x = jnp.eye(2)
      >>> support = jm.Examples(inputs=x, targets=jnp.array([1.0, -1.0]))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> grads, _ = learner.meta_grad(key, learner.init(key, task), task)
      >>> print(grads)
      [-0.5  0.5]
    """
    description = _describe.describe(reptile, locals())
    _checks.check_plain_transformation("inner_tx", inner_tx)
    inner_tx = optax.with_extra_args_support(inner_tx)

    def init(key, task):
        params = loop.net.init(key, task.support.inputs)
        if not keep_inner_state:
            return params
        return ReptileParams(params, _as_floats(inner_tx.init(params)))

    def prepare(key, meta_params, support):
        del key, support
        to_params = lambda params, step: params
        if not keep_inner_state:
            return _adaptation.Adaptation(meta_params, to_params, inner_tx)
        _checks.check_type("meta_params", meta_params, ReptileParams)
        params, state = meta_params
        # Averaged counts are floats: round them back to the rule's own dtypes.
        like = jax.eval_shape(inner_tx.init, params)
        state = jax.tree.map(_like, state, like)
        return _adaptation.Adaptation(params, to_params, inner_tx, state)

    loop = _adaptation.inner_loop(
        model,
        loss,
        prepare,
        inner_steps=inner_steps,
        first_order=True,
        metrics=metrics,
        batch_size=batch_size,
    )

    def meta_grad(key, meta_params, task, **extra):
        del extra
        inner_key, query_key = jax.random.split(key)
        after, result = loop.run(inner_key, meta_params, task.support)
        value, values = loop.example_loss(after, query_key, task.query)
        if keep_inner_state:
            after = ReptileParams(after, _as_floats(result.state))
        grads = jax.tree.map(lambda m, a: (m - a).astype(m.dtype), meta_params, after)
        return grads, base.MetaGradInfo(value, values, base.AdaptInfo(result.losses))

    return _adaptation.as_learner(loop, init, meta_grad, description=description)


def reptile_outer_tx(
    outer_tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The outer rule for `reptile(keep_inner_state=True)`.

    Args:
      outer_tx: updates the initialisation, `optax.sgd(epsilon)` in the paper. The inner
        state becomes the mean over the tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = ReptileParams(params=jnp.ones(()), inner_state=jnp.array(4.0))
      >>> tx = reptile_outer_tx(optax.sgd(0.5))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(updates.params, updates.inner_state)
      -0.5 -4.0
    """
    # With sgd(1.0) the "gradient" old - new replaces the state by its mean.
    return optax.partition(
        {"params": outer_tx, "state": optax.sgd(1.0)}, ReptileParams("params", "state")
    )


def _as_floats(state):
    """The state with counts as floats."""

    def to_float(path, x):
        if not jnp.issubdtype(x.dtype, jnp.number):
            raise ValueError(
                "`keep_inner_state` averages the inner rule's state over tasks, but "
                f"its leaf {jax.tree_util.keystr(path)} of dtype {x.dtype} has no "
                "mean. Choose another `inner_tx`, or keep_inner_state=False."
            )
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return x.astype(jnp.result_type(float))

    return jax.tree_util.tree_map_with_path(to_float, state)


def _like(x, like):
    is_count = not jnp.issubdtype(like.dtype, jnp.inexact)
    return (jnp.round(x) if is_count else x).astype(like.dtype)
