"""Implicit MAML: the meta-gradient at the inner loop's point of convergence.

References:
  Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS
  2019, Algorithm 2. https://arxiv.org/abs/1909.04630
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_derivatives import linear_call

from jaxmeta import _checks, _describe, _dtypes, _unroll, base
from jaxmeta.learners import _adaptation


class ImplicitInfo(NamedTuple):
    """Diagnostics of one implicit meta-gradient."""

    losses: jax.Array  # [K] support loss before each inner step
    gradient_norm: jax.Array  # [] of the final inner objective; 0 if converged
    residual: jax.Array  # [] of the linear system, relative to its right-hand side
    converged: jax.Array  # [] bool, whether the residual is below `cg_tolerance`


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
    hvp: _unroll.Hvp = "auto",
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an initialisation that adaptation is also pulled towards.

    The inner loop minimises the support loss and a proximal term,

    .. math::
      \phi(\theta) = \arg\min_\phi L_s(\phi)
        + \frac{\lambda}{2} \lVert \phi - \theta \rVert^2,
      \qquad
      g = \left(I + \tfrac{1}{\lambda} \nabla^2 L_s(\phi)\right)^{-1} \nabla L_q(\phi),

    and the meta-gradient depends only on the endpoint, not on the path: its memory does
    not grow with the inner steps. Conjugate gradients with Hessian-vector products
    solve the linear system.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs [N, ...], targets [N, ...]) -> scalar`, a mean over N.
      inner_tx: the inner step. It may be stateful and adaptive; only its endpoint
        matters.
      inner_steps: K. Static.
      regularization: lambda. Small values allow more adaptation and need more inner
        and conjugate-gradient steps.
      damping: added to lambda where it divides the Hessian, not in the proximal term.
        Above 0 the meta-gradient is biased towards the first-order one, but the system
        is well conditioned even if the support loss is not convex.
      cg_steps: maximum number of conjugate-gradient steps, one Hessian-vector product
        each. They can diverge if the Hessian has an eigenvalue below
        -(lambda + damping); then the first-order meta-gradient is used. Static.
      cg_tolerance: relative residual at which they stop.
      hvp: as in `maml`. Conjugate gradients require a symmetric Hessian:
        reverse-over-reverse products use the transposed Jacobian, and GMRES solves the
        system instead, with as many steps. Static.
      metrics: name -> `(outputs, targets) -> scalar`, computed on the query outputs.
        None: accuracy for `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner` whose meta-parameters are the model's parameters. The info of
      `meta_grad` has an `ImplicitInfo` as `adapt`: whether the linear system was
      solved, and how far the inner loop is from its minimum.

    Raises:
      ValueError: if a number is out of range or `inner_tx` is not a transformation;
        while tracing, if the support is ragged or empty, parameters are not floats, or
        the loss is not a scalar.

    Differs from the paper:
      `inner_tx` covers both its inner loop of 16 gradient steps and its Hessian-free
      one. The damping is the released code's, which sets it to 10 and doubles the
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
    description = _describe.describe(imaml, locals())
    _checks.check_plain_transformation("inner_tx", inner_tx)
    _checks.check_positive("regularization", regularization)
    _checks.check_not_negative("damping", damping)
    _checks.check_positive("cg_tolerance", cg_tolerance)
    _checks.check_int("cg_steps", cg_steps)
    _checks.check_choice("hvp", hvp, _unroll.HVP_MODES)

    def init(key, task):
        return loop.net.init(key, task.support.inputs)

    def prepare(key, meta_params, support):
        del key, support
        to_params = lambda params, step: params
        pulled = optax.chain(proximal(regularization), inner_tx)
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
        phi, result = loop.run(inner_key, meta_params, task.support)
        query_grad = jax.value_and_grad(loop.example_loss, has_aux=True)
        (value, values), target = query_grad(phi, query_key, task.query)
        support_loss = lambda phi: loop.example_loss(phi, support_key, task.support)[0]
        product, is_symmetric = transposed_product(support_loss, phi, hvp)

        def matvec(v):
            """(I + J^T / (lambda + damping)) v, where J is the Hessian."""
            return optax.tree.add_scale(v, 1 / (regularization + damping), product(v))

        solution, residual = solve(
            matvec, _dtypes.widen(target), cg_steps, cg_tolerance, is_symmetric
        )
        grads = jax.tree.map(lambda s, p: s.astype(p.dtype), solution, meta_params)
        # Gradient of the inner objective: grad L_s(phi) + lambda (phi - theta).
        slope = optax.tree.add_scale(
            _dtypes.widen(jax.grad(support_loss)(phi)),
            regularization,
            _dtypes.widen(optax.tree.sub(phi, meta_params)),
        )
        # CG stops on its recursive residual, which rounding makes differ from this one.
        converged = residual <= 1.01 * cg_tolerance
        info = ImplicitInfo(result.losses, optax.tree.norm(slope), residual, converged)
        return grads, base.MetaGradInfo(value, values, info)

    return _adaptation.as_learner(loop, init, meta_grad, description=description)


def transposed_product(
    loss: Callable[[base.Params], jax.Array], params: base.Params, hvp: _unroll.Hvp
) -> tuple[Callable[[Any], Any], bool]:
    """Returns v -> J^T v in at least 32 bits, J the gradient's Jacobian.

    And whether J is taken as symmetric (the Hessian), which holds unless a derivative
    was redefined.
    """
    gradient = jax.grad(loss)
    is_symmetric = hvp == "forward-over-reverse" or (
        hvp == "auto" and _unroll.is_gradient_field(loss, params)
    )
    if is_symmetric:
        if hvp == "forward-over-reverse":
            _unroll.check_forward_mode(loss, params)
        product = lambda v: jax.jvp(gradient, (params,), (v,))[1]
    else:
        _, pull = jax.vjp(gradient, params)
        product = lambda v: pull(v)[0]

    def in_own_dtype(v):
        v = jax.tree.map(lambda v, p: v.astype(p.dtype), v, params)
        return _dtypes.widen(product(v))

    return in_own_dtype, is_symmetric


def solve(
    matvec: Callable[[Any], Any],
    target: Any,
    steps: int,
    tolerance: float,
    is_symmetric: bool,
) -> tuple[Any, jax.Array]:
    """Solves A x = b; returns x and its relative residual.

    Falls back to b, the first-order meta-gradient, if x is worse than zero.
    """
    linalg, norm = jax.scipy.sparse.linalg, optax.tree.norm
    if is_symmetric:
        x, _ = linalg.cg(matvec, target, maxiter=steps, tol=tolerance)
    else:
        # `gmres` also traces A^T, for derivatives of x. They are never taken, and not
        # every model has A^T (J^T of `odeint` does not transpose), so A^T gives NaN.
        undefined = lambda _, x: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), x)
        linear = lambda v: linear_call(lambda _, v: matvec(v), undefined, (), v)
        x, _ = linalg.gmres(linear, target, maxiter=1, restart=steps, tol=tolerance)
    scale = norm(target)
    left = norm(optax.tree.sub(matvec(x), target))
    residual = left / jnp.where(scale > 0, scale, 1)
    is_better = residual <= 1  # Than x = 0, whose relative residual is 1.
    return jax.tree.map(lambda x, b: jnp.where(is_better, x, b), x, target), residual


def proximal(regularization: float) -> optax.GradientTransformation:
    """Adds the gradient of `regularization / 2 * |params - centre|^2`.

    Its state is the centre, the initial parameters.
    """

    def update(updates, state, params=None):
        pull = lambda g, p, c: (g + regularization * (p - c)).astype(g.dtype)
        return jax.tree.map(pull, updates, params, state), state

    return optax.GradientTransformation(lambda params: params, update)
