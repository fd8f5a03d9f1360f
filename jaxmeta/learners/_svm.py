"""Support vector machines on learned embeddings (MetaOptNet).

References:
  Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex
  Optimization", CVPR 2019, equations 4 to 9. https://arxiv.org/abs/1904.03758
  Crammer, Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
  Machines", JMLR 2001. https://www.jmlr.org/papers/v2/crammer01a.html
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _describe, base, losses
from jaxmeta.learners import _metric


class SvmParams(NamedTuple):
    """Learned parameters of `svm` besides the embedding."""

    log_scale: jax.Array  # []


class SvmInfo(NamedTuple):
    """How well the support's quadratic program was solved."""

    residual: jax.Array  # [] violation of the optimality conditions
    converged: jax.Array  # [] bool


def svm(
    model: base.ModelLike,
    *,
    C: float = 0.1,
    scale: float = 1.0,
    solver_steps: int = 25,
    loss: base.LossFn = losses.cross_entropy,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding on which a support vector machine separates the classes.

    The machine is Crammer and Singer's, on the support embeddings :math:`x_n` of class
    :math:`y_n`:

    .. math::
      \min_{w, \xi} \tfrac{1}{2} \sum_c \|w_c\|^2 + C \sum_n \xi_n
      \quad \text{with} \quad
      w_{y_n} \cdot x_n - w_c \cdot x_n \ge 1 - \xi_n \ (c \ne y_n), \; \xi_n \ge 0,

    and a query's logits are :math:`z_c(x) = \alpha \, w_c \cdot f(x)`. The dual is
    solved exactly and differentiated through.

    Args:
      model: the embedding, anything with `init(key, inputs)` and
        `apply(params, inputs)`; its output is flattened to [N, D].
      C: cost of violating a margin.
      scale: initial alpha; meta-learned as a logarithm, so it stays positive.
      solver_steps: steps of the interior point method for the dual. Static.
      loss: `(logits [Q, W], targets [Q, W]) -> scalar`, a mean over Q.
      metrics: name -> `(logits, targets) -> scalar`. None: accuracy for
        `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` with `SvmInfo` as the info of `adapt`. Its meta-parameters are
      `MetricParams(params, head_params)`, the latter `SvmParams`. Ways and shots may
      differ from task to task; a class without support examples is never predicted and
      imposes no margins, and rows of zeros in targets are padding.

    Raises:
      ValueError: if `C` or `scale` is not positive or `solver_steps` not a positive
        int; while tracing, if targets are not one-hot, support and query differ in
        classes, a set is ragged or empty, or parameters are not floats.

    Differs from the paper: the quadratic program is solved by our own method, not by
    OptNet, and the scale is learned as a logarithm.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import svm
      >>> identity = jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x)
      >>> learner = svm(identity, C=10.0)
      >>> support = jm.Examples(inputs=jnp.array([[1.0], [-1.0]]), targets=jnp.eye(2))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> task_params, info = learner.adapt(key, learner.init(key, task), support)
      >>> logits = learner.predict(task_params, support.inputs)
      >>> margins = logits[:, 0] - logits[:, 1]
      >>> print(margins.round(1), info.converged)
      [ 1. -1.] True
    """
    description = _describe.describe(svm, locals())
    _checks.check_positive("C", C)
    _checks.check_positive("scale", scale)
    _checks.check_int("solver_steps", solver_steps)
    if metrics is None:
        metrics = losses.default_metrics(loss)

    def init(key, support):
        del key, support
        return SvmParams(jnp.asarray(jnp.log(scale), jnp.result_type(float)))

    def fit(head_params, support, **options):
        del head_params, options
        x, y = support
        with jax.default_matmul_precision("highest"):
            alpha, info = solve_dual(C * x @ x.T, y, solver_steps)
            return C * x.T @ alpha, info  # [D, W]

    def logits(head_params, weights, embeddings, **options):
        del options
        outputs = jnp.matmul(embeddings, weights, precision="highest")
        return jnp.exp(head_params.log_scale) * outputs

    return _metric.metric_learner(
        model,
        _metric.Head(fit, logits, init),
        loss=loss,
        metrics=metrics,
        description=description,
    )


def solve_dual(
    kernel: jax.Array, targets: jax.Array, num_steps: int
) -> tuple[jax.Array, SvmInfo]:
    r"""Solves the dual of Crammer and Singer's support vector machine.

    In units of C, so that the weights are :math:`C X^\top A`:

    .. math::
      \min_A \tfrac{1}{2} \operatorname{tr}(A^\top K A) - \operatorname{tr}(Y^\top A)
      \quad \text{with} \quad A \le Y, \; A 1 = 0, \qquad K = C X X^\top.

    :math:`S = Y - A` are shares: every example spreads 1 over the classes. As in the
    paper (OptNet), a primal-dual interior point method finds which shares are zero.
    Only its last Newton step is differentiated, with the weights of the bounds held
    fixed: this is implicit differentiation of the optimality conditions. A general
    solver (qpax 0.1.4) does not exploit that only the sums couple the classes, and
    differentiates a more relaxed program.

    Args:
      kernel: K [N, N].
      targets: Y [N, W], rows that sum to one. All-zero rows are padding, all-zero
        columns are absent classes: A is zero there.
      num_steps: Newton steps of the interior point method. Static.

    Returns:
      A [N, W], and how well it solves the program.

    Example:
      >>> import jax.numpy as jnp
      >>> alpha, info = solve_dual(4 * jnp.eye(2), jnp.eye(2), 25)
      >>> print(alpha.round(3))  # 8 a^2 - 2 a has its minimum at a = 1 / 8
      [[ 0.125 -0.125]
       [-0.125  0.125]]
    """
    bounds = targets.T  # [W, N], like everything below
    is_class, is_example = jnp.any(bounds != 0, 1), jnp.any(bounds != 0, 0)
    is_free = is_class[:, None] & is_example[None]  # A is zero elsewhere
    kernel, margin = _well_scaled(kernel, is_example)
    # The solution as a constant, then one differentiable Newton step from it: the step
    # is almost zero, its derivative that of the solution.
    fixed = jax.lax.stop_gradient((kernel, bounds, margin))
    shares, slopes = _interior_point(*fixed, is_free, num_steps)
    alpha = jnp.where(is_free, bounds - shares, 0)
    hessians = kernel[None] + jax.vmap(jnp.diag)(slopes / shares)
    step, multipliers = _solve_blocks(
        hessians,
        margin * bounds - alpha @ kernel - slopes,
        is_free,
        refinements=1,
    )
    alpha = alpha + step
    # Complementarity: at the optimum both are >= 0 and one of them is 0.
    slopes = margin * bounds - alpha @ kernel + multipliers[None]
    violations = jnp.abs(jnp.minimum(bounds - alpha, slopes / margin))
    residual = jax.lax.stop_gradient(jnp.max(jnp.where(is_free, violations, 0)))
    return alpha.T, SvmInfo(residual, residual < 1e-2)  # 1 % of the margin


def _well_scaled(kernel, is_example):
    """Returns a regular kernel of order 1, and the margin in its unit.

    Off-diagonal zeros remove padded examples from every sum over examples.
    """
    eps = float(jnp.finfo(kernel.dtype).eps)
    kernel = jnp.where(is_example[:, None] & is_example[None], kernel, 0)
    num_examples = jnp.maximum(jnp.sum(is_example), 1).astype(kernel.dtype)
    size = jax.lax.stop_gradient(jnp.trace(kernel) / num_examples)
    # K has at most the rank of the embeddings; damping makes A unique. A smaller value
    # would vanish in rounding, because `_solve_blocks` inverts K.
    damping = max(1e-8, 300 * eps) * size + 10 * eps
    regular = kernel + damping * jnp.eye(len(kernel), dtype=kernel.dtype)
    return regular / (1 + size), 1 / (1 + size)


def _interior_point(kernel, bounds, margin, is_free, num_steps):
    """Mehrotra's predictor-corrector method.

    Returns:
      S, near its optimum, and the slopes (multipliers of S >= 0), [W, N] each:
      margin Y - A K + nu = slopes, S slopes = 0 and A 1 = 0. Both stay 1 where A is not
      free.
    """
    # Floor of the target S * slopes, so that divisions by either stay finite.
    least = jnp.square(float(jnp.finfo(kernel.dtype).eps) * margin)
    mean = lambda x: jnp.mean(x, where=is_free)

    def newton_step(carry, _):
        shares, slopes = carry  # both positive
        # Eliminating the slopes leaves K + diag(slopes / shares) per class, [W, N, N].
        barriers = slopes / shares
        hessians = kernel[None] + jax.vmap(jnp.diag)(barriers)
        slope = margin * bounds - jnp.where(is_free, bounds - shares, 0) @ kernel

        def direction(target):
            """Newton direction towards S * slopes = target."""
            d_shares, _ = _solve_blocks(hessians, target / shares - slope, is_free)
            d_slopes = target / shares - slopes - barriers * d_shares
            return d_shares, jnp.where(is_free, d_slopes, 0)

        def step_length(d_shares, d_slopes):
            return jnp.minimum(_reach(shares, d_shares), _reach(slopes, d_slopes))

        # Predictor: aim at target 0, and see how far the gap would shrink.
        d_shares, d_slopes = direction(0.0)
        length = step_length(d_shares, d_slopes)
        gap = mean(shares * slopes)
        next_gap = mean((shares + length * d_shares) * (slopes + length * d_slopes))
        # Corrector: Mehrotra's cubed ratio centres, and the product of both directions
        # cancels the predictor's second-order error.
        target = jnp.maximum(gap * (next_gap / gap) ** 3, least)
        d_shares, d_slopes = direction(target - d_shares * d_slopes)
        length = step_length(d_shares, d_slopes)
        return (shares + length * d_shares, slopes + length * d_slopes), None

    num_classes = jnp.maximum(jnp.sum(jnp.any(is_free, 1)), 1).astype(bounds.dtype)
    # Feasible: the shares of every example sum to 1 over its classes.
    ones = jnp.ones_like(bounds)
    start = (jnp.where(is_free, 1 / num_classes, ones), ones)
    return jax.lax.scan(newton_step, start, length=num_steps)[0]


def _reach(x, step):
    """The largest step length, up to 1, that keeps x safely positive."""
    shrinking = step < 0
    # The inner `where` avoids dividing by 0; 0.99 stops just short of the boundary.
    lengths = jnp.where(shrinking, -x / jnp.where(shrinking, step, -1), jnp.inf)
    return jnp.minimum(1, 0.99 * jnp.min(lengths))


def _solve_blocks(hessians, constants, is_free, refinements=0):
    """Solves H_c x_c - nu = constants_c and sum_c x_c = 0, where x is free.

    Only the sums couple the classes, so the W N x W N system splits into W systems of
    N x N.

    Args:
      hessians: H [W, N, N].
      constants: [W, N].
      is_free: [W, N]; x is zero elsewhere.
      refinements: steps of iterative refinement; H is nearly singular if there are more
        examples than features.

    Returns:
      x [W, N] and nu [N].
    """
    is_class, is_example = jnp.any(is_free, 1), jnp.any(is_free, 0)
    constants = jnp.where(is_free, constants, 0)
    inverses = jnp.linalg.inv(hessians)
    inverses = jnp.where(is_class[:, None, None], inverses, 0)
    # The Schur complement of nu, regular by a 1 on the diagonal of padded examples. It
    # is solved directly: its inverse would lose too much precision.
    padding = jnp.diag(1 - is_example.astype(constants.dtype))
    sum_of_inverses = jnp.sum(inverses, 0) + padding
    apply = lambda matrices, x: jnp.einsum("cnm,cm->cn", matrices, x)
    x, multipliers = jnp.zeros_like(constants), jnp.zeros_like(constants[0])
    for _ in range(1 + refinements):
        left = constants - apply(hessians, x) + multipliers[None]
        # x_c + H_c^-1 (left_c + change) must sum to 0 over classes: solve for `change`.
        excess = jnp.sum(x + apply(inverses, left), 0)
        change = -jnp.linalg.solve(sum_of_inverses, excess)
        x = x + apply(inverses, left + change[None])
        multipliers = multipliers + change
    return x, multipliers
