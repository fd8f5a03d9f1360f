"""Evolution strategies, full and truncated: meta-gradients without derivatives.

References:
  Vicol, Metz, Sohl-Dickstein, "Unbiased gradient estimation in unrolled computation
  graphs with persistent evolution strategies", ICML 2021, Algorithms 1 and 2.
  https://arxiv.org/abs/2112.13835
  Vicol, "Low-variance gradient estimation in unrolled computation graphs with
  ES-Single", ICML 2023. https://arxiv.org/abs/2304.11153
  Li et al., "Variance-reduced gradient estimation via noise-reuse in online evolution
  strategies", NeurIPS 2023. https://arxiv.org/abs/2304.12180
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmeta import _checks, base
from jaxmeta.estimators import _over_runs, _runs

_NOISES = ("persistent", "shared", "fresh")


class EvolutionCarry(NamedTuple):
    """State of evolution strategies between meta-steps, [N, ...] for N pairs."""

    runs: _runs.Run  # leaves [N, 2, ...]: with + and - the perturbation (3 if "fresh")
    noise: Any  # like theta: the accumulated or the shared perturbation


def es(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    *,
    horizon: int | tuple[int, int],
    num_problems: int,
    sigma: float = 0.01,
    weight: _runs.Weight | None = None,
    meta_loss: Literal["sum", "log"] = "sum",
    mesh: Mesh | None = None,
) -> base.GradientEstimator:
    r"""Evolution strategies over full runs, with antithetic pairs.

    .. math::
      \hat g = \frac{1}{N} \sum_i \frac{\epsilon_i}{2 \sigma^2} \left(
        L(\theta + \epsilon_i) - L(\theta - \epsilon_i)\right), \qquad
      \epsilon_i \sim \mathcal N(0, \sigma^2 I)

    This estimates the gradient of the noise-smoothed meta-loss; its variance does not
    grow for chaotic runs. Both runs of a pair have the same problem, initial parameters
    and minibatches.

    Args:
      lopt: the learned optimizer. It is told the horizon as `total_steps`.
      problem: the family of problems. Its loss need not have a second derivative.
      horizon: H, updates per run; or the lowest and highest, between which every
        meta-step draws one for all its runs, uniform in the logarithm. Static.
      num_problems: N, pairs of runs per meta-step, each on its own problem. Static.
      sigma: standard deviation of the noise.
      weight: as for `bptt`, if the meta-loss is a sum.
      meta_loss: "sum", over the losses after each update; or "log", the logarithm of
        the loss at the end over that at the start, from the problem's `full_loss` if it
        has one. The latter weighs problems of any scale alike; it is at least
        log(1e-6), at most 2, which runs that diverge have too, and the differences of
        pairs are clipped to 1. Static.
      mesh: as for `bptt`.

    Returns:
      A `GradientEstimator` without carry. Its info has the mean loss of each pair, or
      with "log", its mean meta-loss.

    Raises:
      ValueError: if a count or `sigma` is not positive, `horizon` or `meta_loss` is
        invalid, devices do not divide the runs, or the loss is not a scalar.
    """
    _checks.check_choice("meta_loss", meta_loss, ("sum", "log"))
    if callable(horizon):
        raise ValueError("`horizon` of `es` must be an int or (lowest, highest).")
    _runs.check_arguments(lopt, num_problems, 1, horizon, mesh)
    _checks.check_positive("sigma", sigma)
    whole_run = _log_ratio if meta_loss == "log" else _weighted_sum(weight)
    lowest, highest = horizon if isinstance(horizon, tuple) else (horizon, horizon)

    def draw(key):
        if lowest == highest:
            return lowest
        return _runs.draw_log_uniform(key, lowest, highest)

    def one_run(theta, problem, total_steps, key, carry):
        noise_key, start_key, run_key = jax.random.split(key, 3)
        noise = _draw_noise(noise_key, theta, sigma)

        def one(sign):
            moved = optax.tree.add_scale(theta, sign, noise)
            run = _runs.start(
                start_key, moved, lopt, problem, lambda _: jnp.asarray(total_steps)
            )
            tx = _runs.told_horizon(lopt.transform(moved), total_steps)
            return whole_run(problem, tx, run, total_steps, run_key)

        values, losses = jax.vmap(one)(jnp.array([1.0, -1.0]))
        difference = values[0] - values[1]
        if meta_loss == "log":
            difference = jnp.clip(difference, -1, 1)
        grads = optax.tree.scale(difference / (2 * sigma**2), noise)
        info = _runs.RunInfo(jnp.mean(losses), jnp.array(True), jnp.zeros(()))
        return grads, (carry, info)

    def init(key):
        return _over_runs.place(_runs.init_theta(key, lopt, problem), None, mesh)

    return _over_runs.over_runs(one_run, init, problem, num_problems, mesh, draw)


def _weighted_sum(weight):
    """The meta-loss of `bptt`: the losses after each update, in a weighted sum."""

    def whole_run(problem, tx, run, total_steps, key):
        def add(sums, k, value):
            share = 1
            if weight is not None:
                share = weight(k.reshape(1), jnp.asarray(total_steps))[0]
            # The loss before the first update is nobody's merit.
            value = jnp.where(k > 0, value, 0)
            return sums[0] + share * value, sums[1] + value

        def body(k, carry):
            carry, sums = carry
            key_k = jax.random.fold_in(key, k)
            value, carry = _runs.one_update(problem, tx, run.instance, carry, key_k)
            return carry, add(sums, k, value)

        start = (run.params, run.opt_state), (jnp.zeros(()), jnp.zeros(()))
        (params, _), sums = jax.lax.fori_loop(0, total_steps, body, start)
        last = problem.loss(params, run.instance, jax.random.fold_in(key, total_steps))
        value, total = add(sums, jnp.asarray(total_steps), last)
        return value, total / total_steps

    return whole_run


def _log_ratio(problem, tx, run, total_steps, key):
    """How far a run gets: log(L_T / L_0), the same for losses of any scale."""

    def full_loss(params, k):
        if problem.full_loss is not None:
            return problem.full_loss(params, run.instance)
        return problem.loss(params, run.instance, jax.random.fold_in(key, k))

    def body(k, carry):
        key_k = jax.random.fold_in(key, k)
        return _runs.one_update(problem, tx, run.instance, carry, key_k)[1]

    start = run.params, run.opt_state
    params, _ = jax.lax.fori_loop(0, total_steps, body, start)
    first, last = full_loss(run.params, 0), full_loss(params, total_steps)
    ratio = jnp.log(last / first + 1e-6)
    ratio = jnp.where(jnp.isfinite(ratio), jnp.minimum(ratio, 2), 2)
    return ratio, ratio


def pes(
    lopt: base.LearnedOptimizer,
    problem: base.OptimizationProblem,
    *,
    unroll: int,
    horizon: _runs.Horizon,
    num_problems: int,
    sigma: float = 0.01,
    noise: Literal["persistent", "shared", "fresh"] = "persistent",
    weight: _runs.Weight | None = None,
    staggered: bool = False,
    mesh: Mesh | None = None,
) -> base.GradientEstimator:
    r"""Persistent evolution strategies: unbiased though truncated.

    Each pair of runs continues across meta-steps with its own perturbations, which
    accumulate to :math:`\xi_t = \sum_{\tau \le t} \epsilon_\tau`:

    .. math::
      \hat g_t = \frac{1}{N} \sum_i \frac{\xi_{t,i}}{2 \sigma^2} \left(
        L_t(\theta + \epsilon_{t,i}) - L_t(\theta - \epsilon_{t,i})\right)

    Over the truncations of a run these sum to the gradient of the full smoothed
    meta-loss. Other kinds of noise give two other published estimators:

    - `"persistent"`: PES. Its variance grows with the number of truncations.
    - `"shared"`: ES-Single, NRES. One perturbation per run: the gradient of the loss
      smoothed by it, with less variance.
    - `"fresh"`: truncated ES. A pair starts each truncation from one unperturbed run;
      biased towards short-term gains, like truncated backpropagation.

    Args:
      lopt: the learned optimizer.
      problem: the family of problems. Its loss need not have a second derivative.
      unroll: updates per meta-step. Static.
      horizon: as for `truncated_bptt`. Static.
      num_problems: N, pairs of runs, each on its own problem. Static.
      sigma: standard deviation of the noise.
      noise: kind of perturbations, see above. Static.
      weight: as for `bptt`.
      staggered: as for `truncated_bptt`. Static.
      mesh: as for `bptt`.

    Returns:
      A `GradientEstimator` whose carry is an `EvolutionCarry`. Its info has each pair's
      mean loss over the truncation.

    Raises:
      ValueError: if a count or `sigma` is not positive, `horizon` is not a multiple of
        `unroll`, `noise` is unknown, devices do not divide the runs, or the loss is not
        a scalar.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> estimator = pes(jm.optimizers.lstm(4), jm.problems.quadratics(2), unroll=5,
      ...                 horizon=10, num_problems=3)
      >>> init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> info.loss.shape
      (3,)
    """
    _runs.check_arguments(lopt, num_problems, unroll, horizon, mesh)
    _checks.check_positive("sigma", sigma)
    _checks.check_choice("noise", noise, _NOISES)
    signs = (1, -1, 0) if noise == "fresh" else (1, -1)
    start, pair_gradient = _pairs(lopt, unroll, horizon, sigma, weight, signs)

    def one_run(theta, problem, meta_step, key, carry):
        carry, start_key, drawn_problem = carry
        noise_key, run_key = jax.random.split(key)
        drawn = _draw_noise(noise_key, theta, sigma)
        # The runs of a pair, [2] or [3], share step and horizon.
        is_over = carry.runs.step[0] >= carry.runs.horizon[0]
        none = optax.tree.zeros_like(theta)
        kept = optax.tree.where(is_over, none, carry.noise)
        if noise == "persistent":
            perturbation, total = drawn, optax.tree.add(kept, drawn)
        elif noise == "shared":
            first = optax.tree.where(is_over, drawn, kept)
            perturbation = total = first
        else:
            perturbation = total = drawn
        at_start = none if noise == "fresh" else perturbation
        args = start_key, problem, theta, at_start, meta_step
        fresh = start(*args, drawn_problem)
        runs = jax.vmap(_runs.restart_if_over)(carry.runs, fresh)
        grads, after, info = pair_gradient(
            run_key, problem, theta, perturbation, total, runs
        )
        if noise == "fresh":  # All continue from the unperturbed run, sign 0.
            after = jax.tree.map(lambda x: jnp.broadcast_to(x[2], x.shape), after)
        return grads, (EvolutionCarry(after, total), info)

    def init(key):
        theta_key, run_key, noise_key = jax.random.split(key, 3)
        theta = _runs.init_theta(theta_key, lopt, problem)
        keys = jax.random.split(noise_key, num_problems)
        drawn = jax.vmap(lambda key: _draw_noise(key, theta, sigma))(keys)
        none = optax.tree.zeros_like(drawn)
        kept = drawn if noise == "shared" else none

        def make(key):
            return start(key, problem, theta, optax.tree.zeros_like(theta))

        runs = _runs.start_all(run_key, num_problems, staggered, unroll, make)
        return _over_runs.place(theta, EvolutionCarry(runs, kept), mesh)

    # All runs of a pair have the same problem, and end together.
    runs_of = lambda carry: jax.tree.map(lambda x: x[:, 0], carry.runs)
    args = one_run, init, problem, num_problems, mesh
    return _over_runs.over_runs(*args, runs_of=runs_of)


def _draw_noise(key, theta, sigma):
    return optax.tree.scale(sigma, optax.tree.random_like(key, theta))


def _pairs(lopt, length, horizon, sigma, weight, signs=(1, -1)):
    """Returns `start` and `pair_gradient` for pairs of runs, one run per sign."""
    advance = _runs.advance(lopt, order="constant", rematerialize=False)
    signs = jnp.array(signs, float)

    def start(key, problem, theta, perturbation, meta_step=0, drawn=None):
        def one(sign):
            moved = optax.tree.add_scale(theta, sign, perturbation)
            more = length, meta_step, drawn
            return _runs.start(key, moved, lopt, problem, horizon, *more)

        return jax.vmap(one)(signs)

    def pair_gradient(key, problem, theta, perturbation, total, runs):
        def one(sign, run):
            moved = optax.tree.add_scale(theta, sign, perturbation)
            run, losses = advance(key, problem, moved, run, length)
            return run, *_runs.meta_loss(losses, run, weight)

        runs, losses, info = jax.vmap(one)(signs, runs)
        # xi (L(theta + eps) - L(theta - eps)) / (2 sigma^2); xi is `total`.
        grads = optax.tree.scale((losses[0] - losses[1]) / (2 * sigma**2), total)
        # A run that diverged is at its horizon; then the others of its pair are too.
        runs = runs._replace(step=jnp.full_like(runs.step, jnp.max(runs.step)))
        loss = jnp.mean(info.loss[:2])  # without the unperturbed run
        info = _runs.RunInfo(loss, info.is_valid[0], info.imitation_loss[0])
        return grads, runs, info

    return start, pair_gradient
