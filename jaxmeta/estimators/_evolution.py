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
    horizon: int,
    num_problems: int,
    sigma: float = 0.01,
    weight: _runs.Weight | None = None,
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
      lopt: the learned optimizer.
      problem: the family of problems. Its loss need not have a second derivative.
      horizon: H, updates per run. Static.
      num_problems: N, pairs of runs per meta-step, each on its own problem. Static.
      sigma: standard deviation of the noise.
      weight: as for `bptt`.
      mesh: as for `bptt`.

    Returns:
      A `GradientEstimator` without carry. Its info has the mean loss of each pair.

    Raises:
      ValueError: if a count or `sigma` is not positive, devices do not divide the runs,
        or the loss is not a scalar.
    """
    _checks.check_int("horizon", horizon)
    _runs.check_arguments(lopt, num_problems, 1, horizon, mesh)
    _checks.check_positive("sigma", sigma)
    start, pair_gradient = _pairs(lopt, horizon, horizon, sigma, weight)

    def one_run(theta, problem, meta_step, key, carry):
        del meta_step
        start_key, noise_key, run_key = jax.random.split(key, 3)
        noise = _draw_noise(noise_key, theta, sigma)
        runs = start(start_key, problem, theta, noise)
        grads, _, info = pair_gradient(run_key, problem, theta, noise, noise, runs)
        return grads, (carry, info)

    def init(key):
        return _over_runs.place(_runs.init_theta(key, lopt, problem), None, mesh)

    return _over_runs.over_runs(one_run, init, problem, num_problems, mesh)


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
        start_key, noise_key, run_key = jax.random.split(key, 3)
        drawn = _draw_noise(noise_key, theta, sigma)
        # The runs of a pair, [2] or [3], share step and horizon.
        is_over = carry.runs.step[0] >= carry.runs.horizon[0]
        none = optax.tree.zeros_like(theta)
        kept = jax.tree.map(lambda a, b: jnp.where(is_over, a, b), none, carry.noise)
        if noise == "persistent":
            perturbation, total = drawn, optax.tree.add(kept, drawn)
        elif noise == "shared":
            first = jax.tree.map(lambda a, b: jnp.where(is_over, a, b), drawn, kept)
            perturbation = total = first
        else:
            perturbation = total = drawn
        at_start = none if noise == "fresh" else perturbation
        fresh = start(start_key, problem, theta, at_start, meta_step)
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

    return _over_runs.over_runs(one_run, init, problem, num_problems, mesh)


def _draw_noise(key, theta, sigma):
    return optax.tree.scale(sigma, optax.tree.random_like(key, theta))


def _pairs(lopt, length, horizon, sigma, weight, signs=(1, -1)):
    """Returns `start` and `pair_gradient` for pairs of runs, one run per sign."""
    advance = _runs.advance(lopt, order="constant", rematerialize=False)
    signs = jnp.array(signs, float)

    def start(key, problem, theta, perturbation, meta_step=0):
        def one(sign):
            moved = optax.tree.add_scale(theta, sign, perturbation)
            return _runs.start(key, moved, lopt, problem, horizon, length, meta_step)

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
