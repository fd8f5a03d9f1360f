"""Optimization runs in progress, which estimators for learned optimizers advance."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from jaxmeta import _checks, _dtypes, _inner_loop, base

_SAVED = "jaxmeta_run_grads"

# A number, (least, most) for log-uniform ones, or a function of the meta-step.
Horizon: TypeAlias = int | tuple[int, int] | Callable[[jax.Array], jax.Array]
Weight: TypeAlias = Callable[[jax.Array], jax.Array]  # steps [H], from 1 -> [H]


class Run(NamedTuple):
    """An optimization run; `vmap` adds the axis of runs in front."""

    instance: Any  # of the problem
    params: base.Params
    opt_state: optax.OptState
    step: jax.Array  # [] int32, updates made
    horizon: jax.Array  # [] int32, updates in all


class RunInfo(NamedTuple):
    """Diagnostics of one stretch of a run."""

    loss: jax.Array  # [] mean over the stretch; not a number where it does not count
    counts: jax.Array  # [] bool: its gradient is finite, and in the mean
    miss: jax.Array  # [] what imitation makes small, else 0

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What a training record says beside the loss."""
        return {"lost": 1.0 - self.counts, "miss": self.miss}


def check_arguments(
    lopt: Any, num_problems: int, unroll: int, horizon: Horizon, mesh: Any
) -> None:
    """Raises unless these arguments of an estimator go together."""
    if not (hasattr(lopt, "init") and hasattr(lopt, "transform")):
        raise ValueError(
            f"`lopt` must be a `jaxmeta.LearnedOptimizer`, got {lopt!r}. Of an optax "
            "optimizer `jaxmeta.optimizers.learned_rate(optax.adam)` makes one."
        )
    _checks.check_int("num_problems", num_problems)
    _checks.check_int("unroll", unroll)
    if callable(horizon):
        _check_curriculum(horizon)
        horizon = unroll  # Whatever it returns is rounded up to whole stretches.
    if isinstance(horizon, tuple) and len(horizon) != 2:
        raise ValueError(f"`horizon` must be an int or (least, most), got {horizon!r}.")
    for value in horizon if isinstance(horizon, tuple) else (horizon,):
        _checks.check_int("horizon", value)
        if value % unroll:
            raise ValueError(
                f"`horizon` must be a multiple of `unroll`, {unroll}, got {value}."
            )
    if isinstance(horizon, tuple) and horizon[0] > horizon[1]:
        raise ValueError(f"`horizon` must be (least, most), got {horizon}.")
    num_devices = 1 if mesh is None else mesh.size
    if num_problems % num_devices:
        raise ValueError(
            f"`num_problems` must be a multiple of the mesh's {num_devices} devices, "
            f"got {num_problems}."
        )


def _check_curriculum(horizon):
    """Raises unless `horizon` maps a meta-step to a number of updates."""
    try:
        shape = jax.eval_shape(horizon, jnp.zeros((), jnp.int32)).shape
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "`horizon`, a function of the meta-step, must be traceable: choose by "
            "`jnp.where`, not by `if`."
        ) from error
    first = horizon(jnp.zeros((), jnp.int32))
    if shape != () or not first >= 1:
        raise ValueError(
            "`horizon`, a function of the meta-step, must return a number of updates, "
            f"at least 1, got {first} for meta-step 0."
        )


