"""How long does one exact MAML meta-gradient step take?

The network, the tasks and the rates are those of the MAML paper's Omniglot 5-way 1-shot
experiment (`--setting five-steps`: more inner steps and more queries). A step is the
mean second-order meta-gradient of 32 tasks and one Adam update. Contestants start from
the same weights and see the same tasks; their first loss and the norm of their first
meta-gradient must agree before anything is timed. jaxmeta alone also draws the tasks,
in the step that is timed.

    python -m benchmarks.meta_step --torch-python /path/to/venv/bin/python
    python -m benchmarks.meta_step --only jaxmeta,jax-vmap --rounds 2

The peers' code is in `benchmarks/peers`. PyTorch and the libraries on it have
interpreters of their own, with what `benchmarks/peers/requirements-*.txt` say; one
environment can hold several, `--torch-python` can be given several times, and the rows
of what none of them has are left out.

This is a benchmark of CPUs, on Linux: every contestant runs in its own process, pinned
to one core and then to all of them, and they take turns, so that a noisy machine is
noisy for all.
"""

import argparse
import importlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _timing
from benchmarks._meta_step_setting import (
    ADAM_B1,
    SETTINGS,
    Program,
    make_images,
    make_weights,
    meta_step_flops,
)

RESULTS = pathlib.Path(__file__).parent / "results" / "meta_step.json"

# --- One contestant, in its own process.


def matrix_product_peak(setting, folder, cores):
    """The most operations a second that a float32 matrix product gets here."""
    del setting, folder, cores
    import jax.numpy as jnp

    def flops_per_second(size):
        x = jnp.ones((size, size), jnp.float32)
        timing = _timing.time_compiled(jnp.dot, x, x, seconds=1.0)
        return 2 * size**3 / timing.run.fastest_s

    return {"flops_per_second": max(map(flops_per_second, (1024, 1536, 2048)))}


def imported(module: str, function: str, **options: str) -> Callable[..., Any]:
    """A function of `benchmarks`, whose module is imported when it is called.

    By then its process is pinned, and it is the interpreter that has the library.
    """

    def call(*args):
        room = importlib.import_module(f"benchmarks.{module}")
        return getattr(room, function)(*args, **options)

    return call


OURS, JAX, TORCH = "_meta_step_ours", "peers.jax_by_hand", "peers.torch_func"
LIBRARIES = "peers.torch_libraries"
CONTESTANTS: dict[str, Callable[..., Program]] = {
    "jaxmeta": imported(OURS, "maml"),
    "jax-vmap": imported(JAX, "maml", batching="vmap"),
    "jax-map": imported(JAX, "maml", batching="map"),
    "jax-grad-of-mean": imported(JAX, "maml", batching="grad-of-mean"),
    "torch-vmap": imported(TORCH, "maml", lowering="conv2d", batching="vmap"),
    "torch-vmap-im2col": imported(TORCH, "maml", lowering="im2col", batching="vmap"),
    "torch-loop": imported(TORCH, "autograd_loop"),
    "torch-compile": imported(TORCH, "maml", lowering="im2col", batching="compile"),
    "learn2learn": imported(LIBRARIES, "learn2learn"),
    "higher": imported(LIBRARIES, "higher"),
    "torchopt": imported(LIBRARIES, "torchopt"),
    "torchopt-vmap": imported(LIBRARIES, "torchopt_vmap"),
}
# The library without which a peer's row is left out; the others run where this does.
NEEDS = {
    name: name.partition("-")[0] for name in CONTESTANTS if not name.startswith("jax")
}
# Steps of many times the others': warmed up by the checked one, timed twice a round.
SLOW = {"jax-grad-of-mean"}
ERRANDS = {"save-tasks": imported(OURS, "save_tasks"), "peak": matrix_product_peak}


def run_contestant(name, setting, folder, cores, seconds):
    """Runs the first step, to be checked, and, for `seconds`, the next ones."""
    program = CONTESTANTS[name](setting, folder, cores)
    before = _timing.peak_memory()
    start = time.perf_counter()
    loss = program.step()
    first_s = time.perf_counter() - start
    # Adam's first moment starts at zero: after one step it is (1 - b1) gradients.
    moment = np.concatenate([x.ravel() for x in program.first_moment()], dtype=float)
    report = {
        "framework": program.framework,
        "loss": loss,
        "grad_norm": float(np.linalg.norm(moment)) / (1 - ADAM_B1),
        "compile_s": first_s if program.compile_s is None else program.compile_s,
    }
    if seconds:
        if name not in SLOW:
            program.step()
        least = 2 if name in SLOW else 3
        run = _timing.repeat(program.step, seconds=seconds, least=least)
        report["run"] = run._asdict()
    xla = program.temp_bytes is not None
    report["temp_bytes"] = program.temp_bytes if xla else _timing.peak_memory() - before
    return report


