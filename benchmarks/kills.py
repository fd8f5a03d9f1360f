"""Runs that are killed again and again: do they end as one that was not?

    python -m benchmarks.kills [--kills 20] [--kinds learner stream]

Six kinds of run: a learner, one in bfloat16, a learned optimizer, a policy, two
processes that train together, and tasks from a stream. Each is run once in peace. Then
it is killed by the system (SIGKILL) and started again, `--kills` times: at random, and
on purpose while it writes a checkpoint, validates, tests or draws. Every run that ends
must have the parameters, records and summary of the one in peace, bit for bit. With
`--signal TERM` the runs are asked to end instead, and must do so within ten seconds.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

import jaxmeta as jm
from benchmarks import _timing

PACKAGES = ("jaxmeta", "jax", "jaxlib", "orbax-checkpoint")
RESULTS = pathlib.Path(__file__).parent / "results" / "kills.json"
SMALL = "--validation-tasks 20 --test-tasks 20 --num-tasks 4 "
RECIPES = {
    "learner": "maml-sinusoid --steps 20000 --log-every 500 --validate-every 2000 "
    "--hidden 8 8 " + SMALL,
    "bfloat16": "maml-sinusoid --steps 20000 --log-every 500 --validate-every 2000 "
    "--hidden 8 8 --compute-dtype bfloat16 " + SMALL,
    "learned optimizer": "lstm-quadratic --steps 2000 --log-every 50 --validate-every "
    "200 --hidden-size 8 --num-problems 4 --validation-problems 20 --test-problems 20",
    "policy": "maml-navigation --steps 300 --log-every 10 --validate-every 50 "
    "--horizon 20 --hidden 8 8 --num-episodes 4 --test-episodes 4 " + SMALL,
    "two processes": "maml-sinusoid --steps 8000 --log-every 250 --validate-every 1000 "
    "--hidden 8 8 " + SMALL,
}
KINDS = (*RECIPES, "stream")
STREAM_STEPS = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--stream", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        train_on_stream(args.stream)
        return
    signum = signal.Signals[f"SIG{args.signal}"]
    rng = random.Random(args.seed)
    rows = []
    for kind in args.kinds:
        rows.append(measure(kind, args.kills, signum, rng))
        print(json.dumps(rows[-1]), flush=True)
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    result["environment"] = _timing.environment(PACKAGES)
    result[args.signal] = rows
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(kind: str, kills: int, signum: int, rng: random.Random) -> dict[str, Any]:
    """Kills a kind of run until it is enough, then compares what it became."""
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = pathlib.Path(folder, "whole"), pathlib.Path(folder, "parts")
        start(kind, whole)  # Compiles, for the time to be that of a later start.
        shutil.rmtree(whole)
        began = time.monotonic()
        start(kind, whole)
        seconds = time.monotonic() - began
        expected = outcome(whole)
        moments: collections.Counter[str] = collections.Counter()
        compared, different, longest = 0, [], 0.0
        while moments.total() < kills or parts.exists():
            if moments.total() < kills:
                killed = kill(kind, parts, signum, seconds, rng)
                if killed is not None:
                    moments[killed[0]] += 1
                    longest = max(longest, killed[1])
                    continue
            else:
                start(kind, parts)
            found = outcome(parts)
            compared += 1
            different += [name for name in expected if found[name] != expected[name]]
            shutil.rmtree(parts)
    return {
        "kind": kind,
        "kills": moments.total(),
        "moments": dict(moments),
        "runs_compared": compared,
        "different": different,
        "seconds_to_end": round(longest, 1),
    }


def commands(kind: str, out: pathlib.Path) -> list[list[str]]:
    """The command of each process of a run."""
    if kind == "stream":
        return [[sys.executable, "-m", "benchmarks.kills", "--stream", str(out)]]
    train = [sys.executable, "-m", "jaxmeta", "train", *RECIPES[kind].split()]
    train += ["--out", str(out)]
    if kind != "two processes":
        return [train]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
    return [[*train, *together, "--process-id", str(i)] for i in range(2)]


def launch(kind: str, out: pathlib.Path) -> list[subprocess.Popen[bytes]]:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in commands(kind, out)
    ]


def start(kind: str, out: pathlib.Path) -> None:
    """Starts or resumes a run, which must end well."""
    codes = [process.wait() for process in launch(kind, out)]
    if any(codes):
        raise RuntimeError(f"{kind} ended with {codes} in {out}.")


def kill(
    kind: str, out: pathlib.Path, signum: int, seconds: float, rng: random.Random
) -> tuple[str, float] | None:
    """Starts a run and kills it.

    Returns:
      At which moment, and the seconds until it ended; None if it was faster.
    """
    processes = launch(kind, out)
    moment = rng.choice([*MOMENTS, "at random", "at random"])
    deadline = time.monotonic() + rng.uniform(0.1, 1.0) * seconds
    has_come = MOMENTS.get(moment, lambda _: time.monotonic() > deadline)
    while not has_come(out):
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.001)
    # Of two processes, one or both.
    victims = rng.sample(processes, rng.randint(1, len(processes)))
    began = time.monotonic()
    for process in victims:
        process.send_signal(signum)
    codes = [process.wait() for process in processes]
    if not any(codes):
        return None
    # While Python starts, the system ends it: a shell sees the same code.
    wanted = {0, -signum} if signum == signal.SIGKILL else {0, -signum, 128 + signum}
    if not {process.returncode for process in victims} <= wanted:
        raise RuntimeError(f"{kind} ended with {codes} in {out}.")
    return moment, time.monotonic() - began


def _writes_checkpoint(out: pathlib.Path) -> bool:
    return any((out / "checkpoints").glob("*tmp*"))


def _validates(out: pathlib.Path) -> bool:
    """Whether the next record is one with a validation, as every fourth or so is."""
    path = out / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") % 4 == 0


def _tests(out: pathlib.Path) -> bool:
    """Whether the last record is made."""
    path, config, steps = out / "metrics.jsonl", out / "config.json", STREAM_STEPS
    if config.exists():
        steps = json.loads(config.read_text())["recipe"]["steps"]
    return path.exists() and f'"step": {steps},'.encode() in path.read_bytes()


def _draws(out: pathlib.Path) -> bool:
    return (out / "plots").exists() or (out / "summary.json").exists()


MOMENTS = {
    "writing a checkpoint": _writes_checkpoint,
    "near a validation": _validates,
    "testing": _tests,
    "drawing": _draws,
}


def outcome(out: pathlib.Path) -> dict[str, Any]:
    """What of a finished run must not depend on kills."""
    records = jm.training.read_metrics(out / "metrics.jsonl")
    found: dict[str, Any] = {
        "records": [record | {"seconds": None} for record in records],
        "parameters": dict(_parameters(out / "checkpoints")),
    }
    if (out / "summary.json").exists():
        summary = json.loads((out / "summary.json").read_text())
        found["summary"] = summary | {"train_seconds": None, "date": None}
        found["drawn"] = sorted(path.name for path in (out / "plots").glob("*"))
    return found


def _parameters(checkpoints: pathlib.Path) -> Iterator[tuple[str, str]]:
    """The last state and the best one, as digests."""
    as_numpy = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
    for path in sorted(checkpoints.iterdir()):
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path / "default").item_metadata.tree
            state = checkpointer.restore(
                path / "default", restore_args=jax.tree.map(as_numpy, tree)
            )
        for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
            name = f"{path.name}{jax.tree_util.keystr(keys)}"
            yield name, hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()


def train_on_stream(out: pathlib.Path) -> None:
    """A program of a user's: `fit` over a stream of their images."""
    classes = np.random.default_rng(0).normal(size=(30, 1, 8))
    images = classes + np.random.default_rng(1).normal(size=(30, 10, 8))
    images, labels = images.reshape(300, 8).astype(np.float32), np.arange(300) // 10
    stream = jm.tasks.stream_few_shot(
        images, labels, ways=5, shots=1, queries=3, num_tasks=4, num_threads=2
    )
    learner = jm.maml(
        jm.models.MLP([16, 5]),
        jm.losses.cross_entropy,
        inner_tx=optax.sgd(0.1),
        inner_steps=2,
    )
    estimator = jm.estimators.over_stream(learner, stream)
    jm.training.fit(
        jm.training.make_train_step(estimator, optax.adam(1e-3)),
        num_steps=STREAM_STEPS,
        key=jax.random.key(0),
        directory=out,
        log_every=100,
        validate=lambda params: {"loss": float(optax.tree.norm(params))},
        validate_every=500,
        stream=stream,
    )


if __name__ == "__main__":
    main()
