"""Users' networks at their sizes, beside the PyTorch that one would write.

    python -m benchmarks.networks --torch-python VENV/bin/python

Every contestant is a process of its own, pinned to one core. It gets the same weights
and data, must agree in loss and gradient norm before anything is timed, and then makes
one step whenever it is told to: the contestants of a row take turns, so that a busy
moment meets all of them. Memory is what a process holds at most while it makes steps,
after compiling.
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _timing

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = pathlib.Path(__file__).parent / "results" / "networks.json"
# `BACKPROPAGATION=whole` turns the replay in blocks off.
OURS = {
    "jaxmeta": {},
    "jaxmeta, wide vectors": {"XLA_FLAGS": "--xla_cpu_prefer_vector_width=512"},
    "jaxmeta, whole run": {"BACKPROPAGATION": "whole"},
}
LAYOUTS = ["jaxmeta", "channels first", "channels last"]
ROWS = {
    "LSTM optimizer, 20 updates": [*OURS, "loop"],
    "ProtoNet, Conv4, 60 ways": LAYOUTS,
    "ProtoNet, ResNet-12": LAYOUTS,
    "MAML, VGG-16, 1 step": LAYOUTS,
    "MAML, VGG-16, 5 steps": LAYOUTS,
    "MAML, VGG-16, 20 steps": LAYOUTS,
    "MAML, ResNet-12, 5 steps": LAYOUTS,
}
INNER_RATE = 0.001


class Step(NamedTuple):
    """What a contestant has to offer once it is ready."""

    make: Callable[[], Any]  # a blocking step
    loss: float
    norm: float  # of the gradient
    compile_s: float
    temp_bytes: int


def lstm_optimizer(folder: pathlib.Path) -> Step:
    """The first-order meta-gradient through 20 updates of an MNIST network."""
    import jax
    import jax.numpy as jnp
    import optax

    import jaxmeta as jm
    from jaxmeta import _replay

    if os.environ.get("BACKPROPAGATION") == "whole":
        _replay.applies = lambda tx, params, state: False
    draw = np.random.default_rng(0)
    shapes = {"w1": (784, 20), "b1": (20,), "w2": (20, 10), "b2": (10,)}
    params = {k: draw.normal(0, 0.1, s).astype("f") for k, s in shapes.items()}
    images = draw.random((128, 784), dtype="f")
    labels = draw.integers(0, 10, 128)

    def loss(params, instance, key):
        del instance, key
        hidden = jax.nn.sigmoid(images @ params["w1"] + params["b1"][None])
        logits = hidden @ params["w2"] + params["b2"][None]
        return jm.losses.cross_entropy(logits, jax.nn.one_hot(labels, 10))

    problem = jm.OptimizationProblem(
        sample=lambda key: None,
        init=lambda key, instance: jax.tree.map(jnp.asarray, params),
        loss=loss,
    )
    estimator = jm.estimators.bptt(
        jm.optimizers.lstm(),
        problem,
        horizon=20,
        num_problems=1,
        second_order=False,
    )
    theta, carry = estimator.init(jax.random.key(0))
    weights = {
        f"layer{i}_{name}": value
        for i, layer in enumerate((*theta.layers, theta.head))
        for name, value in layer._asdict().items()
    }
    np.savez(folder / "lstm_optimizer.npz", images=images, labels=labels, **params)
    np.savez(folder / "lstm_optimizer_theta.npz", **weights)

    def gradient(theta, carry):
        grads, _, info = estimator.estimate(jax.random.key(0), theta, carry)
        return grads, info.loss[0]

    compiled = _timing.compile_apart(gradient, theta, carry)
    grads, value = compiled.call(theta, carry)
    return Step(
        lambda: jax.block_until_ready(compiled.call(theta, carry)),
        float(value),
        float(optax.tree.norm(grads)),
        compiled.compile_s,
        compiled.temp_bytes,
    )


def protonet(folder: pathlib.Path) -> Step:
    """A step of Adam on an episode: 60 ways, 1 shot, 5 queries, Conv4 with pooling."""
    import jax
    import jax.numpy as jnp
    import optax

    import jaxmeta as jm

    draw = np.random.default_rng(0)
    support, query = (draw.random((60 * n, 28, 28, 1), dtype="f") for n in (1, 5))
    one_hot = np.eye(60, dtype="f")
    task = jm.Task(
        jm.Examples(support, one_hot), jm.Examples(query, np.repeat(one_hot, 5, 0))
    )
    learner = jm.prototypical(jm.models.Conv4(64, head=None))
    params = learner.init(jax.random.key(0), task)
    weights = {}
    for i in range(4):
        block = params["params"][f"Block_{i}"]
        weights[f"kernel{i}"] = block["kernel"]
        weights |= {f"{k}{i}": block["BatchNorm_0"][k] for k in ("scale", "bias")}
    np.savez(folder / "protonet.npz", support=support, query=query, **weights)
    tx = optax.adam(1e-3)

    def step(params, state, task):
        grads, info = learner.meta_grad(jax.random.key(0), params, task)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, info.loss, optax.tree.norm(grads)

    task = jax.tree.map(jnp.asarray, task)
    compiled = _timing.compile_apart(step, params, tx.init(params), task)
    state = [params, tx.init(params)]
    *state, loss, norm = compiled.call(*state, task)

    def make():
        state[:] = jax.block_until_ready(compiled.call(*state, task))[:2]

    return Step(make, float(loss), float(norm), compiled.compile_s, compiled.temp_bytes)


def resnet_episode(folder: pathlib.Path) -> Step:
    """The gradient of an episode: 5 ways, 1 shot, 5 queries of 84x84, ResNet-12."""
    import jaxmeta as jm

    task = episode(folder, size=84, queries=5)
    learner = jm.prototypical(jm.models.ResNet12(head=None, drop_rate=0.0))
    return meta_gradient(learner, task, folder)


def exact_maml(folder: pathlib.Path, network: str, inner_steps: int) -> Step:
    """The exact meta-gradient of a task: 5 ways, 1 shot, 3 queries."""
    import optax

    import jaxmeta as jm

    size, model = {
        "vgg": (32, jm.models.VGG16(head=5)),
        "resnet": (84, jm.models.ResNet12(head=5, drop_rate=0.0)),
    }[network]
    task = episode(folder, size=size, queries=3)
    learner = jm.maml(
        model,
        jm.losses.cross_entropy,
        inner_tx=optax.sgd(INNER_RATE),
        inner_steps=inner_steps,
    )
    return meta_gradient(learner, task, folder)


def meta_gradient(learner: Any, task: Any, folder: pathlib.Path) -> Step:
    """The meta-gradient from an initialisation that PyTorch gets too."""
    import jax
    import jax.numpy as jnp
    import optax

    params = learner.init(jax.random.key(0), task)
    save_weights(folder, params)

    def step(params, task):
        grads, info = learner.meta_grad(jax.random.key(0), params, task)
        return grads, info.loss

    task = jax.tree.map(jnp.asarray, task)
    compiled = _timing.compile_apart(step, params, task)
    grads, loss = compiled.call(params, task)
    return Step(
        lambda: jax.block_until_ready(compiled.call(params, task)),
        float(loss),
        float(optax.tree.norm(grads)),
        compiled.compile_s,
        compiled.temp_bytes,
    )


def episode(folder: pathlib.Path, *, size: int, queries: int) -> Any:
    """A task of 5 ways and 1 shot from random images, saved for PyTorch too."""
    import jaxmeta as jm

    draw = np.random.default_rng(0)
    support, query = (draw.random((5 * n, size, size, 3), "f") for n in (1, queries))
    np.savez(folder / "episode.npz", support=support, query=query)
    one_hot = np.eye(5, dtype="f")
    labels = np.repeat(one_hot, queries, 0)
    return jm.Task(jm.Examples(support, one_hot), jm.Examples(query, labels))


def save_weights(folder: pathlib.Path, params: Any) -> None:
    """Saves "module/submodule/name" -> weights."""
    import flax

    flat = flax.traverse_util.flatten_dict(params["params"], sep="/")
    np.savez(folder / "weights.npz", **flat)


STEPS = {
    "LSTM optimizer, 20 updates": lstm_optimizer,
    "ProtoNet, Conv4, 60 ways": protonet,
    "ProtoNet, ResNet-12": resnet_episode,
    "MAML, VGG-16, 1 step": lambda folder: exact_maml(folder, "vgg", 1),
    "MAML, VGG-16, 5 steps": lambda folder: exact_maml(folder, "vgg", 5),
    "MAML, VGG-16, 20 steps": lambda folder: exact_maml(folder, "vgg", 20),
    "MAML, ResNet-12, 5 steps": lambda folder: exact_maml(folder, "resnet", 5),
}


def serve(step: Step) -> None:
    """Says that it is ready, then makes a step for each line that it is sent."""
    ready = step._asdict() | {"make": None}
    print(json.dumps(ready), flush=True)
    # What `jaxmeta.training.trim_memory` does, which `fit` calls, for PyTorch too.
    ctypes.CDLL(None).malloc_trim(0)
    _timing.reset_peak_memory()
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        step.make()
        seconds = time.perf_counter() - start, time.process_time() - cpu_start
        print(json.dumps([*seconds, _timing.peak_memory()]), flush=True)


class Contestant:
    """A process that makes steps."""

    def __init__(self, row: str, name: str, folder: str, torch_python: str | None):
        program = [sys.executable, "-m", "benchmarks.networks"]
        if name not in OURS:
            program = [str(torch_python), "-m", "benchmarks.peers.torch_networks"]
        self._process = subprocess.Popen(
            [*program, "--serve", row, name, folder],
            cwd=ROOT,
            env=os.environ | OURS.get(name, {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read()
        self.steps: list[list[float]] = []

    def step(self) -> None:
        """Has it make one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.steps.append(self._read())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A contestant ended: {self._process.args}.")
        return json.loads(line)