def start(
    key: jax.Array,
    theta: Any,
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    horizon: Horizon,
    unroll: int = 1,
    meta_step: Any = 0,
) -> Run:
    """Draws an instance, where to start, and how long to go on."""
    sample_key, init_key, horizon_key = jax.random.split(key, 3)
    instance = problem.sample(sample_key)
    params = _dtypes.as_arrays(problem.init(init_key, instance))
    _checks.check_params(params)
    opt_state = lopt.transform(theta).init(params)
    if isinstance(horizon, tuple):
        # Whole stretches, from the least number to the most.
        least, most = (length // unroll for length in horizon)
        drawn = least * ((most + 1) / least) ** jax.random.uniform(horizon_key)
        stretches = jnp.clip(jnp.floor(drawn), least, most).astype(jnp.int32)
    else:
        length = horizon(jnp.asarray(meta_step)) if callable(horizon) else horizon
        stretches = jnp.ceil(jnp.asarray(length) / unroll).astype(jnp.int32)
    return Run(
        instance=instance,
        params=params,
        opt_state=opt_state,
        step=jnp.zeros((), jnp.int32),
        horizon=stretches * unroll,
    )


def start_all(
    key: jax.Array, num_problems: int, staggered: bool, unroll: int, make: Any
) -> Any:
    """Starts runs side by side; staggered, the first ones end one after the other.

    Args:
      key: of all.
      num_problems: how many.
      staggered: shorten the first runs, so that at any time some are young.
      unroll: updates a stretch.
      make: `(key) -> Run`.
    """
    runs = jax.vmap(make)(jax.random.split(key, num_problems))
    if not staggered:
        return runs
    share = jnp.arange(1, num_problems + 1) / num_problems
    share = share.reshape(-1, *[1] * (runs.horizon.ndim - 1))  # Of runs, or of pairs.
    stretches = jnp.ceil(share * (runs.horizon / unroll)).astype(jnp.int32)
    return runs._replace(horizon=stretches * unroll)


def restart_if_over(run: Run, fresh: Run) -> Run:
    """Replaces a run that reached its horizon."""
    is_over = run.step >= run.horizon
    return jax.tree.map(lambda a, b: jnp.where(is_over, a, b), fresh, run)


def meta_loss(
    losses: jax.Array, run: Run, weight: Weight | None
) -> tuple[jax.Array, RunInfo]:
    """Of a stretch that ends where `run` is, with losses [H + 1]; and what to report.

    The first loss is that before the stretch, on which its updates have no influence.
    """
    losses = losses[1:]
    info = run_info(losses)
    if weight is None:
        return jnp.sum(losses), info
    steps = run.step + jnp.arange(1 - losses.size, 1)
    return jnp.sum(weight(steps) * losses), info


def advance(
    lopt: base.LearnedOptimizer, *, second_order: bool, rematerialize: bool = True
) -> Callable[..., tuple[Run, jax.Array]]:
    """Returns `go(key, problem, theta, run, length) -> (run, losses)`.

    The losses [length + 1] are those before and after each of the `length` updates.

    Args:
      lopt: makes the updates.
      second_order: differentiate the gradients that the optimizer sees, by
        Hessian-vector products; if not, the paper's dropped edges. Static.
      rematerialize: keep the gradients of each step, and compute again what else the
        backward pass needs. Static.
    """

    def scalar_loss(params, key, data):
        problem, instance = data
        value = problem.loss(params, instance, key)
        _checks.check_scalar_loss("problem.loss", value)
        return value

    def go(key, problem, theta, run, length):
        data = problem, run.instance
        tx = optax.with_extra_args_support(lopt.transform(theta))
        if second_order:
            gradient, constants = _inner_loop.exact_gradient(
                scalar_loss, run.params, key, data
            )
        else:
            gradient, constants = _first_order_gradient(scalar_loss), ()

        def step(carry, step_key):
            params, opt_state = carry
            loss, grads = gradient(params, step_key, data, *constants)
            grads = checkpoint_name(grads, _SAVED)
            value = loss if second_order else jax.lax.stop_gradient(loss)
            updates, opt_state = tx.update(grads, opt_state, params, value=value)
            return (optax.apply_updates(params, updates), opt_state), loss

        if rematerialize:
            step = jax.checkpoint(
                step,
                policy=jax.checkpoint_policies.save_only_these_names(_SAVED),
                prevent_cse=False,  # Not needed under scan.
            )
        *step_keys, last_key = jax.random.split(key, length + 1)
        carry = (run.params, run.opt_state)
        (params, opt_state), losses = jax.lax.scan(step, carry, jnp.stack(step_keys))
        last = scalar_loss(params, last_key, data)
        losses = jnp.append(losses, last)
        run = run._replace(params=params, opt_state=opt_state)
        return go_on(run, losses, length), losses

    return go


def go_on(run: Run, losses: jax.Array, length: int) -> Run:
    """Counts `length` updates; a run that broke on the way is over."""
    step = jnp.where(jnp.all(jnp.isfinite(losses)), run.step + length, run.horizon)
    return run._replace(step=step)


def run_info(losses: jax.Array, miss: jax.Array | float = 0.0) -> RunInfo:
    """Diagnostics of a stretch with losses [H]."""
    return RunInfo(jnp.mean(losses), jnp.array(True), jnp.asarray(miss, losses.dtype))


def init_theta(
    key: jax.Array, lopt: base.LearnedOptimizer, problem: base.OptimizationProblem
) -> Any:
    """Draws theta; rules with a parameter of their own for each see an instance's."""
    problem_key, theta_key = jax.random.split(key)
    sample_key, init_key = jax.random.split(problem_key)
    params = _dtypes.as_arrays(problem.init(init_key, problem.sample(sample_key)))
    _checks.check_params(params)
    return lopt.init(theta_key, params)


def _first_order_gradient(loss):
    """`jax.value_and_grad(loss)` whose gradient is a constant to the derivative.

    The value still has its derivative, which is the gradient itself: nothing else is
    kept for the backward pass.
    """

    @jax.custom_vjp
    def value_and_grad(params, key, data):
        value, grads = jax.value_and_grad(loss)(params, key, data)
        return value, jax.lax.stop_gradient(grads)

    def forward(params, key, data):
        value, grads = jax.value_and_grad(loss)(params, key, data)
        # Named here too: else rematerialization computes what is kept once more.
        grads = checkpoint_name(grads, _SAVED)
        return (value, grads), grads

    def backward(grads, cotangents):
        value_bar, _ = cotangents
        return (
            jax.tree.map(lambda g: (value_bar * g).astype(g.dtype), grads),
            None,
            None,
        )

    value_and_grad.defvjp(forward, backward)
    return value_and_grad
