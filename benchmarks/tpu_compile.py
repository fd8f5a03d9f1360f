"""Meta-steps compiled for TPUs, without one: memory, collectives, cycles.

    pip install 'jaxmeta[tpu]'  # Linux
    python -m benchmarks.tpu_compile [--quick]

The compiler is libtpu's, the chips are descriptions. Everything at small size for four
v5e chips; at full size (Omniglot on the device, Conv4 with 64 filters; the LSTM
optimizer) for v5e, v5p and v6e, up to 256 chips, always with the same tasks a chip,
and once with four times as many. Deep networks get a task a chip, on 1 to 64 chips.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # There is no TPU to ask.
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import jaxmeta as jm
from benchmarks import _timing, learner_costs

RESULTS = pathlib.Path(__file__).parent / "results" / "tpu_compile.json"
SMALL = "v5e:2x2"
FULL = (
    "v5e:2x2",
    "v5e:4x4",
    "v5e:16x16",
    "v5p:2x2x1",
    "v5p:4x8x8",
    "v6e:2x2",
    "v6e:16x16",
)
# Of deep networks: (chips, parts of the meta-parameters).
DEEP = (("v5e:1x1", 1), ("v5e:2x2", 1), ("v5e:2x2", 4), ("v5e:8x8", 1), ("v5e:8x8", 4))
KEPT = "maml, VGG-16, 5 steps, nothing recomputed"
COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|"
    "collective-broadcast"
)
TASKS_PER_CHIP = 8

# (mesh, tasks a chip) -> train step
Case = Callable[[Any, int], jm.training.TrainStep]


def small_cases() -> dict[str, Case]:
    """Every learner, and every learned optimizer and estimator for them."""
    learners = {
        name: learner
        for name, learner in learner_costs.learners(filters=8).items()
        if not re.fullmatch(r"imaml, \d+ steps", name)
    }
    cases = {name: _learner_case(x, classes=20) for name, x in learners.items()}
    env = jm.rl.navigation(horizon=10)
    policy = jm.rl.gaussian_policy(jm.models.MLP([16, 2]))
    policy_learner = jm.rl.maml(env, policy, inner_tx=optax.sgd(0.1), num_episodes=4)
    cases["rl.maml"] = lambda mesh, tasks: _over_tasks(
        policy_learner, env.sample_task, mesh, tasks
    )
    problem = jm.problems.quadratics(dim=4)
    optimizers = {
        "lstm": jm.optimizers.lstm(8),
        "lstm_gac": jm.optimizers.lstm_gac(8),
        "ntm_bfgs": jm.optimizers.ntm_bfgs(8),
        "rnnprop": jm.optimizers.rnnprop(8),
        "mlp": jm.optimizers.mlp(),
        "meta_lstm": jm.optimizers.meta_lstm(8),
        "learned_sgd": jm.optimizers.learned_sgd(),
        "learned_rate": jm.optimizers.learned_rate(optax.sgd),
    }
    for name, lopt in optimizers.items():
        cases[f"optimizers.{name}"] = _optimizer_case(lopt, problem)
    lstm = optimizers["lstm"]
    for make in (jm.estimators.bptt, jm.estimators.es):
        cases[f"estimators.{make.__name__}"] = _optimizer_case(
            lstm, problem, make, horizon=10
        )
    cases["estimators.pes"] = _optimizer_case(lstm, problem, jm.estimators.pes)
    return cases


def full_cases() -> dict[str, Case]:
    """What is trained: the paper's Omniglot networks and optimizer."""
    net = jm.models.Conv4(64, strided=True)
    entropy, inner_tx = jm.losses.cross_entropy, optax.sgd(0.4)
    maml = jm.maml(net, entropy, inner_tx=inner_tx, inner_steps=1)
    embedding = jm.models.Conv4(64, head=None)
    network = jm.models.MLP([20, 10], activation=jax.nn.sigmoid)
    images = np.zeros((60_000, 28 * 28), np.uint8)
    digits = jm.problems.classification(
        images, np.zeros(60_000, np.int32), network, batch_size=128
    )
    return {
        "maml, Conv4": _learner_case(maml),
        "prototypical, Conv4": _learner_case(jm.prototypical(embedding)),
        "optimizers.lstm, MLP on MNIST": _optimizer_case(
            jm.optimizers.lstm(20), digits, unroll=20, horizon=100
        ),
    }


def deep_cases() -> dict[str, Case]:
    """A VGG of 16 layers on CIFAR's images, a ResNet of 12 on mini-ImageNet's."""
    options = {"inner_tx": optax.sgd(0.01), "inner_steps": 5}
    maml = lambda hvp: jm.maml(
        jm.models.VGG16(head=5), jm.losses.cross_entropy, hvp=hvp, **options
    )
    prototypical = jm.prototypical(jm.models.ResNet12(head=None))
    small, large = (
        {"classes": 64, "shape": (size, size, 3), "queries": 5} for size in (32, 84)
    )
    return {
        "maml, VGG-16, 5 steps": _learner_case(maml("auto"), **small),
        KEPT: _learner_case(maml("reverse-over-reverse"), **small),
        "prototypical, ResNet-12": _learner_case(prototypical, **large),
    }