def measure(row: str, names: Sequence[str], rounds: int, torch_python: str | None):
    """Name -> what was measured of it."""
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            name: Contestant(row, name, folder, torch_python)
            for name in names
            if name in OURS or torch_python
        }
        first = contestants["jaxmeta"].ready
        for name, contestant in contestants.items():
            for what in ("loss", "norm"):
                if not math.isclose(contestant.ready[what], first[what], rel_tol=1e-2):
                    raise RuntimeError(f"{name}: {contestant.ready}, not {first}.")
        for contestant in contestants.values():  # Warms up.
            contestant.step()
        for _ in range(rounds):
            for contestant in contestants.values():
                contestant.step()
        found = {}
        for name, contestant in contestants.items():
            contestant.close()
            wall, cpu, peak = zip(*contestant.steps[1:], strict=True)
            ready = contestant.ready
            found[name] = {
                "median_s": statistics.median(wall),
                "fastest_s": min(wall),
                "median_cpu_s": statistics.median(cpu),
                "resident_mib": peak[-1] / 2**20,
                "temp_mib": ready["temp_bytes"] / 2**20,
                "compile_s": ready["compile_s"],
                "loss": ready["loss"],
                "norm": ready["norm"],
            }
    return found


def table(rows: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    lines = [
        "| step | | seconds | of jaxmeta's | resident, MiB | compile, s |",
        "|---|---|---|---|---|---|",
    ]
    for row, found in rows.items():
        for name, one in found.items():
            ratio = one["median_s"] / found["jaxmeta"]["median_s"]
            who = name if name in OURS else f"PyTorch, {name}"
            lines.append(
                f"| {row} | {who} | {one['median_s']:.3f} | {ratio:.2f} | "
                f"{one['resident_mib']:.0f} | {one['compile_s']:.1f} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        _timing.pin_to_cores(1)
        row, _, folder = args.serve
        serve(STEPS[row](pathlib.Path(folder)))
        return
    rows = {}
    if args.out.exists():
        rows = json.loads(args.out.read_text())["rows"]
    for row in args.only:
        rows[row] = measure(row, ROWS[row], args.rounds, args.torch_python)
        result = {"environment": _timing.environment(), "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
