"""What does one meta-gradient over unlike problems cost, compared with its parts?

    python -m benchmarks.mixture [--devices 1 2 4]

`estimators.mixture` over four families of `problems.small_networks`, by evolution
strategies, beside each family's estimator by itself: time of a meta-gradient, and
compilation. On CPUs a device is a core; devices beyond the cores share them, which
shows what the program costs, not what it gains. The meta-gradients of all must agree.
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

RESULTS = pathlib.Path(__file__).parent / "results" / "mixture.json"
FAMILIES = ("perceptron", "convolutional", "recurrent", "attention")
HORIZON, PAIRS = 100, 8


def measure(num_devices: int, seconds: float) -> dict[str, Any]:
    """Times the mixture and its parts in this process."""
    _timing.pin_to_cores(min(num_devices, len(os.sched_getaffinity(0))))
    import jax
    import numpy as np

    import jaxmeta as jm

    jm.training.use_cpu_devices(num_devices)
    mesh = jm.training.task_mesh()
    problems = jm.problems.small_networks()
    parts = {
        name: jm.estimators.es(
            jm.optimizers.learned_adam(),
            problems[name],
            horizon=HORIZON,
            num_problems=PAIRS,
            meta_loss="log",
            mesh=mesh,
        )
        for name in FAMILIES
    }
    found: dict[str, Any] = {}
    for name, estimator in {**parts, "mixture": jm.estimators.mixture(parts)}.items():
        theta, carry = jax.jit(estimator.init)(jax.random.key(0))
        arguments = jax.random.key(1), theta, carry
        timing = _timing.time_compiled(estimator.estimate, *arguments, seconds=seconds)
        grads, _, info = jax.jit(estimator.estimate)(*arguments)
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)])
        found[name] = {
            "ms": 1e3 * timing.run.median_s,
            "compile_s": timing.compile_s,
            "loss": float(np.mean(info.loss)),
            "grads": flat.tolist(),
        }
    return {"device": jax.devices()[0].device_kind, "found": found}


def main(argv: Sequence[str] | None = None) -> None:
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each a round")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure, args.seconds)))
        return
    reports: dict[int, list[Any]] = {count: [] for count in args.devices}
    for _ in range(args.rounds):
        for count, done in reports.items():
            command = [sys.executable, "-m", "benchmarks.mixture"]
            command += ["--measure", str(count), "--seconds", str(args.seconds)]
            ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            done.append(json.loads(ran.stdout))
    first = reports[args.devices[0]][0]["found"]
    rows = []
    for count, done in reports.items():
        row: dict[str, Any] = {"devices": count}
        for name in (*FAMILIES, "mixture"):
            each = [report["found"][name] for report in done]
            row[name] = {
                key: statistics.median(x[key] for x in each)
                for key in ("ms", "compile_s")
            }
            one, other = (np.array(x["grads"]) for x in (first[name], each[0]))
            row[name]["difference"] = float(
                np.linalg.norm(one - other) / np.linalg.norm(one)
            )
        for key in ("ms", "compile_s"):
            row[f"sum of parts, {key}"] = sum(row[name][key] for name in FAMILIES)
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {
        "environment": _timing.environment(),
        "device": next(iter(reports.values()))[0]["device"],
        "horizon": HORIZON,
        "pairs": PAIRS,
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
