"""The training loop: chunks of compiled meta-steps, metrics, checkpoints, resuming."""

import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta import _checks, base
from jaxmeta.training import _interruption, _run_files, _streamed_steps
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
    catches = directory is not None  # Without one, there is nothing to save.
    with (
        _run_files.RunFiles(directory) as files,
        _interruption.Interruption(catches=catches) as interruption,
    ):
        state = jax.jit(train_step.init)(key)
        state, best, best_loss, unrecorded = files.resume(state)
        totals, seconds = unrecorded["totals"], unrecorded["seconds"]
        if stream is None:
            run_piece = _piece_runner(train_step.step, state)
        else:
            run_piece = _streamed_steps.piece_runner(stream, int(state.step), _totals)

        def save_unrecorded():
            files.save_unrecorded(state, {"totals": totals, "seconds": seconds})
            return True

        def finish_record():
            """Makes the record of the meta-steps since the last one."""
            nonlocal best, best_loss, totals, seconds
            step = int(state.step)
            record = {"step": step} | _means(totals)
            _check_finite(record, step, files)
            _check_excluded(record, step, files)
            due = step % validate_every == 0 or step == num_steps
            if due:
                _check_finite(_norm(state.meta_params), step, files)
            is_best = False
            if due and validate is not None:
                if jax.process_count() == 1:
                    _interruption.at_deadline(save_unrecorded)
                found = _check_validation(validate(state.meta_params))
                record |= {f"validation_{name}": float(x) for name, x in found.items()}
                is_best = record["validation_loss"] < best_loss
                if is_best:
                    best_loss = record["validation_loss"]
                    # The next piece donates `state`.
                    best = _copy(state)
                _interruption.at_deadline(lambda: False)
            record["seconds"] = seconds
            totals, seconds = None, 0.0
            files.append(record)
            if due:
                files.save(state, best_loss if is_best else math.inf)
                _interruption.at_deadline(lambda: True)
            if report is not None:
                report(record)
            return due

        def out_of_patience():
            if patience is None:
                return False
            best_step = 0 if best is None else int(best.step)
            return int(state.step) - best_step >= patience * validate_every

        step = int(state.step)
        if totals is not None and (step % log_every == 0 or step == num_steps):
            finish_record()  # It was interrupted while validating.
        has_trimmed = False
        while (step := int(state.step)) < num_steps and not out_of_patience():
            start = time.perf_counter()
            # An extended run may start between two records. The first one is of one
            # meta-step, for early feedback.
            length = min(log_every - step % log_every, num_steps - step) if step else 1
            is_recorded = length <= interruption.steps_left
            length = min(length, interruption.steps_left)
            state, totals = run_piece(train_step.step, state, totals, length)
            totals = jax.device_get(totals)  # Waits.
            _interruption.at_deadline(lambda: False)
            if not has_trimmed:  # After compiling.
                has_trimmed = True
                trim_memory()
            seconds += time.perf_counter() - start
            is_saved = finish_record() if is_recorded else False
            if interruption.is_due(length):
                if not is_saved:
                    _check_finite(_means(totals or {}), int(state.step), files)
                    save_unrecorded()
                _interruption.end(interruption.signum)
        stopped_early = int(state.step) < num_steps
        return FitResult(state, state if best is None else best, stopped_early)


def _piece_runner(step, state):
    """Returns `(step, state, totals, length) -> (state, totals)`, compiled once.

    The length is an argument of the compiled loop. Totals come from the host and return
    there: on devices, their sharding would change after the first call.
    """
    one_step = jax.jit(lambda step, state: step(state))  # Traced once for both uses.
    _, info = jax.eval_shape(one_step, step, state)
    zeros = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(_totals, info)
    )

    @functools.partial(jax.jit, donate_argnums=1)
    def run(step, state, totals, length):
        def body(_, carry):
            state, totals = carry
            state, info = one_step(step, state)
            return state, jax.tree.map(jnp.add, totals, _totals(info))

        return jax.lax.fori_loop(0, length, body, (state, totals))

    def run_piece(step, state, totals, length):
        if totals is None:
            totals = zeros
        totals = jax.tree.map(lambda x, zero: np.asarray(x, zero.dtype), totals, zeros)
        return run(step, state, totals, length)

    return run_piece


def _totals(info: base.Info):
    """Sum and count of each metric over tasks."""
    _checks.check_metric_names(info.metrics)
    values = {"loss": info.loss, **info.metrics}
    is_valid = jnp.broadcast_to(info.is_valid, jnp.shape(info.loss))
    total = lambda x: [jnp.sum(jnp.where(is_valid, x, 0)), jnp.sum(is_valid)]
    totals = {name: total(x) for name, x in values.items()}
    if info.is_valid is not True:  # Also report the share of excluded entries.
        totals["excluded"] = [jnp.sum(~is_valid), jnp.array(is_valid.size)]
    return totals


def _means(totals):
    return {
        name: float(total) / float(count) if count else math.nan
        for name, (total, count) in totals.items()
    }


@jax.jit
def _copy(tree):
    """In one program: one for each leaf would fill the devices' queues."""
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _norm(meta_params):
    return {"norm of the meta-parameters": optax.tree.norm(meta_params)}


_ADVICE = (
    "Lower the inner or outer learning rate, or clip gradients; in an inner loop use "
    "`jaxmeta.optimizers.clip_by_global_norm` and its `adam`, because optax rules with "
    "norms or roots of gradients may have no derivative at zero (check yours with "
    "`jaxmeta.testing.check_inner_tx`)."
)


def _check_excluded(record, step, files):
    """Warns if tasks are excluded; ends the run once they are the half of a record."""
    share = record.get("excluded", 0.0)
    what = f"of the tasks or runs before step {step} had a non-finite loss or gradient"
    if share >= 0.5 and step > 1:  # The first record is of one meta-step.
        raise DivergedError(
            f"{share:.0%} {what} and were excluded from the mean. {_ADVICE}{files}"
        )
    if share >= 0.01:
        warnings.warn(
            f"{share:.1%} {what} and were excluded from the mean (`excluded` in the "
            "records).",
            stacklevel=3,
        )


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
            f"The training {name} is {wrong[name]} at step {step}. {_ADVICE}{files}"
        )