# --- All of them.


class Place(NamedTuple):
    """What every process of this run is told."""

    setting: str
    folder: pathlib.Path
    pythons: dict[str, str]  # the interpreter of each library in `NEEDS`


def run_process(place: Place, contestant: str, cores: int, seconds: float = 0.0):
    """Returns the report that a process of its own printed; 0 seconds: untimed."""
    command = [
        place.pythons.get(NEEDS.get(contestant, ""), sys.executable),
        *("-m", "benchmarks.meta_step", "--contestant", contestant),
        *("--setting", place.setting, "--folder", str(place.folder)),
        *("--cores", str(cores), "--seconds", str(seconds)),
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compilation is measured cold. Inductor's cache, empty at first, then spares
        # the rounds a minute each.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(place.folder / f"inductor-{cores}"),
    }
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{contestant} failed on {cores} core(s):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def check_agreement(rows: list[dict[str, Any]]) -> None:
    """Raises if contestants do not compute the same thing as the first of them.

    The norm, not the gradients themselves: in float32 an activation within rounding of
    zero falls on either side of its ReLU, which moves one task's gradient by a percent.
    """
    for row in rows:
        for name in ("loss", "grad_norm"):
            if not math.isclose(row[name], rows[0][name], rel_tol=1e-4):
                raise RuntimeError(
                    f"{row['contestant']} on {row['cores']} core(s) disagrees with "
                    f"{rows[0]['contestant']}: {name} {row[name]} and {rows[0][name]}."
                )


def compare(place: Place, turns, rounds: int, seconds: float, console):
    """Checks every (cores, contestant), then times them; returns rows and peaks."""
    run_process(place, "save-tasks", 1)
    rows = []
    for cores, name in turns:
        console.print(f"checking {name} on {cores} core(s)")
        report = run_process(place, name, cores)
        rows.append({"contestant": name, "cores": cores, **report, "rounds": []})
    check_agreement(rows)
    peaks = dict.fromkeys((cores for cores, _ in turns), 0.0)
    for number in range(rounds):
        for cores in peaks:
            report = run_process(place, "peak", cores)
            peaks[cores] = max(peaks[cores], report["flops_per_second"])
        for row in rows:
            name, cores = row["contestant"], row["cores"]
            console.print(f"round {number + 1}: {name} on {cores} core(s)")
            report = run_process(place, name, cores, seconds)
            row["rounds"].append(report["run"])
            row["temp_bytes"] = max(row["temp_bytes"], report["temp_bytes"])
    return rows, peaks


def summarise_rows(rows, peaks, flops) -> None:
    """Adds medians over rounds, the ratio to jaxmeta, and the share of the peak."""
    for row in rows:
        for name in ("median_s", "iqr_s", "median_cpu_s"):
            row[name] = statistics.median(run[name] for run in row["rounds"])
        row["share_of_peak"] = flops / (row["median_s"] * peaks[row["cores"]])
        is_xla = row["framework"].startswith("jax")
        row["compile_is"] = "trace + lower + compile" if is_xla else "first step"
        row["temp_is"] = "XLA temporaries" if is_xla else "growth of the process's peak"
    ours = {r["cores"]: r["median_s"] for r in rows if r["contestant"] == "jaxmeta"}
    for row in rows:
        row["ratio"] = row["median_s"] / ours[row["cores"]]


