"""How many environment steps a second does meta-training of policies make?

    python -m benchmarks.policy_step --checkout DIR --peer-python VENV/bin/python

2-D navigation in the setting of pytorch-maml-rl (`benchmarks/peers/pytorch_maml_rl.py`
says which checkout): 20 goals a meta-step, 20 episodes of 100 time steps before and
after one inner step at rate 0.1, tanh layers of 64 and 64, and TRPO with 10
conjugate-gradient steps. Beside it the ProMP update of the recipe `maml-navigation`.
Both use all cores and take turns. Without a checkout only jaxmeta runs.
Counted is what was asked for, 80,000 time steps a meta-step; an episode that reaches
its goal ends earlier, in both.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

import jaxmeta as jm
from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "policy_step.json"
PEER = pathlib.Path(__file__).parent / "peers" / "pytorch_maml_rl.py"
TASKS, EPISODES, HORIZON = 20, 20, 100
ENV_STEPS = 2 * TASKS * EPISODES * HORIZON


def make_train_step(outer: str, mesh) -> Any:
    """The meta-step of one outer update, and its state."""
    env = jm.rl.navigation("released", horizon=HORIZON)
    learner = jm.rl.maml(
        env,
        jm.rl.gaussian_policy(jm.models.MLP([64, 64, 2], activation=nn.tanh)),
        inner_tx=optax.sgd(0.1),
        num_episodes=EPISODES,
        surrogate="log-likelihood" if outer == "trpo" else "low-variance",
    )
    sample_task: Any = env.sample_task
    options = {"num_tasks": TASKS, "mesh": mesh}
    return {
        "trpo": lambda: jm.rl.trpo(learner, sample_task, max_kl=0.01, **options),
        "ppo": lambda: jm.rl.ppo(
            learner, sample_task, outer_tx=optax.adam(1e-3), **options
        ),
    }[outer]()


def ours(outer: str, rounds: int, mesh) -> dict[str, Any]:
    """Seconds of `rounds` meta-steps, the first left out, and of compiling them."""
    train_step = make_train_step(outer, mesh)
    state = jax.jit(train_step.init)(jax.random.key(0))
    compiled = _timing.compile_apart(train_step.step, state)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled.call(state))
        seconds.append(time.perf_counter() - start)
    return {
        "compile_s": compiled.compile_s,
        "temp_bytes": compiled.temp_bytes,
        "seconds": seconds[1:],
    }


def peer(python: str, checkout: pathlib.Path, cores: int, steps: int) -> dict[str, Any]:
    """Runs the other library in its own interpreter, a worker a core."""
    command = [python, PEER, checkout, f"--workers={cores}", f"--steps={steps}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # The workers are the cores.
    found = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    (line,) = (x for x in found.stdout.splitlines() if x.startswith("report:"))
    return json.loads(line.removeprefix("report:"))


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="meta-steps a turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--peer-steps", type=int, default=3, help="meta-steps a turn")
    parser.add_argument("--checkout", type=pathlib.Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    jm.training.use_cpu_devices(cores)
    mesh = jm.training.task_mesh()
    turns: dict[str, list[dict[str, Any]]] = {"trpo": [], "ppo": []}
    for _ in range(args.turns):
        for outer in ("trpo", "ppo"):
            turns[outer].append(ours(outer, args.rounds, mesh))
            print(outer, turns[outer][-1], flush=True)
        if args.checkout:
            found = peer(args.peer_python, args.checkout, cores, args.peer_steps)
            turns.setdefault("pytorch-maml-rl", []).append(found)
            print("pytorch-maml-rl", found, flush=True)
    rows = {}
    for name, each in turns.items():
        median = statistics.median(s for turn in each for s in turn["seconds"])
        rows[name] = {
            "meta_step_s": median,
            "env_steps_per_s": ENV_STEPS / median,
            "turns": each,
        }
    for row in rows.values():
        row["ratio_to_trpo"] = row["meta_step_s"] / rows["trpo"]["meta_step_s"]
    result = {"environment": _timing.environment(), "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    lines = ["| outer update | meta-step | environment steps a second | time ratio |"]
    lines.append("|---|---|---|---|")
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['meta_step_s']:.2f} s | {row['env_steps_per_s']:,.0f} | "
            f"{row['ratio_to_trpo']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