def _learner_case(learner, classes=1200, shape=(28, 28, 1), queries=1):
    # Zeros: only shapes matter here.
    images = np.zeros((classes, 20, *shape), np.uint8)
    sample_task = jm.tasks.few_shot(
        jm.tasks.image_classes(images), ways=5, shots=1, queries=queries
    )
    return lambda mesh, tasks: _over_tasks(learner, sample_task, mesh, tasks)


def _over_tasks(learner, sample_task, mesh, tasks):
    estimator = jm.estimators.over_tasks(
        learner, sample_task, num_tasks=tasks * mesh.size, mesh=mesh
    )
    shardings = None
    if "params" in mesh.axis_names:
        outputs = PartitionSpec(None, None, None, "params")
        shardings = jm.training.shard_params(mesh, {"(Block|Layer).*kernel": outputs})
    return jm.training.make_train_step(estimator, optax.adam(1e-3), shardings=shardings)


def _optimizer_case(lopt, problem, make=jm.estimators.truncated_bptt, **options):
    options = options or {"unroll": 5, "horizon": 10}

    def train_step(mesh, tasks):
        estimator = make(
            lopt, problem, num_problems=tasks * mesh.size, mesh=mesh, **options
        )
        return jm.training.make_train_step(estimator, optax.adam(1e-3))

    return train_step


def compile_for(
    case: Case, topology: str, tasks: int, parts: int = 1
) -> dict[str, Any]:
    """Compiles a meta-step for chips that are not there."""
    from jax.experimental import topologies

    # One chip is a host of its own; otherwise a host has 2 x 2.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if topology == "v5e:1x1" else {}
    chips = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **alone
    )
    mesh = jm.training.task_mesh(chips.devices, param_shards=parts)
    train_step = case(mesh, tasks)
    state = jax.eval_shape(train_step.init, jax.random.key(0))
    # Where `init` puts things: compiled too, for it tells.
    everywhere = NamedSharding(mesh, PartitionSpec())
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=everywhere)
    places = jax.jit(train_step.init).lower(key).compile().output_shardings
    place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
    state = jax.tree.map(place, state, places)
    step = jax.tree.map(lambda x: place(x, everywhere), train_step.step)

    start = time.perf_counter()
    meta_step = jax.jit(lambda step, state: step(state), donate_argnums=1)
    compiled = meta_step.lower(step, state).compile()
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    exchanged = re.findall(rf"= (.*?) (?:{COLLECTIVES})(?:-start)?\(", text)
    cycles = re.findall(r'"estimated_cycles":"(\d+)"', text)
    return {
        "topology": topology,
        "chips": mesh.size,
        "parts": parts,
        "tasks": tasks * mesh.size,
        "compile_s": round(seconds, 1),
        "argument_mib": memory.argument_size_in_bytes / 2**20,
        "temp_mib": memory.temp_size_in_bytes / 2**20,
        "collectives": len(exchanged),
        "collective_bytes": sum(map(_bytes, exchanged)),
        # Loops' bodies once, however often they run.
        "megacycles": sum(map(int, cycles)) / 1e6,
        "gflop": compiled.cost_analysis()["flops"] / 1e9,
    }


def _bytes(shapes: str) -> int:
    """Bytes of the arrays that an HLO instruction returns, "f32[3,4]{1,0}" and such."""
    total = 0
    for dtype, sizes in re.findall(r"([a-z]+\d+|pred)\[([\d,]*)\]", shapes):
        width = 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8
        total += width * int(np.prod([int(n) for n in sizes.split(",") if n]))
    return total


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table."""
    lines = [
        "| meta-step | chips | tasks | MiB a chip: arguments, temporaries | "
        "collective bytes | Mcycles, loops once | compile, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = f"{row['argument_mib']:.1f}, {row['temp_mib']:.1f}"
        parts = f", {row['parts']} parts" if row.get("parts", 1) > 1 else ""
        lines.append(
            f"| {row['case']} | {row['topology']}{parts} | {row['tasks']} | {memory} | "
            f"{row['collective_bytes']:,} in {row['collectives']} | "
            f"{row['megacycles']:.2f} | {row['compile_s']:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes alone")
    parser.add_argument("--only", nargs="*", help="cases whose names begin so")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    runs = [(name, case, SMALL, 1) for name, case in small_cases().items()]
    if not args.quick:
        sizes = [(topology, TASKS_PER_CHIP) for topology in FULL]
        sizes.append((SMALL, 4 * TASKS_PER_CHIP))
        runs += [(*case, *size) for case in full_cases().items() for size in sizes]
        runs += [
            (*case, topology, 1, parts)
            for case in deep_cases().items()
            for topology, parts in DEEP
        ]
    rows = []
    if args.only and args.out.exists():
        rows = json.loads(args.out.read_text())["rows"]
    for name, case, *size in runs:
        if args.only and not name.startswith(tuple(args.only)):
            continue
        with contextlib.ExitStack() as stack:
            if name == KEPT:
                plain = mock.patch.object(jax, "checkpoint", lambda fn, **_: fn)
                stack.enter_context(plain)
            row = {"case": name} | compile_for(case, *size)
        same = lambda other, row=row: all(
            other.get(k, 1) == row[k] for k in ("case", "topology", "tasks", "parts")
        )
        rows = [other for other in rows if not same(other)] + [row]
        print(json.dumps(row), flush=True)
        packages = (*_timing.PACKAGES, "libtpu")
        result = {"environment": _timing.environment(packages), "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
