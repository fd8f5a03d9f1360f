"""Optimization runs in progress, advanced by estimators for learned optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _dtypes, _replay, _unroll, base

# A number, (lowest, highest) to draw log-uniformly, or a function of the meta-step.
Horizon: TypeAlias = int | tuple[int, int] | Callable[[jax.Array], jax.Array]
# (steps [H], from 1; the run's horizon []) -> [H]
Weight: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


class Run(NamedTuple):
    """An optimization run; `vmap` adds a leading axis of runs."""

    instance: Any  # of the problem
    params: base.Params
    opt_state: optax.OptState
    step: jax.Array  # [] int32, updates so far
    horizon: jax.Array  # [] int32, total updates


class RunInfo(NamedTuple):
    """Diagnostics of one truncation of a run."""

    loss: jax.Array  # [] mean over the truncation; NaN if not valid
    is_valid: jax.Array  # [] bool: its gradient is finite and enters the mean
    imitation_loss: jax.Array  # [] the objective of `imitation`, else 0

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """Metrics that training records besides the loss."""
        return {"imitation_loss": self.imitation_loss}


class Advance(Protocol):
    """Advances a run."""

    def __call__(
        self,
        key: jax.Array,
        problem: base.OptimizationProblem,
        theta: Any,
        run: Run,
        length: int,
    ) -> tuple[Run, jax.Array]:
        """Returns the run after `length` updates, and the losses [length + 1]."""
        ...


def check_arguments(
    lopt: Any, num_problems: int, unroll: int, horizon: Horizon, mesh: Any
) -> None:
    """Raises unless these arguments of an estimator are consistent."""
    if not (hasattr(lopt, "init") and hasattr(lopt, "transform")):
        raise ValueError(
            f"`lopt` must be a `jaxmeta.LearnedOptimizer`, got {lopt!r}. Wrap an optax "
            "optimizer: `jaxmeta.optimizers.learned_rate(optax.adam)`."
        )
    _checks.check_int("num_problems", num_problems)
    _checks.check_int("unroll", unroll)
    if callable(horizon):
        _check_curriculum(horizon)
        horizon = unroll  # Its values are rounded up to whole truncations.
    if isinstance(horizon, tuple) and len(horizon) != 2:
        raise ValueError(
            f"`horizon` must be an int or (lowest, highest), got {horizon!r}."
        )
    for value in horizon if isinstance(horizon, tuple) else (horizon,):
        _checks.check_int("horizon", value)
        if value % unroll:
            raise ValueError(
                f"`horizon` must be a multiple of `unroll`, {unroll}, got {value}."
            )
    if isinstance(horizon, tuple) and horizon[0] > horizon[1]:
        raise ValueError(f"`horizon` must be (lowest, highest), got {horizon}.")
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
            "`horizon`, a function of the meta-step, must be traceable: use "
            "`jnp.where`, not `if`."
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
    drawn: tuple[Any, base.Params] | None = None,
) -> Run:
    """Starts with an instance and parameters, `drawn` or drawn here; and a horizon."""
    *_, horizon_key = jax.random.split(key, 3)
    instance, params = _draw(key, problem) if drawn is None else drawn
    opt_state = lopt.transform(theta).init(params)
    if isinstance(horizon, tuple):
        truncations = draw_log_uniform(
            horizon_key, *(length // unroll for length in horizon)
        )
    else:
        length = horizon(jnp.asarray(meta_step)) if callable(horizon) else horizon
        truncations = jnp.ceil(jnp.asarray(length) / unroll).astype(jnp.int32)
    return Run(
        instance=instance,
        params=params,
        opt_state=opt_state,
        step=jnp.zeros((), jnp.int32),
        horizon=truncations * unroll,
    )


def _draw(key, problem):
    """An instance, and initial parameters."""
    sample_key, init_key, _ = jax.random.split(key, 3)
    instance = problem.sample(sample_key)
    params = _dtypes.as_arrays(problem.init(init_key, instance))
    _checks.check_params(params)
    return instance, params


def draw_if_over(
    keys: jax.Array, problem: base.OptimizationProblem, runs: Run
) -> tuple[Any, base.Params]:
    """What `start` draws for runs that are over; for others, what they have.

    Drawing a data set is dear, and most runs go on.

    Args:
      keys: [N].
      problem: the family of problems.
      runs: leaves [N, ...].
    """

    def in_turn(*each):
        def one(each):
            is_over, key, kept = each
            return jax.lax.cond(is_over, lambda: _draw(key, problem), lambda: kept)

        return jax.lax.map(one, each)

    def at_once(are_over, keys, kept):
        def one(is_over, key, kept):
            return optax.tree.where(is_over, _draw(key, problem), kept)

        draw = lambda: jax.vmap(one)(are_over, keys, kept)
        return jax.lax.cond(jnp.any(are_over), draw, lambda: kept)

    each = runs.step >= runs.horizon, keys, (runs.instance, runs.params)
    return jax.lax.platform_dependent(*each, cpu=in_turn, default=at_once)


def draw_log_uniform(key: jax.Array, lowest: int, highest: int) -> jax.Array:
    """Draws n of lowest ... highest, with probability ~ log((n + 1) / n)."""
    drawn = lowest * ((highest + 1) / lowest) ** jax.random.uniform(key)
    return jnp.clip(jnp.floor(drawn), lowest, highest).astype(jnp.int32)


def start_all(
    key: jax.Array, num_problems: int, staggered: bool, unroll: int, make: Any
) -> Any:
    """Starts parallel runs; if staggered, the first ones end one after another.

    Args:
      key: a PRNG key.
      num_problems: number of runs.
      staggered: shorten the first runs, so that runs of every age coexist.
      unroll: updates per truncation.
      make: `(key) -> Run`.
    """
    runs = jax.vmap(make)(jax.random.split(key, num_problems))
    if not staggered:
        return runs
    share = jnp.arange(1, num_problems + 1) / num_problems
    share = share.reshape(-1, *[1] * (runs.horizon.ndim - 1))  # [N], or [N, 1] of pairs
    truncations = jnp.ceil(share * (runs.horizon / unroll)).astype(jnp.int32)
    return runs._replace(horizon=truncations * unroll)


def restart_if_over(run: Run, fresh: Run) -> Run:
    """Replaces a run that reached its horizon."""
    return optax.tree.where(run.step >= run.horizon, fresh, run)


def meta_loss(
    losses: jax.Array, run: Run, weight: Weight | None
) -> tuple[jax.Array, RunInfo]:
    """Returns the meta-loss of a truncation that ends at `run`, and its diagnostics.

    The first of its losses [H + 1], before the first update, is excluded.
    """
    losses = losses[1:]
    info = run_info(losses)
    if weight is None:
        return jnp.sum(losses), info
    # Steps t - H + 1 ... t: `run.step` = t is already after the truncation.
    steps = run.step + jnp.arange(1 - losses.size, 1)
    return jnp.sum(weight(steps, run.horizon) * losses), info


def advance(
    lopt: base.LearnedOptimizer, *, order: _unroll.Order, rematerialize: bool = True
) -> Advance:
    """Returns `(key, problem, theta, run, length) -> (run, losses)`.

    The losses [length + 1] are those before and after each of the `length` updates.

    Args:
      lopt: the learned optimizer.
      order: how the gradients that the optimizer sees are differentiated;
        "first-order" is the paper's dropped edges. Static.
      rematerialize: keep only the gradients of each step, and recompute everything else
        in the backward pass. Static.
    """

    def count_updates(key, problem, theta, run, length):
        keys = jax.random.split(key, length + 1)
        data = problem, run.instance
        result = _unroll.unroll(
            _problem_loss,
            told_horizon(lopt.transform(theta), run.horizon),
            run.params,
            keys[:-1],
            data,
            order=order,
            state=run.opt_state,
            rematerialize=rematerialize,
        )
        last, _ = _problem_loss(result.params, keys[-1], run.step, data)
        losses = jnp.append(result.losses, last)
        run = run._replace(params=result.params, opt_state=result.state)
        return after_updates(run, losses, length), losses

    return count_updates


def _problem_loss(params, key, step, data):
    del step
    problem, instance = data
    value = problem.loss(params, instance, key)
    _checks.check_scalar_loss("problem.loss", value)
    return value, None


def one_update(
    problem: base.OptimizationProblem,
    tx: optax.GradientTransformationExtraArgs,
    instance: Any,
    carry: tuple[base.Params, optax.OptState],
    key: jax.Array,
) -> tuple[jax.Array, tuple[base.Params, optax.OptState]]:
    """An update without derivatives; returns the loss before it, and the new carry."""
    params, state = carry
    loss = lambda params: _problem_loss(params, key, 0, (problem, instance))[0]
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=value)
    return value, (optax.apply_updates(params, updates), state)


def told_horizon(
    tx: optax.GradientTransformation, horizon: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The rule, told of how many updates its run has: `total_steps`."""
    tx = optax.with_extra_args_support(tx)
    if isinstance(tx, _replay.Coordinatewise):
        return tx  # These do not listen, and must stay what they are.

    def update(updates, state, params=None, **extra_args):
        extra_args = {"total_steps": horizon} | extra_args
        return tx.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def gradient_order(second_order: bool, hvp: _unroll.Hvp) -> _unroll.Order:
    """The order in which `bptt` differentiates the optimizer's input gradients."""
    _checks.check_choice("hvp", hvp, _unroll.HVP_MODES)
    return hvp if second_order else "first-order"


