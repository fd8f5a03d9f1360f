"""Meta-steps on 1, 2, 4, ... devices: with as many tasks, and with as many on each.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --devices 1 2 4 8

The exact MAML step of `meta_step`, 32 tasks in all or on each device. On CPUs a device
is a core, in a process that has as many; devices beyond the cores share them, which
shows what the program costs, not what it gains. They take turns, so that a noisy
machine is noisy for all.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "scaling.json"
TASKS = 32
KINDS = {"32 tasks": False, "32 tasks a device": True}


def measure(num_devices: int, seconds: float) -> dict[str, Any]:
    """Times meta-steps in this process."""
    _timing.pin_to_cores(min(num_devices, len(os.sched_getaffinity(0))))
    import jax
    import optax

    import jaxmeta as jm

    jm.training.use_cpu_devices(num_devices)
    mesh = jm.training.task_mesh(jax.devices()[:num_devices])
    learner = jm.maml(
        jm.models.Conv4(64, head=5, strided=True),
        jm.losses.cross_entropy,
        inner_tx=optax.sgd(0.4),
        inner_steps=1,
    )
    found = {}
    for kind, grows in KINDS.items():
        estimator = jm.estimators.over_tasks(
            learner,
            jm.tasks.glyphs(ways=5, shots=1, queries=1),
            num_tasks=TASKS * num_devices if grows else TASKS,
            mesh=mesh,
        )
        init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
        state = jax.jit(init)(jax.random.key(0))
        compiled = _timing.compile_apart(step, state, donate=(0,))

        def advance(compiled=compiled):
            nonlocal state
            state, _ = jax.block_until_ready(compiled.call(state))

        advance()
        run = _timing.repeat(advance, seconds=seconds)
        found[kind] = {"ms": 1e3 * run.median_s, "compile_s": compiled.compile_s}
    return {"device": jax.devices()[0].device_kind, "steps": found}


def plot(results: dict[str, dict[str, Any]], cores: int, path: pathlib.Path) -> None:
    """Tasks a second against devices, and what as many times one device would do."""
    from jaxmeta import _axes

    figure = _axes.figure(width=5)
    ax = figure.subplots()
    counts = [int(n) for n in results]
    for kind, style in zip(KINDS, ("o-", "s--"), strict=True):
        rates = [row[kind]["tasks_per_s"] for row in results.values()]
        ax.loglog(counts, rates, style, color=_axes.DARK, label=kind, markersize=4)
    first = next(iter(results.values()))["32 tasks"]["tasks_per_s"]
    ideal = [first * n / counts[0] for n in counts]
    ax.loglog(counts, ideal, ":", color=_axes.LIGHT, label="in proportion")
    if counts[-1] > cores:
        ax.axvspan(cores, counts[-1], color="0.9", linewidth=0)
        ax.text(cores, ideal[0], " more devices than cores", va="top", color="0.4")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.set_yticks(ideal, [f"{rate:.0f}" for rate in ideal])
    ax.minorticks_off()
    ax.set_xlabel("devices")
    _axes.finish(ax, "tasks a second")
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the Markdown table."""
    lines = [
        "| devices | 32 tasks: ms | times as fast | 32 tasks a device: ms "
        "| tasks a second, in proportion |",
        "|---|---|---|---|---|",
    ]
    one = next(iter(results.values()))
    for count, row in results.items():
        strong, weak = (row[kind] for kind in KINDS)
        speedup = one["32 tasks"]["ms"] / strong["ms"]
        share = weak["tasks_per_s"] / one["32 tasks"]["tasks_per_s"]
        lines.append(
            f"| {count} | {strong['ms']:.0f} | {speedup:.2f} | {weak['ms']:.0f} "
            f"| {share:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a kind a round")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure, args.seconds)))
        return
    found: dict[int, list[Any]] = {count: [] for count in args.devices}
    for number in range(args.rounds):
        for count, reports in found.items():
            command = [sys.executable, "-m", "benchmarks.scaling"]
            command += ["--measure", str(count), "--seconds", str(args.seconds)]
            root = pathlib.Path(__file__).parents[1]
            done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True)
            reports.append(json.loads(done.stdout))
            print(f"round {number + 1}, {count} device(s): {reports[-1]}", flush=True)
    results = {}
    for count, reports in found.items():
        row = results[str(count)] = {}
        for kind, grows in KINDS.items():
            ms = statistics.median(report["steps"][kind]["ms"] for report in reports)
            tasks = TASKS * count if grows else TASKS
            row[kind] = {"ms": ms, "tasks_per_s": 1e3 * tasks / ms}
    result = {
        "environment": _timing.environment(),
        "device": found[args.devices[0]][0]["device"],
        "rounds": args.rounds,
        "results": results,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(results, len(os.sched_getaffinity(0)), args.out.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
