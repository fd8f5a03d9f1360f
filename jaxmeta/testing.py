"""Checks for your own learners, models with custom derivatives, and inner rules.

`check_learner` is the contract that every learner in this package satisfies, so that
estimators, training steps, meshes and evaluation work with it. `check_gradient_field`
checks that a model's gradient is the gradient of a scalar.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxmeta import _checks, _custom_rules, _model, base


def check_learner(
    learner: base.LearnerLike,
    sample_task: base.SampleTask,
    *,
    rtol: float = 1e-3,
    atol: float | None = None,
) -> None:
    """Raises unless a learner satisfies the contract.

    That is: its meta-gradients are shaped like its meta-parameters, finite and not all
    zero; it is traced once for tasks of one shape; `jit` changes nothing, and `vmap`
    equals a loop over tasks; half-precision parameters keep their dtype; unknown extra
    arguments are ignored.

    Args:
      learner: anything with the five functions of a `MetaLearner`.
      sample_task: `(key) -> task`.
      rtol: relative tolerance.
      atol: absolute tolerance; None is `rtol` times the array's largest magnitude (or
        a thousandth of the largest over all arrays, if greater), because reordered
        sums differ in proportion to their largest terms.

    Raises:
      AssertionError: says which part is broken.

    Example:
      >>> import optax, jaxmeta as jm
      >>> learner = jm.maml(jm.models.MLP([8, 1]), jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.01), inner_steps=1)
      >>> check_learner(learner, jm.tasks.sinusoid())
    """
    keys = jax.random.split(jax.random.key(0), 3)
    meta_params = learner.init(keys[0], sample_task(keys[0]))
    traces = []

    def counted(*args):
        traces.append(args)
        return learner.meta_grad(*args)

    meta_grad = jax.jit(counted)  # Compiled once for both checks.
    check_meta_grad(meta_grad, traces, sample_task, meta_params, keys)
    for function, jitted in (
        (learner.meta_grad, meta_grad),
        (learner.evaluate, jax.jit(learner.evaluate)),
    ):
        check_transforms(function, jitted, sample_task, meta_params, keys, rtol, atol)
    check_extra_arguments(learner, sample_task, meta_params, keys[0])
    check_half_precision(learner, sample_task, meta_params, keys[0])


def check_gradient_field(
    model: base.ModelLike,
    loss: base.LossFn,
    examples: base.Examples,
    *,
    key: jax.Array | None = None,
    rtol: float = 1e-3,
) -> None:
    """Raises if the gradient of a model's loss is not the gradient of a scalar.

    It is not if a derivative was redefined as another function's: gradient reversal,
    straight-through rounding, gradients clipped or synthesised inside the model. The
    Jacobian of such a gradient is not symmetric, u . J v differs from v . J u, and
    forward-over-reverse Hessian-vector products are wrong. Learners with hvp="auto"
    find redefined derivatives themselves; this check says whether they are really
    wrong, or whether hvp="forward-over-reverse" is right and cheaper.

    Args:
      model: anything with `init(key, inputs)` and `apply(params, inputs)`.
      loss: `(outputs, targets) -> scalar`.
      examples: some of a task's examples, to evaluate the gradient on.
      key: draws parameters, dropout and directions; None is a fixed key.
      rtol: tolerated difference of the two products, relative to the sizes of both.

    Raises:
      AssertionError: says by how much, and where derivatives were redefined.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> examples = jm.Examples(jnp.ones((2, 3)), jnp.zeros((2, 1)))
      >>> check_gradient_field(jm.models.MLP([8, 1]), jm.losses.squared_error, examples)
    """
    net = _model.normalize(model)
    key = jax.random.key(0) if key is None else key
    init_key, model_key, *keys = jax.random.split(key, 6)
    params = net.init(init_key, examples.inputs)
    # Away from the initialisation: a layer of zeros would hide the layers below it.
    noise = optax.tree.random_like(keys[0], params)
    params = optax.tree.add_scale(params, 0.1, noise)

    def value(params):
        outputs = net.apply(params, examples.inputs, key=model_key, train=True)
        return loss(outputs, examples.targets)

    @jax.jit
    def measure(u, v):
        # Both by reverse mode, which every differentiable model has: pull(v) = J^T v.
        _, pull = jax.vjp(jax.grad(value), params)
        (pull_u,), (pull_v,) = pull(u), pull(v)
        norm = optax.tree.norm
        along = lambda a, b: jnp.asarray(optax.tree.vdot(a, b))
        scale = norm(u) * norm(pull_v) + norm(v) * norm(pull_u)
        return jnp.abs(along(u, pull_v) - along(v, pull_u)), scale

    u, v = (optax.tree.random_like(k, params) for k in keys[1:3])
    asymmetry, scale = measure(u, v)
    rules = _custom_rules.redefined_derivatives(value, params)
    assert asymmetry <= rtol * scale, (
        "The gradient of the model's loss is not the gradient of a scalar: its "
        f"Jacobian is asymmetric by {float(asymmetry / scale):.2g} of its size. "
        f"Derivatives were redefined at {rules or 'an unknown place'}. "
        'Hessian-vector products must be reverse over reverse: `hvp="auto"` chooses '
        'that if the place was found; else set hvp="reverse-over-reverse".'
    )


def check_inner_tx(
    inner_tx: optax.GradientTransformation, params: base.Params | None = None
) -> None:
    """Raises unless a rule can be differentiated where inner gradients are zero.

    After three updates by gradients that are zero, in all leaves or in one of them, the
    derivative of the parameters with respect to the gradients must be finite and at
    most 1e4. Many optax rules that take roots or norms of gradients fail this.

    Args:
      inner_tx: an optax transformation.
      params: parameters to try it on; None is a matrix and a vector.

    Raises:
      AssertionError: says which gradients are zero, and the derivative.
      ValueError: if `inner_tx` is not an optax transformation.

    Example:
      >>> import optax, jaxmeta as jm
      >>> clip = jm.optimizers.clip_by_global_norm(1.0)  # optax's fails
      >>> check_inner_tx(optax.chain(clip, optax.sgd(0.1)))
    """
    _checks.check_plain_transformation("inner_tx", inner_tx)
    if params is None:
        params = {"matrix": jnp.ones((3, 2)), "vector": jnp.ones(2)}
    tx = optax.with_extra_args_support(inner_tx)

    def move(grads):
        moved, state = params, tx.init(params)
        for _ in range(3):
            updates, state = tx.update(grads, state, moved, value=jnp.ones(()))
            moved = optax.apply_updates(moved, updates)
        return moved

    names = [name for name, _ in _named(params)]
    # All gradients zero, then those of one leaf at a time.
    for zero in (names, *([name] for name in names)):
        one = [0.0 if name in zero else 1.0 for name in names]
        grads = jax.tree.map(
            jnp.full_like, params, jax.tree.unflatten(jax.tree.structure(params), one)
        )
        moved, backward = jax.vjp(move, grads)
        (slopes,) = backward(optax.tree.ones_like(moved))
        slope = float(jnp.max(jnp.abs(ravel_pytree(slopes)[0])))
        assert slope <= 1e4, (
            f"`inner_tx` has a derivative of {slope:.3g} where the gradients of "
            f"{zero} are zero. The documentation (Debugging) lists the optax rules "
            "that are safe in an inner loop; `jaxmeta.optimizers` has safe ones."
        )


def check_meta_grad(
    meta_grad: Callable[..., Any],
    traces: list[Any],
    sample_task: base.SampleTask,
    meta_params: base.Params,
    keys: jax.Array,
) -> None:
    """Raises unless meta-gradients suit an optimizer and are traced only once."""
    for key in keys:
        grads, info = meta_grad(key, meta_params, sample_task(key))
        _assert_alike(grads, meta_params, "`meta_grad` must be shaped as `meta_params`")
        assert jnp.shape(info.loss) == (), (
            f"`info.loss` must be a scalar, got shape {jnp.shape(info.loss)}."
        )
        wrong = [name for name, x in _named((grads, info)) if not _is_finite(x)]
        assert not wrong, f"`meta_grad` is not finite in {wrong}."
        assert optax.tree.norm(grads) > 0, "`meta_grad` is zero everywhere."
    assert len(traces) == 1, (
        f"`meta_grad` was traced {len(traces)} times for tasks of one shape: something "
        "in it depends on values or on outside state."
    )


def check_transforms(
    function: Callable[..., Any],
    jitted: Callable[..., Any],
    sample_task: base.SampleTask,
    meta_params: base.Params,
    keys: jax.Array,
    rtol: float,
    atol: float | None,
) -> None:
    """Raises unless `jit` changes nothing and `vmap` equals a loop over tasks."""
    name = getattr(function, "__name__", "function")
    tasks = jax.vmap(sample_task)(keys)
    pick = lambda tree, t: jax.tree.map(lambda x: x[t], tree)
    batched = jax.jit(jax.vmap(function, (0, None, 0)))(keys, meta_params, tasks)
    alone = [jitted(k, meta_params, pick(tasks, t)) for t, k in enumerate(keys)]
    for t, one in enumerate(alone):
        what = f"`vmap({name})` must equal a loop over tasks"
        _assert_close(pick(batched, t), one, rtol, atol, what)
    eager = function(keys[-1], meta_params, pick(tasks, -1))
    _assert_close(alone[-1], eager, rtol, atol, f"`jit({name})` must equal `{name}`")


def check_extra_arguments(
    learner: base.LearnerLike,
    sample_task: base.SampleTask,
    meta_params: base.Params,
    key: jax.Array,
) -> None:
    """Raises unless `meta_grad` ignores extra arguments that it does not know."""
    step = jnp.zeros((), jnp.int32)
    try:
        jax.eval_shape(
            lambda step: learner.meta_grad(
                key, meta_params, sample_task(key), step=step, other=step
            ),
            step,
        )
    except TypeError as error:
        raise AssertionError(
            f"`meta_grad` must accept and ignore any `**extra`, got: {error}"
        ) from error


def check_half_precision(
    learner: base.LearnerLike,
    sample_task: base.SampleTask,
    meta_params: base.Params,
    key: jax.Array,
) -> None:
    """Raises unless bfloat16 meta-parameters have bfloat16 meta-gradients."""
    halved: Any = optax.tree.cast((sample_task(key), meta_params), jnp.bfloat16)
    task, meta_params = halved
    grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
    _assert_alike(grads, meta_params, "`meta_grad` must keep the dtype of parameters")
    wrong = [name for name, x in _named(grads) if not _is_finite(x)]
    assert not wrong, f"`meta_grad` in bfloat16 is not finite in {wrong}."


def _assert_alike(found, expected, what):
    kinds = lambda tree: {name: (x.shape, x.dtype) for name, x in _named(tree)}
    got, want = kinds(found), kinds(expected)
    wrong = {
        name: (got.get(name), want.get(name))
        for name in sorted(got.keys() | want.keys())
        if got.get(name) != want.get(name)
    }
    assert not wrong, f"{what}; these differ (got, expected): {wrong}."


def _assert_close(found, expected, rtol, atol, what):
    _assert_alike(found, expected, what)
    sizes = {name: _size(x) for name, x in _named(expected)}
    # Floor of an array's size: rounding errors come from the largest arrays.
    least = max(1e-6, 1e-3 * max(sizes.values()))
    for (name, a), (_, b) in zip(_named(found), _named(expected), strict=True):
        size, a, b = max(sizes[name], least), a.astype(float), b.astype(float)
        least_of_array = rtol * size if atol is None else atol
        same = np.isclose(a, b, rtol=rtol, atol=least_of_array, equal_nan=True)
        worst = _size(np.subtract(a, b, where=~same, out=np.zeros_like(a)))
        assert np.all(same), f"{what}; {name} differs by {worst:.2g} of {size:.2g}."


def _size(x):
    """The largest finite magnitude."""
    return float(np.max(np.abs(x).astype(float), initial=0, where=np.isfinite(x)))


def _named(tree):
    """Names and values, of JAX's dtypes; in NumPy, comparing them compiles nothing."""
    leaves = jax.tree.leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return [(name(path), np.asarray(jnp.asarray(x))) for path, x in leaves]


def _is_finite(x):
    return bool(np.all(np.isfinite(x)))
