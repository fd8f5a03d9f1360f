"""The training loop: chunks of compiled meta-steps, metrics, checkpoints, resuming."""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, base
from jaxmeta.training import _run_files, _streamed_steps
from jaxmeta.training._memory import trim_memory

Validate = Callable[[base.Params], Mapping[str, float]]
Report = Callable[[Mapping[str, Any]], None]


class FitResult(NamedTuple):
    """Result of `fit`."""

    state: base.TrainState  # after the last step
    best: base.TrainState  # with the lowest validation loss; `state` without validation
    stopped_early: bool


class DivergedError(RuntimeError):
    """A loss or meta-gradient is not finite. Earlier checkpoints are kept."""


def fit(
    train_step: base.TrainStep,
    *,
    num_steps: int,
    key: jax.Array,
    directory: str | os.PathLike[str] | None = None,
    log_every: int = 100,
    validate: Validate | None = None,
    validate_every: int = 1000,
    patience: int | None = None,
    report: Report | None = None,
    stream: base.TaskStream | None = None,
) -> FitResult:
    """Meta-trains for `num_steps`, or resumes an interrupted run.

    Steps run `log_every` at a time in one compiled loop with donated state; the first
    record covers only the first step, for early feedback. With a `directory`,
    `metrics.jsonl` gets a line per record and `checkpoints/` the best and last states.
    Called again with the same arguments, an interrupted run resumes from its last
    checkpoint and ends with identical parameters and metrics (except for the wall-clock
    field `seconds`).

    Args:
      train_step: from `make_train_step`.
      num_steps: total meta-steps.
      key: determines all randomness.
      directory: folder of the run; None saves nothing. Processes that train together
        (`jax.distributed`) share it: all save their part, the first writes metrics.
      log_every: makes a record, with one dispatch, every this many meta-steps.
      validate: `(meta_params) -> metrics`, floats; `loss` determines the best state.
      validate_every: meta-steps between validations, each followed by a checkpoint; a
        multiple of `log_every`.
      patience: stop after this many validations in a row without a better loss.
      report: called with each record (progress bars, trackers).
      stream: tasks from the host, for the step of `jaxmeta.estimators.over_stream`.
        Meta-steps are then dispatched one by one while the next batch is transferred.

    Raises:
      ValueError: if counts are inconsistent, a checkpoint is damaged, another process
        is training in the directory, or `validate` returns no `loss`.
      DivergedError: if a metric, or at a checkpoint a meta-parameter, is not finite.
      OSError: if the directory cannot be written.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> learner = jm.maml(jm.models.MLP([8, 1]), jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.01), inner_steps=1)
      >>> sample_task = jm.tasks.sinusoid()
      >>> estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=4)
      >>> train_step = jm.training.make_train_step(estimator, optax.adam(1e-3))
      >>> result = fit(train_step, num_steps=20, key=jax.random.key(0), log_every=10)
      >>> int(result.state.step)
      20
    """
    _checks.check_intervals(num_steps, log_every, validate_every, patience)
    if patience is not None and validate is None:
        raise ValueError("`patience` requires `validate`.")
    with _run_files.RunFiles(directory) as files:
        state = jax.jit(train_step.init)(key)
        state, best, best_loss = files.resume(state)
        run_chunk = jax.jit(_run_chunk, donate_argnums=1)
        if stream is not None:
            summarize = lambda infos: _means(_totals(infos))
            run_chunk = _streamed_steps.chunk_runner(stream, int(state.step), summarize)

        def out_of_patience():
            if patience is None:
                return False
            best_step = 0 if best is None else int(best.step)
            return int(state.step) - best_step >= patience * validate_every

        has_trimmed = False
        while (step := int(state.step)) < num_steps and not out_of_patience():
            start = time.perf_counter()
            # An extended run may start between two records.
            length = min(log_every - step % log_every, num_steps - step)
            length = length if step else 1  # for early feedback
            state, record = run_chunk(train_step.step, state, length)
            step += length
            record = {"step": step} | {name: float(x) for name, x in record.items()}
            seconds = time.perf_counter() - start
            if not has_trimmed:  # After compiling.
                has_trimmed = True
                trim_memory()
            _check_finite(record, step, files)
            due = step % validate_every == 0 or step == num_steps
            if due:
                _check_finite(_norm(state.meta_params), step, files)
            is_best = False
            if due and validate is not None:
                found = _check_validation(validate(state.meta_params))
                record |= {f"validation_{name}": float(x) for name, x in found.items()}
                is_best = record["validation_loss"] < best_loss
                if is_best:
                    best_loss = record["validation_loss"]
                    best = jax.tree.map(
                        jnp.copy, state
                    )  # The next chunk donates `state`.
            record["seconds"] = seconds
            files.append(record)
            if due:
                files.save(state, best_loss if is_best else math.inf)
            if report is not None:
                report(record)
        stopped_early = int(state.step) < num_steps
        return FitResult(state, state if best is None else best, stopped_early)


def _run_chunk(step, state, length):
    """Makes `length` meta-steps; returns the state and their average metrics.

    The length is an argument of the compiled loop: one program for all chunks.
    """
    one_step = jax.jit(lambda step, state: step(state))  # Traced once for both uses.
    _, info = jax.eval_shape(one_step, step, state)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(_totals, info))

    def body(_, carry):
        state, totals = carry
        state, info = one_step(step, state)
        return state, jax.tree.map(jnp.add, totals, _totals(info))

    state, totals = jax.lax.fori_loop(0, length, body, (state, zeros))
    return state, _means(totals)


def _totals(info: base.Info):
    """Sum and count of each metric, over tasks and, if stacked, meta-steps."""
    _checks.check_metric_names(info.metrics)
    values = {"loss": info.loss, **info.metrics}
    is_valid = jnp.broadcast_to(info.is_valid, jnp.shape(info.loss))
    total = lambda x: (jnp.sum(jnp.where(is_valid, x, 0)), jnp.sum(is_valid))
    totals = {name: total(x) for name, x in values.items()}
    if info.is_valid is not True:  # Also report the share of excluded entries.
        totals["excluded"] = (jnp.sum(~is_valid), jnp.array(is_valid.size))
    return totals


def _means(totals):
    return {name: total / count for name, (total, count) in totals.items()}


@jax.jit
def _norm(meta_params):
    return {"norm of the meta-parameters": optax.tree.norm(meta_params)}


def _check_validation(found):
    if "loss" not in found:
        raise ValueError(
            "`validate` must return a `loss`, which determines the best state, got "
            f"{sorted(found)}."
        )
    return found


def _check_finite(numbers, step, files):
    wrong = {k: float(x) for k, x in numbers.items() if not math.isfinite(x)}
    if wrong:
        name = "loss" if "loss" in wrong else min(wrong)
        raise DivergedError(
            f"The training {name} is {wrong[name]} at step {step}. Lower the inner or "
            "outer learning rate, or clip gradients; in an inner loop use `jaxmeta."
            "optimizers.clip_by_global_norm`, because optax rules with norms or roots "
            "of gradients may have no derivative at zero (check yours with `jaxmeta."
            f"testing.check_inner_tx`).{files}"
        )
