"""Ridge regression on learned embeddings (R2-D2).

References:
  Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with Differentiable Closed-form
  Solvers", ICLR 2019, equations 4 to 7. https://arxiv.org/abs/1805.08136
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _describe, base, losses
from jaxmeta.learners import _metric


class RidgeParams(NamedTuple):
    """Learned parameters of `ridge` besides the embedding."""

    log_regularization: jax.Array  # []
    log_scale: jax.Array  # []
    bias: jax.Array  # []


def ridge(
    model: base.ModelLike,
    *,
    regularization: float = 1.0,
    scale: float = 10.0,
    intercept: bool = True,
    loss: base.LossFn = losses.cross_entropy,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding on which ridge regression separates the classes.

    With the N support embeddings X and their one-hot targets Y,

    .. math::
      \Lambda = \arg\min_\Lambda \tfrac{1}{N} \|X \Lambda - Y\|^2
        + \lambda \|\Lambda\|^2
      = X^\top (X X^\top + N \lambda I)^{-1} Y, \qquad
      z(x) = \alpha f(x) \Lambda + \beta,

    solved exactly and differentiated through. The linear system is the smaller of N x N
    (as written, by Woodbury's identity) and D x D.

    Args:
      model: the embedding, anything with `init(key, inputs)` and
        `apply(params, inputs)`; its output is flattened to [N, D].
      regularization: initial lambda; meta-learned as a logarithm, so it stays positive.
      scale: initial alpha, meta-learned likewise; beta starts at 0.
      intercept: append a constant feature 1 to every embedding. Static.
      loss: `(logits [Q, W], targets [Q, W]) -> scalar`, a mean over Q.
      metrics: name -> `(logits, targets) -> scalar`. None: accuracy for
        `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner`. Its meta-parameters are `MetricParams(params, head_params)`, the
      latter `RidgeParams`. Ways and shots may differ from task to task; a class without
      support examples is never predicted, and rows of zeros in targets are padding.

    Raises:
      ValueError: if `regularization` or `scale` is not positive; while tracing, if
        targets are not one-hot, support and query differ in classes, a set is ragged or
        empty, or parameters are not floats.

    Differs from the paper: lambda is per example, as in the released code, so that its
    meaning does not depend on the shots; it and alpha are learned as logarithms.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import ridge
      >>> learner = ridge(
      ...     jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x),
      ...     regularization=0.5,
      ...     scale=1.0,
      ...     intercept=False,
      ... )
      >>> support = jm.Examples(inputs=jnp.eye(2), targets=jnp.eye(2))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> task_params, _ = learner.adapt(key, learner.init(key, task), support)
      >>> print(task_params.fitted.round(3))  # of X = I: 1 / (1 + 2 * 0.5)
      [[0.5 0. ]
       [0.  0.5]]
    """
    description = _describe.describe(ridge, locals())
    _checks.check_positive("regularization", regularization)
    _checks.check_positive("scale", scale)
    if metrics is None:
        metrics = losses.default_metrics(loss)

    def features(embeddings):
        if not intercept:
            return embeddings
        return jnp.pad(embeddings, ((0, 0), (0, 1)), constant_values=1)

    def init(key, support):
        del key, support
        start = (jnp.log(regularization), jnp.log(scale), 0.0)
        return RidgeParams(*(jnp.asarray(x, jnp.result_type(float)) for x in start))

    def fit(head_params, support, **options):
        del options
        is_example = losses.is_example(support.targets)
        # Zero rows for padding, intercept included, leave X^T X and X^T Y unchanged.
        x = jnp.where(is_example[:, None], features(support.inputs), 0)
        num_examples = jnp.maximum(jnp.sum(is_example), 1).astype(x.dtype)
        regularizer = jnp.exp(head_params.log_regularization.astype(x.dtype))
        return solve_ridge(x, support.targets, num_examples * regularizer), None

    def logits(head_params, weights, embeddings, **options):
        del options
        outputs = jnp.matmul(features(embeddings), weights, precision="highest")
        return jnp.exp(head_params.log_scale) * outputs + head_params.bias

    return _metric.metric_learner(
        model,
        _metric.Head(fit, logits, init),
        loss=loss,
        metrics=metrics,
        description=description,
    )


def solve_ridge(x: jax.Array, y: jax.Array, regularizer: jax.Array) -> jax.Array:
    """Returns the W [D, W] that minimises |x W - y|^2 + regularizer |W|^2.

    Args:
      x: [N, D].
      y: [N, W].
      regularizer: [], positive; raised to the rounding error of |x|^2 if smaller.

    Example:
      >>> import jax.numpy as jnp
      >>> solve_ridge(jnp.eye(2), jnp.eye(2), jnp.array(3.0)).tolist()
      [[0.25, 0.0], [0.0, 0.25]]
    """
    num_examples, size = x.shape

    def solve(gram, right):
        # Duplicate examples make the Gram matrix singular up to the regularizer, which
        # must therefore exceed the rounding error.
        # About n eps max_i G_ii for the Gram matrix G [n, n]; 10 is margin.
        rounding = 10 * len(gram) * jnp.finfo(x.dtype).eps * jnp.max(jnp.diag(gram))
        least = jnp.maximum(regularizer, jax.lax.stop_gradient(rounding))
        system = gram + least * jnp.eye(len(gram), dtype=x.dtype)
        return jax.scipy.linalg.solve(system, right, assume_a="pos")

    with jax.default_matmul_precision("highest"):
        if num_examples <= size:
            return x.T @ solve(x @ x.T, y)
        return solve(x.T @ x, x.T @ y)
