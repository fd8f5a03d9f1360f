"""MAML++: extensions that stabilise the training of MAML.

References:
  Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, Section 4.
  https://arxiv.org/abs/1810.09502
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _describe, _unroll, base, optimizers
from jaxmeta.learners import _adaptation, _partial


class MamlPlusPlusParams(NamedTuple):
    """Meta-parameters of `maml_plus_plus`."""

    params: base.Params  # the initialisation; per-step leaves have a leading [K + 1]
    rates: Any  # one leaf [K] per adapted parameter


def is_norm(path: str) -> bool:
    """Whether a parameter belongs to a normalisation layer, judging by its name.

    Only the second to last name in the path: a block "ConvNorm" has other layers too.
    """
    layer = path.lower().split("/")[-2:-1]
    return any("norm" in name or name.startswith("bn") for name in layer)


def maml_plus_plus(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    learning_rate: float = 0.1,
    inner_steps: int = 5,
    multi_step_until: int = 0,
    first_order_until: int = 0,
    is_per_step: Callable[[str], bool] = is_norm,
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""MAML with a learned rate per layer and step, and losses after every step.

    .. math::
      \theta^l_{k+1} = \theta^l_k - \alpha^l_k \nabla_{\theta^l} L_s(\theta_k), \qquad
      g = \nabla_{\theta_0, \alpha} \sum_{k=1}^K v_k L_q(\theta_k)

    - *Rates* :math:`\alpha^l_k`, one per leaf and step, are learned (LSLR).
    - *Multi-step loss* (MSL): the weights :math:`v_k` anneal from uniform to the last
      step only.
    - *Derivative-order annealing* (DA): first order at the start.
    - *Batch normalisation* (BNRS, BNWB): scales and shifts are learned per step and not
      adapted; every step uses the statistics of its own batch, so that steps share no
      running mean.

    The paper's cosine annealing of the outer rate (CA) belongs in the outer chain.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      learning_rate: initial value of all rates.
      inner_steps: K. Static.
      multi_step_until: meta-steps over which the weights anneal; 0 uses only the last
        loss. Static.
      first_order_until: meta-steps with inner gradients as constants. Static.
      is_per_step: `(path) -> bool`, which parameters are learned per step instead of
        being adapted, by paths such as "params/Block_0/BatchNorm_0/scale". Static.
      hvp: as in `maml`. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` with meta-parameters `MamlPlusPlusParams(params, rates)`. Both
      annealings follow `meta_grad`'s `step`, which `jaxmeta.training.make_train_step`
      passes; without it they count as finished. Extra inner steps in `evaluate` repeat
      the last rates and scales.

    Raises:
      ValueError: if a number is out of range, or all parameters are per step; while
        tracing, if the support is ragged or empty, parameters are not floats, or the
        loss is not a scalar.

    Differs from the paper:
      After k steps both sets use the k-th scales and shifts; the released code uses
      those of step k - 1 for the queries, and has K of them.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> learner = jm.maml_plus_plus(
      ...     jm.Model(lambda key, x: jnp.zeros(x.shape[-1]), lambda w, x: x @ w),
      ...     lambda out, y: jnp.mean((out - y) ** 2),
      ...     learning_rate=0.5, inner_steps=2,
      ... )
      >>> x = jnp.eye(2)
      >>> support = jm.Examples(inputs=x, targets=jnp.array([1.0, -1.0]))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> meta_params = learner.init(key, task)
      >>> print(meta_params.rates)
      [0.5 0.5]
      >>> task_params, _ = learner.adapt(key, meta_params, support)
      >>> print(task_params.params)
      [ 0.75 -0.75]
    """
    description = _describe.describe(maml_plus_plus, locals())
    _checks.check_int("multi_step_until", multi_step_until, minimum=0)
    _checks.check_int("first_order_until", first_order_until, minimum=0)
    _checks.check_int("inner_steps", inner_steps)
    is_adapted = lambda path: not is_per_step(path)
    rule = lambda num_steps: optimizers.learned_sgd(
        learning_rate, shared_by="leaf", num_steps=num_steps
    )

    def init(key, task):
        params = exact.net.init(key, task.support.inputs)
        adapted, per_step = _partial.split(params, is_adapted)
        repeat = lambda x: jnp.repeat(x[None], inner_steps + 1, axis=0)
        params = _partial.merge(adapted, jax.tree.map(repeat, per_step))
        return MamlPlusPlusParams(params, rule(inner_steps).init(key, adapted))

    def prepare(key, meta_params, support):
        del key, support
        _checks.check_type("meta_params", meta_params, MamlPlusPlusParams)
        adapted, per_step = _partial.split(meta_params.params, is_adapted)
        # The number of learned steps; extra steps repeat the last.
        num_steps = jax.tree.leaves(meta_params.rates)[0].shape[0]

        def to_params(variables, step):
            own = lambda x: x[jnp.minimum(step, num_steps)]  # [K + 1, ...] -> [...]
            return _partial.merge(variables, jax.tree.map(own, per_step))

        return _adaptation.Adaptation(
            adapted, to_params, rule(num_steps).transform(meta_params.rates)
        )

    options = {"inner_steps": inner_steps, "hvp": hvp, "metrics": metrics}
    exact = _adaptation.inner_loop(model, loss, prepare, **options)
    first_order = exact._replace(order="constant")

    def meta_grad(key, meta_params, task, step=None, **extra):
        del extra
        weights = None
        if multi_step_until:
            weights = _loss_weights(step, inner_steps, multi_step_until)
        gradient = lambda loop: jax.grad(
            lambda meta_params: _multi_step_loss(loop, meta_params, key, task, weights),
            has_aux=True,
        )
        if step is None or not first_order_until:
            return gradient(exact)(meta_params)
        # `cond` runs only one of the two, unless `step` is batched by `vmap`.
        branches = gradient(first_order), gradient(exact)
        return jax.lax.cond(step < first_order_until, *branches, meta_params)

    return _adaptation.as_learner(exact, init, meta_grad, description=description)


