"""All measurements of speed and memory, one after another: one table, one JSON.

    python -m benchmarks.run --quick
    python -m benchmarks.run --torch-python VENV/bin/python --data-dir DIR

Each part is a script of its own, in a process of its own; see there for what it does.
Leave the machine alone meanwhile. `--quick` takes some ten minutes and is rough.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "run.json"
# What of the result, and the figure.
Lines = Iterator[tuple[str, str]]


class Part(NamedTuple):
    quick: str  # arguments
    full: str
    lines: Callable[[dict[str, Any]], Lines]


def meta_step(result: dict[str, Any]) -> Lines:
    for setting, found in result.items():
        for row in found["rows"]:
            yield (
                f"exact MAML, {setting}, {row['cores']} core(s): {row['contestant']}",
                f"{1e3 * row['median_s']:.0f} ms, {row['ratio']:.2f} of jaxmeta's, "
                f"{row['share_of_peak']:.0%} of the peak, compiled in "
                f"{row['compile_s']:.0f} s, {row['temp_bytes'] / 2**20:.0f} MiB",
            )
        ours = {
            row["cores"]: row["median_s"]
            for row in found["rows"]
            if row["contestant"] == "jaxmeta"
        }
        for cores, seconds in ours.items():
            if cores > 1 and 1 in ours:
                yield (
                    f"exact MAML, {setting}: {cores} cores against one",
                    f"{ours[1] / seconds:.2f} times as fast",
                )


def inner_memory(result: dict[str, Any]) -> Lines:
    for problem, by_steps in result["results"].items():
        for steps, rows in by_steps.items():
            one = rows["jaxmeta"]
            for name, row in rows.items():
                yield (
                    f"{problem}, {steps} inner steps: {name}",
                    f"{row['temp_mib']:.1f} MiB, {row['ms']:.0f} ms; "
                    f"{row['temp_mib'] / one['temp_mib']:.2f} and "
                    f"{row['ms'] / one['ms']:.2f} of jaxmeta's",
                )


def learner_costs(result: dict[str, Any]) -> Lines:
    one, learners = result["unit"], result["learners"]
    for name, row in learners.items():
        ratios = (row[k] / one[k] for k in ("gflop", "ms", "temp_mib"))
        flops, time, memory = (f"{ratio:.1f}" for ratio in ratios)
        yield (
            f"{name}, in gradients of a classifier",
            f"FLOPs {flops}, time {time}, memory {memory}",
        )
    for steps in ("1 step", "5 steps"):
        exact, first = (
            learners.get(f"maml, {order}{steps}") for order in ("", "first order, ")
        )
        if exact and first:
            yield (
                f"exact MAML over first order, {steps}",
                f"time {exact['ms'] / first['ms']:.2f}, "
                f"FLOPs {exact['gflop'] / first['gflop']:.2f}",
            )


def policy_step(result: dict[str, Any]) -> Lines:
    for name, row in result["rows"].items():
        yield (
            f"meta-step on 2-D navigation: {name}",
            f"{row['meta_step_s']:.2f} s, {row['env_steps_per_s']:,.0f} environment "
            "steps a second",
        )


def first_result(result: dict[str, Any]) -> Lines:
    for name, seconds in result["median_seconds"].items():
        yield (
            f"first result of `jaxmeta train {result['recipe']}`: {name}",
            (f"{seconds:.1f} s"),
        )


def networks(result: dict[str, Any]) -> Lines:
    for row, found in result["rows"].items():
        for name, one in found.items():
            yield (
                f"{row}: {name}",
                f"{one['median_s']:.3f} s, "
                f"{one['median_s'] / found['jaxmeta']['median_s']:.2f} of jaxmeta's, "
                f"{one['resident_mib']:.0f} MiB resident",
            )


def scaling(result: dict[str, Any]) -> Lines:
    one = next(iter(result["results"].values()))["32 tasks"]
    for count, row in result["results"].items():
        for kind, found in row.items():
            yield (
                f"exact MAML on {count} device(s), {kind}",
                f"{found['ms']:.0f} ms, {found['tasks_per_s'] / one['tasks_per_s']:.2f}"
                " times the tasks a second",
            )


PARTS = {
    "meta_step": Part("--rounds 1 --seconds 2", "", meta_step),
    "scaling": Part("--devices 1 2 --rounds 1 --seconds 1", "", scaling),
    "networks": Part("--rounds 3", "", networks),
    "inner_memory": Part("--steps 1 16 --seconds 0.2", "", inner_memory),
    "learner_costs": Part("--seconds 0.2", "", learner_costs),
    "policy_step": Part("--rounds 3 --turns 1", "", policy_step),
    "first_result": Part("--rounds 1", "", first_result),
}


def run_part(name: str, arguments: list[str]) -> dict[str, Any]:
    """Runs a script; returns its JSON. It prints as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "result.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)]
        root = pathlib.Path(__file__).parents[1]
        subprocess.run([*command, *arguments], cwd=root, check=True)
        return json.loads(out.read_text())


def table(result: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    lines = ["| what | measured |", "|---|---|"]
    for name, found in result["parts"].items():
        lines += [f"| {what} | {figure} |" for what, figure in PARTS[name].lines(found)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--torch-python", action="append", default=[], help="as in `meta_step`"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, help="tensorflow-datasets'")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    own = {
        "meta_step": [f"--torch-python={python}" for python in args.torch_python],
        "inner_memory": [f"--torch-python={x}" for x in args.torch_python[:1]],
        "networks": [f"--torch-python={x}" for x in args.torch_python[:1]],
        "first_result": ["--data-dir", str(args.data_dir)] if args.data_dir else [],
    }
    result: dict[str, Any] = {
        "environment": _timing.environment(),
        "quick": args.quick,
        "parts": {},
    }
    for name in args.only:
        part = PARTS[name]
        options = (part.quick if args.quick else part.full).split()
        print(f"== {name}", flush=True)
        result["parts"][name] = run_part(name, options + own.get(name, []))
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
