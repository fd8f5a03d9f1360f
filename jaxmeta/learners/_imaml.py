"""Implicit MAML: the meta-gradient of where the inner loop converges.

References:
  Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS
  2019, Algorithm 2. https://arxiv.org/abs/1909.04630
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _dtypes, _model, base
from jaxmeta.learners import _adaptation


class ImplicitInfo(NamedTuple):
    """Diagnostics of one implicit meta-gradient."""

    losses: jax.Array  # [K] support loss before each inner step
    gradient_norm: jax.Array  # [] of the inner objective at the end; 0 is converged
    residual: jax.Array  # [] of the linear system, relative to its right-hand side
    converged: jax.Array  # [] bool, whether the residual is under `cg_tolerance`


def imaml(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    inner_tx: optax.GradientTransformation,
    inner_steps: int,
    regularization: float = 2.0,
    damping: float = 0.0,
    cg_steps: int = 5,
    cg_tolerance: float = 1e-2,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an initialisation that adaptation is also pulled towards.

    The inner loop minimises the support loss and a proximal term,

    .. math::
      \phi(\theta) = \arg\min_\phi L_s(\phi)
        + \frac{\lambda}{2} \lVert \phi - \theta \rVert^2,
      \qquad
      g = \left(I + \tfrac{1}{\lambda} \nabla^2 L_s(\phi)\right)^{-1} \nabla L_q(\phi),

    and the meta-gradient depends on where it ends alone, not on the way: its memory
    does not grow with the inner steps. The linear system is solved by conjugate
    gradients on Hessian-vector products.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      inner_tx: the inner step. It may keep state and be adaptive; its end is what
        counts.
      inner_steps: K. Static.
      regularization: lambda. Small values allow more adaptation and need more of both
        kinds of steps.
      damping: added to lambda where it divides the Hessian, not where it pulls. Above 0
        the meta-gradient is biased towards the first-order one, and the system is well
        conditioned where the support loss is not convex.
      cg_steps: at most so many conjugate-gradient steps, a Hessian-vector product
        each. Where the Hessian has a slope down beyond lambda + damping they can lead
        astray; then the meta-gradient is the query's, as first order. Static.
      cg_tolerance: relative residual at which they stop.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` whose meta-parameters are the model's parameters. The info of
      `meta_grad` has an `ImplicitInfo` as `adapt`: whether the linear system was
      solved, and how far the inner loop is from its minimum.

    Raises:
      ValueError: if a number is out of range or `inner_tx` is no transformation; while
        tracing, if the support is ragged or empty, parameters are not floats, or the
        loss is not a scalar.

    Differs from the paper:
      Its inner loop of 16 gradient steps and its Hessian-free one are both `inner_tx`
      here. The damping is the released code's, which sets it to 10 and doubles the
      identity too.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmeta as jm
      >>> learner = jm.imaml(
      ...     jm.Model(lambda key, x: jnp.zeros(()), lambda w, x: w * x),
      ...     lambda out, y: jnp.mean(0.5 * (out - y) ** 2),  # its Hessian is 1
      ...     inner_tx=optax.sgd(0.5), inner_steps=30, regularization=1.0,
      ... )
      >>> support = jm.Examples(inputs=jnp.ones(2), targets=jnp.ones(2))
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> grads, info = learner.meta_grad(key, learner.init(key, task), task)
      >>> print(grads)  # phi = 1/2, half of the query's gradient there
      -0.25
    """
    _checks.check_plain_transformation("inner_tx", inner_tx)
    _checks.check_positive("regularization", regularization)
    _checks.check_not_negative("damping", damping)
    _checks.check_positive("cg_tolerance", cg_tolerance)
    _checks.check_int("cg_steps", cg_steps)
    net = _model.normalize(model)

    def init(key, task):
        return net.init(key, task.support.inputs)

    def prepare(key, meta_params, support):
        del key, support
        to_params = lambda params, step: params
        pulled = optax.chain(proximal(regularization, meta_params), inner_tx)
        return _adaptation.Adaptation(meta_params, to_params, pulled)

    loop = _adaptation.inner_loop(
        model,
        loss,
        prepare,
        inner_steps=inner_steps,
        first_order=True,
        metrics=metrics,
    )

    def meta_grad(key, meta_params, task, **extra):
        del extra
        inner_key, query_key, support_key = jax.random.split(key, 3)
        result = loop.run(inner_key, meta_params, task.support)
        support_grad = jax.grad(
            lambda params: loop.example_loss(params, support_key, task.support)[0]
        )
        query_grad = jax.value_and_grad(loop.example_loss, has_aux=True)
        (value, values), target = query_grad(result.params, query_key, task.query)
        target = _dtypes.widen(target)  # Conjugate gradients need the digits.

        def matvec(v):
            """(I + H / (lambda + damping)) v."""
            tangent = jax.tree.map(lambda v, p: v.astype(p.dtype), v, result.params)
            hv = jax.jvp(support_grad, (result.params,), (tangent,))[1]
            return optax.tree.add_scale(
                v, 1 / (regularization + damping), _dtypes.widen(hv)
            )

        solution, _ = jax.scipy.sparse.linalg.cg(
            matvec, target, maxiter=cg_steps, tol=cg_tolerance
        )
        info = convergence(matvec, solution, target, result, meta_params, support_grad)
        is_better = info.residual <= 1  # Than zero, of which it is 1.
        solution = jax.tree.map(
            lambda s, t: jnp.where(is_better, s, t), solution, target
        )
        grads = jax.tree.map(lambda s, p: s.astype(p.dtype), solution, meta_params)
        return grads, base.MetaGradInfo(value, values, info)

    def convergence(matvec, solution, target, result, meta_params, support_grad):
        norm = optax.tree.norm
        left = norm(optax.tree.sub(matvec(solution), target))
        scale = norm(target)
        residual = left / jnp.where(scale > 0, scale, 1)
        moved = _dtypes.widen(optax.tree.sub(result.params, meta_params))
        objective_grad = optax.tree.add_scale(
            _dtypes.widen(support_grad(result.params)), regularization, moved
        )
        # Conjugate gradients stop by a residual that they update, not by this one.
        converged = residual <= 1.01 * cg_tolerance
        return ImplicitInfo(result.losses, norm(objective_grad), residual, converged)

    return _adaptation.as_learner(loop, init, meta_grad)


def proximal(
    regularization: float, centre: base.Params
) -> optax.GradientTransformation:
    """Adds the gradient of `regularization / 2 * |params - centre|^2`."""

    def update(updates, state, params=None):
        pull = lambda g, p, c: (g + regularization * (p - c)).astype(g.dtype)
        return jax.tree.map(pull, updates, params, centre), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
