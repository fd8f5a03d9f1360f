"""Runs that a signal stops: they save the meta-step that they are at."""

import functools
import os
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import jaxmeta as jm
from jaxmeta.training import _interruption
from tests._learners import maml, regression_task

LEARNER = maml()
NUM_STEPS = 20


def _train_step(seen=lambda step: None):
    """A step that calls `seen` when it is made."""
    estimator = jm.estimators.over_tasks(LEARNER, regression_task, num_tasks=2)
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-2))

    def seen_step(step, state):
        jax.debug.callback(lambda n: seen(int(n)), state.step)
        return step(state)

    return jm.training.TrainStep(init, Partial(seen_step, step))


def _fit(directory, train_step=None, num_steps=NUM_STEPS, **options):
    options = {
        "log_every": 5,
        "validate_every": 10,
        "validate": lambda params: {"loss": float(optax.tree.norm(params))},
    } | options
    return jm.training.fit(
        train_step or _train_step(),
        num_steps=num_steps,
        key=jax.random.key(3),
        directory=directory,
        **options,
    )


def _records(directory):
    records = jm.training.read_metrics(directory / "metrics.jsonl")
    return [r | {"seconds": None} for r in records]


def _assert_equal(result, directory, whole, whole_directory):
    chex.assert_trees_all_equal(result.state, whole.state)
    chex.assert_trees_all_equal(result.best, whole.best)
    assert _records(directory) == _records(whole_directory)


@pytest.fixture
def often(monkeypatch):
    """Runs look for signals after each meta-step."""
    monkeypatch.setattr(_interruption, "SECONDS", 0.0)


def test_no_meta_step_is_lost_or_made_twice(often, tmp_path):
    whole = _fit(tmp_path / "whole")
    made = []
    # The first meta-step; between two records; at a record; at a checkpoint.
    stops = {0: signal.SIGTERM, 2: signal.SIGINT, 4: signal.SIGTERM, 9: signal.SIGINT}

    def seen(step):
        made.append(step)
        if step in stops:
            os.kill(os.getpid(), stops[step])

    train_step = _train_step(seen)
    for signum in stops.values():
        error = KeyboardInterrupt if signum == signal.SIGINT else SystemExit
        with pytest.raises(error) as raised:
            _fit(tmp_path / "parts", train_step)
        assert getattr(raised.value, "code", 143) == 143
    result = _fit(tmp_path / "parts", train_step)
    assert sorted(made) == list(range(NUM_STEPS))
    _assert_equal(result, tmp_path / "parts", whole, tmp_path / "whole")
    assert not (tmp_path / "parts" / "checkpoints" / "interrupted").exists()


def test_a_stream_goes_on_where_it_was_stopped(often, tmp_path):
    def read(start, stop_at):
        for step in range(start, NUM_STEPS + 10):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(5), step), 2)
            yield jax.tree.map(np.asarray, jax.vmap(regression_task)(keys))

    def fit(directory, stop_at=None):
        example = regression_task(jax.random.key(0))
        read_from = functools.partial(read, stop_at=stop_at)
        stream = jm.TaskStream(2, example, read_from)
        estimator = jm.estimators.over_stream(LEARNER, stream)
        train_step = jm.training.make_train_step(estimator, optax.adam(1e-2))
        return _fit(directory, train_step, stream=stream)

    whole = fit(tmp_path / "whole")
    for stop_at in (5, 16):
        with pytest.raises(SystemExit):
            fit(tmp_path / "parts", stop_at)
    result = fit(tmp_path / "parts")
    _assert_equal(result, tmp_path / "parts", whole, tmp_path / "whole")


def test_a_validation_is_finished(tmp_path):
    whole = _fit(tmp_path / "whole")
    validated = []

    def validate(params):
        validated.append(params)
        if len(validated) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return {"loss": float(optax.tree.norm(params))}

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "parts", validate=validate)
    result = _fit(tmp_path / "parts", validate=validate)
    assert len(validated) == 2
    _assert_equal(result, tmp_path / "parts", whole, tmp_path / "whole")


def test_a_second_signal_raises_at_once(tmp_path):
    def validate(params):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.1 * _interruption.SAME_SIGNAL)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("The second signal should have ended this.")

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, validate=validate)


def test_without_a_directory_signals_are_as_ever():
    before = [signal.getsignal(signum) for signum in _interruption.SIGNALS]

    def validate(params):
        assert [signal.getsignal(signum) for signum in _interruption.SIGNALS] == before
        return {"loss": 0.0}

    _fit(None, validate=validate)


def test_handlers_of_the_program_are_left_alone(tmp_path):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        train_step = _train_step(
            lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None
        )
        _fit(tmp_path, train_step)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [1]


@pytest.mark.parametrize("num_steps", [10, 13])
def test_the_last_validation_is_made_again(num_steps, tmp_path):
    def validate(params):
        assert _interruption.save_unsaved()  # As the thread of the command line does.
        raise SystemExit

    with pytest.raises(SystemExit):
        _fit(
            tmp_path / "parts",
            num_steps=num_steps,
            validate_every=15,
            validate=validate,
        )
    made = []
    train_step = _train_step(made.append)
    result = _fit(tmp_path / "parts", train_step, num_steps, validate_every=15)
    assert not made
    whole = _fit(tmp_path / "whole", num_steps=num_steps, validate_every=15)
    _assert_equal(result, tmp_path / "parts", whole, tmp_path / "whole")


# XLA's loop does not return to Python, where handlers run.
_VALIDATING_FOREVER = """
import pathlib, signal, sys
import jax
from jaxmeta.cli import _deadline
from tests.training import test_interruption as test

def validate(params):
    print("validating", flush=True)
    forever = lambda n: jax.lax.while_loop(lambda i: i >= 0, lambda i: (i + 1) % 9, n)
    return {"loss": float(jax.jit(forever)(jax.numpy.zeros((), int)))}

_deadline.GRACE = 0.5
with _deadline.deadline():
    test._fit(pathlib.Path(sys.argv[1]), validate=validate)
"""


def test_a_long_validation_is_cut_short_after_saving(tmp_path):
    command = [sys.executable, "-c", _VALIDATING_FOREVER, str(tmp_path / "parts")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"validating\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"jaxmeta: terminated; rerun the command to resume." in said
    made = []
    result = _fit(tmp_path / "parts", _train_step(made.append))
    assert sorted(made) == list(range(10, NUM_STEPS))
    whole = _fit(tmp_path / "whole")
    _assert_equal(result, tmp_path / "parts", whole, tmp_path / "whole")