def _multi_step_loss(loop, meta_params, key, task, weights):
    """Returns sum_k v_k L_q(theta_k), and a `MetaGradInfo` of the last step.

    Args:
      loop: the inner loop.
      meta_params: the parameters to differentiate.
      key: for dropout.
      task: adapts to its support; its query gives the loss.
      weights: v [K]; None is the last step only.
    """
    inner_key, query_key = jax.random.split(key)

    @jax.checkpoint
    def query_loss(params):
        return loop.example_loss(params, query_key, task.query)

    def probe(params, k):
        """The query loss after k steps, computed only if its weight is not zero."""
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(query_loss, params))
        # v_k is weights[k - 1], k = 1 ... K; k = 0 has no weight.
        is_used = weights[jnp.maximum(k - 1, 0)] * (k > 0) > 0
        return jax.lax.cond(is_used, query_loss, lambda _: nothing, params)

    if weights is None:
        params, result = loop.run(inner_key, meta_params, task.support)
        value, values = query_loss(params)
        info = base.MetaGradInfo(value, values, base.AdaptInfo(result.losses))
        return value, info
    _, result = loop.run(inner_key, meta_params, task.support, probe=probe)
    values, metrics = result.probed  # [K + 1]
    total = jnp.vdot(weights.astype(values.dtype), values[1:])
    value, metrics = jax.tree.map(lambda x: x[-1], (values, metrics))
    info = base.MetaGradInfo(value, metrics, base.AdaptInfo(result.losses))
    return total, info


def _loss_weights(step, inner_steps, multi_step_until):
    """The weights v [K] of the losses after each step, as in the released code."""
    last = jnp.zeros(inner_steps).at[-1].set(1.0)
    if step is None:
        return last
    step = jnp.asarray(step, jnp.result_type(float))
    progress = jnp.clip(step / multi_step_until, 0.0, 1.0)
    # v_1 ... v_{K-1} fall from 1 / K to 0.03 / K; v_K takes the rest, so they sum to 1.
    others = jnp.maximum((1 - progress) / inner_steps, 0.03 / inner_steps)
    annealed = jnp.full(inner_steps, others).at[-1].set(1 - (inner_steps - 1) * others)
    return jnp.where(step < multi_step_until, annealed, last)