def print_table(console, result) -> None:
    from rich.table import Table

    table = Table(title=f"One exact MAML meta-step, {result['setting']}")
    for heading in ("cores", "contestant"):
        table.add_column(heading, no_wrap=True)
    headings = ("step, ms", "IQR", "ratio", "peak", "compile", "MiB")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(
            str(row["cores"]),
            row["contestant"],
            f"{1e3 * row['median_s']:.0f}",
            f"{1e3 * row['iqr_s']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['compile_s']:.1f}",
            f"{row['temp_bytes'] / 2**20:.0f}",
            end_section=row["contestant"] == result["rows"][-1]["contestant"],
        )
    console.print(table)
    console.print(
        "ratio: to jaxmeta's time. peak: share of the matrix product's. compile: "
        "seconds, JAX's tracing, lowering and compiling, PyTorch's first step. "
        "MiB: XLA's temporaries, the growth of PyTorch's process."
    )
    torch_rows = [row for row in result["rows"] if row["contestant"] in NEEDS]
    if not torch_rows:
        console.print("No peers on PyTorch: they need --torch-python.")
    ours = [row for row in result["rows"] if row["contestant"] == "jaxmeta"]
    for our in ours if torch_rows else ():
        # A second thread can cost more than it brings: nobody has to use it.
        allowed = [row for row in torch_rows if row["cores"] <= our["cores"]]
        best = min(allowed, key=lambda row: row["median_s"])
        console.print(
            f"PyTorch's fastest with {our['cores']} core(s) to use: "
            f"{best['contestant']} on {best['cores']}, "
            f"{best['median_s'] / our['median_s']:.2f} of jaxmeta's time."
        )


def save(result, path: pathlib.Path) -> None:
    """Puts the result beside those of the other settings."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[result["setting"]] = result
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def benchmark(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console()
    available = len(os.sched_getaffinity(0))
    all_cores = [arguments.cores] if arguments.cores else sorted({1, available})
    flops = meta_step_flops(SETTINGS[arguments.setting])
    with tempfile.TemporaryDirectory() as folder:
        place = Place(arguments.setting, pathlib.Path(folder), arguments.pythons)
        np.savez(place.folder / "weights.npz", **make_weights())
        np.save(place.folder / "images.npy", make_images())
        turns = [(cores, name) for cores in all_cores for name in arguments.only]
        rows, peaks = compare(
            place, turns, arguments.rounds, arguments.seconds, console
        )
    summarise_rows(rows, peaks, flops)
    result = {
        "setting": arguments.setting,
        "environment": _timing.environment(),
        "device": "cpu",
        "flops": flops,
        "peak_flops_per_second": peaks,
        "rows": rows,
    }
    print_table(console, result)
    save(result, arguments.out)


def chosen(names: str) -> list[str]:
    """Those of `CONTESTANTS` in "A,B", in the table's order."""
    wanted = names.split(",")
    unknown = ", ".join(name for name in wanted if name not in CONTESTANTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such contestants: {unknown}")
    if "jaxmeta" not in wanted:
        raise argparse.ArgumentTypeError("jaxmeta, which sets the ratio, is missing")
    return [name for name in CONTESTANTS if name in wanted]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="one-step")
    parser.add_argument(
        "--torch-python",
        action="append",
        default=[],
        metavar="PYTHON",
        help="an interpreter that has PyTorch; can be given again",
    )
    parser.add_argument(
        "--only", type=chosen, metavar="A,B", help="the contestants, jaxmeta among them"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a round")
    parser.add_argument("--cores", type=int, help="default: one, then all")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    # For the processes that this script starts, for which 0 seconds is untimed.
    parser.add_argument("--contestant", choices=[*CONTESTANTS, *ERRANDS])
    parser.add_argument("--folder", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.contestant and not (arguments.folder and arguments.cores):
        parser.error("--contestant needs --folder and --cores")
    if arguments.contestant:
        return arguments
    arguments.pythons = find_pythons(arguments.torch_python)
    lacking = [x for x in NEEDS if NEEDS[x] not in arguments.pythons]
    if arguments.only is None:
        arguments.only = [name for name in CONTESTANTS if name not in lacking]
    for name in arguments.only:
        if name in lacking:
            parser.error(f"{name}: no --torch-python has the package {NEEDS[name]}")
    return arguments


def find_pythons(interpreters: list[str]) -> dict[str, str]:
    """The first interpreter that has it, for each library that one of them has."""
    libraries = sorted(set(NEEDS.values()))
    code = f"""from importlib.util import find_spec
print(*[name for name in {libraries} if find_spec(name)])"""
    found = {}
    for python in interpreters:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True
        )
        for name in done.stdout.split():
            found.setdefault(name, python)
    return found


def main() -> None:
    arguments = parse_arguments()
    if not arguments.contestant:
        benchmark(arguments)
        return
    _timing.pin_to_cores(arguments.cores)
    name, cores = arguments.contestant, arguments.cores
    setting = SETTINGS[arguments.setting]
    if name in ERRANDS:
        report = ERRANDS[name](setting, arguments.folder, cores)
    else:
        report = run_contestant(
            name, setting, arguments.folder, cores, arguments.seconds
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
