"""Processes on this machine that train together, over loopback."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from jaxmeta import cli
from jaxmeta.cli import _joining

TRAIN = "train maml-sinusoid --hidden 8 8 --num-tasks 8 --validation-tasks 6"
TRAIN += " --test-tasks 6 --log-every 5 --validate-every 5"


def _start(out, num_processes, ids, *options, steps=5, cores=1):
    """Starts some processes of a run; returns them and their port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jaxmeta", *TRAIN.split(), "--out", str(out)]
    command += ["--steps", str(steps), *options]
    joined = ["--coordinator", f"127.0.0.1:{port}", "--num-processes"]
    joined += [str(num_processes), "--process-id"]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(cores), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = []
    for i in ids:
        together = [*joined, str(i)] if num_processes > 1 else []
        started.append(subprocess.Popen(command + together, env=env, **pipes))
    return started, port


def _train(out, num_processes, steps, cores=1):
    """Runs the command line in some processes; returns what the first one printed."""
    together, _ = _start(
        out, num_processes, range(num_processes), steps=steps, cores=cores
    )
    said = [process.communicate(timeout=300) for process in together]
    for process, (_, errors) in zip(together, said, strict=True):
        assert process.returncode == 0, errors
    return said[0][0]


def _records(out: pathlib.Path):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: x for k, x in r.items() if k != "seconds"} for r in records]


def _as_if_interrupted(out: pathlib.Path, steps):
    """Makes a run one of more steps that was stopped on the way."""
    (out / "summary.json").unlink()
    config = json.loads((out / "config.json").read_text())
    config["recipe"]["steps"] = steps
    (out / "config.json").write_text(json.dumps(config))


def _wait_for(path, text):
    while not (path.exists() and text in path.read_text()):
        time.sleep(0.01)


def test_a_process_that_never_comes_is_named(tmp_path):
    (process,), port = _start(tmp_path / "run", 2, [0], "--join-timeout", "4")
    # Meanwhile it listens where it was told, and nowhere else.
    while process.poll() is None:
        with contextlib.suppress(ConnectionError):
            socket.create_connection(("127.0.0.1", port)).close()
            break
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.2", port))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "not all processes have joined within 4 seconds" in said


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_one_step(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _train(whole, 2, steps=50)
    together, _ = _start(parts, 2, [0, 1], steps=50)
    _wait_for(parts / "metrics.jsonl", '"step": 5,')
    together[1].send_signal(signal.SIGTERM)
    for process in together:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 143, said
    assert _records(parts) != _records(whole)
    _train(parts, 2, steps=50)
    assert _records(parts) == _records(whole)


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("INTERNAL: NCCL operation failed: remote process exited", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 2 bytes", False),
    ],
)
def test_what_a_lost_process_says_ends_the_others(
    message, is_lost, monkeypatch, capsys
):
    codes, left = [], []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: left.append(1))
    with (
        pytest.raises(jax.errors.JaxRuntimeError),
        _joining.leaving("10.0.0.1:1234"),
    ):
        raise jax.errors.JaxRuntimeError(message)
    assert codes == [1] * is_lost and left == [1]
    assert ("another process of the run" in capsys.readouterr().err) == is_lost


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on(tmp_path):
    printed = _train(tmp_path / "two", 2, steps=5)
    assert "5 meta-steps in" in printed
    _as_if_interrupted(tmp_path / "two", steps=10)
    _train(tmp_path / "two", 1, steps=10)
    _train(tmp_path / "one", 1, steps=10, cores=2)
    together, alone = (_records(tmp_path / name) for name in ("two", "one"))
    assert [r["step"] for r in together] == [1, 5, 10]
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--process-id 0",
            "`--coordinator` HOST:PORT of the first process is required",
        ),
        ("--coordinator h:1", "also needs --num-processes and --process-id"),
        ("--coordinator h:1 --process-id 0", "also needs --num-processes"),
        ("--coordinator h --num-processes 1 --process-id 0", "must be HOST:PORT"),
        ("--coordinator h:x --num-processes 1 --process-id 0", "must be HOST:PORT"),
        ("--coordinator h:70000 --num-processes 1 --process-id 0", "got 'h:70000'"),
    ],
)
def test_processes_that_are_not_told_enough(options, message, tmp_path, capsys):
    argv = [*TRAIN.split(), "--out", str(tmp_path / "run"), *options.split()]
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_named(tmp_path, capsys):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        options = f"--coordinator localhost:{port} --num-processes 1 --process-id 0"
        argv = [*TRAIN.split(), "--out", str(tmp_path / "run"), *options.split()]
        assert cli.main(argv) == 2
    assert f"cannot listen on port {port}" in capsys.readouterr().err