def after_updates(run: Run, losses: jax.Array, length: int) -> Run:
    """Adds `length` to the step; a run that diverged jumps to its horizon."""
    step = jnp.where(jnp.all(jnp.isfinite(losses)), run.step + length, run.horizon)
    return run._replace(step=step)


def end(carry: Any, is_over: jax.Array) -> Any:
    """Ends runs, [N] bool: fresh ones replace them in the next meta-step."""
    if not isinstance(carry, Run):  # An estimator's carry that contains runs.
        return carry._replace(runs=end(carry.runs, is_over))
    # [N], or [N, 1] for pairs.
    is_over = is_over.reshape(-1, *[1] * (carry.step.ndim - 1))
    return carry._replace(step=jnp.where(is_over, carry.horizon, carry.step))


def run_info(losses: jax.Array, imitation_loss: jax.Array | float = 0.0) -> RunInfo:
    """Diagnostics of a truncation with losses [H]."""
    imitation_loss = jnp.asarray(imitation_loss, losses.dtype)
    return RunInfo(jnp.mean(losses), jnp.array(True), imitation_loss)


def init_theta(
    key: jax.Array, lopt: base.LearnedOptimizer, problem: base.OptimizationProblem
) -> Any:
    """Draws theta, with an instance's parameters for rules that require them."""
    problem_key, theta_key = jax.random.split(key)
    sample_key, init_key = jax.random.split(problem_key)
    params = _dtypes.as_arrays(problem.init(init_key, problem.sample(sample_key)))
    _checks.check_params(params)
    return lopt.init(theta_key, params)
