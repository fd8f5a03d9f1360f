"""Timing that keeps compiling and running apart, and the facts of the machine.

JAX is imported inside the functions: a benchmark first pins its process to cores, and
a peer's interpreter may have no JAX.
"""

import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

PACKAGES = ("jaxmeta", "jax", "jaxlib", "flax", "optax")


class Compiled(NamedTuple):
    """A function compiled for one set of shapes."""

    call: Callable[..., Any]
    compile_s: float  # tracing, lowering and compiling
    temp_bytes: int  # XLA's temporary memory, on all its devices


class Summary(NamedTuple):
    """Of repeated runs: wall times, and the processor's on all cores."""

    median_s: float
    iqr_s: float  # interquartile range
    fastest_s: float
    median_cpu_s: float
    repeats: int


class Timing(NamedTuple):
    """What `time_compiled` measured."""

    compile_s: float
    temp_bytes: int
    run: Summary
    device: str


def pin_to_cores(count: int) -> None:
    """Leaves this process `count` of its cores; before JAX or PyTorch is imported.

    Both size their thread pools by what they find when they start.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise ValueError(f"This process may use {len(cores)} cores, got {count}.")
    os.sched_setaffinity(0, cores[:count])


def peak_memory() -> int:
    """Most bytes that this process has held; `getrusage` may tell its parent's."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def reset_peak_memory() -> None:
    """Lets `peak_memory` start again from what this process holds now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def compile_apart(fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()):
    """Compiles `fn` for `args`, which may also be shapes; `donate` is of `jax.jit`."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    compile_s = time.perf_counter() - start
    devices = {
        device
        for sharding in jax.tree.leaves(compiled.input_shardings)
        for device in sharding.device_set
    }
    # XLA counts the memory of one device's program.
    temp_bytes = compiled.memory_analysis().temp_size_in_bytes * max(len(devices), 1)
    return Compiled(compiled, compile_s, temp_bytes)


def repeat(call: Callable[[], Any], *, seconds: float, least: int = 3) -> Summary:
    """Runs a blocking `call` for `seconds` and at least `least` times."""
    times: list[float] = []
    cpu_times: list[float] = []
    while len(times) < least or math.fsum(times) < seconds:
        start, cpu_start = time.perf_counter(), time.process_time()
        call()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Summary(
        median_s=median,
        iqr_s=high - low,
        fastest_s=min(times),
        median_cpu_s=statistics.median(cpu_times),
        repeats=len(times),
    )


def time_compiled(fn: Callable[..., Any], *args: Any, seconds: float = 2.0) -> Timing:
    """Compiles `fn(*args)`, warms it up, and runs it for `seconds`."""
    import jax

    compiled = compile_apart(fn, *args)

    def call():
        return jax.block_until_ready(compiled.call(*args))

    call()
    run = repeat(call, seconds=seconds)
    device = jax.devices()[0].device_kind
    return Timing(compiled.compile_s, compiled.temp_bytes, run, device)


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Date, commit, processor and versions: what a result is worthless without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git_commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _git_commit() -> str | None:
    """The commit, with "-dirty" if files but results differ; None outside git."""

    def git(*args):
        command = ["git", "-C", str(pathlib.Path(__file__).parents[1]), *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    commit = git("rev-parse", "HEAD").stdout.strip()
    code = (".", ":!benchmarks/results")
    differs = git("diff", "HEAD", "--quiet", "--", *code).returncode == 1
    return commit + "-dirty" * differs if commit else None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":")[1] for line in lines if "model name" in line]
    except FileNotFoundError:
        names = []
    return names[0].strip() if names else platform.processor()
