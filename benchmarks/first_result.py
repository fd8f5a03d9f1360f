"""How long until `jaxmeta train` shows something?

    python -m benchmarks.first_result --data-dir DIR

From the start of the process to the first line of `metrics.jsonl`, with an empty cache
of compiled programs and then with the one that the first run has left. Data are on the
disk, decoded before.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "first_result.json"
LIMIT_S = 300.0


def first_line(command: list[str], run: pathlib.Path, cache: pathlib.Path) -> float:
    """Seconds until `run` has a metric; then ends the process."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    metrics, start = run / "metrics.jsonl", time.perf_counter()
    process = subprocess.Popen(
        [*command, "--out", str(run)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(process.communicate()[1].decode())
            if time.perf_counter() - start > LIMIT_S:
                raise RuntimeError(f"Nothing in {LIMIT_S:.0f} s: {command}")
            time.sleep(0.02)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.communicate()


def imports() -> float:
    """Seconds that Python, JAX and jaxmeta take to be there."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import jaxmeta.recipes"], check=True)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="maml-omniglot-5w1s")
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    command = [sys.executable, "-m", "jaxmeta", "train", args.recipe]
    if args.data_dir is not None:
        command += ["--data-dir", str(args.data_dir)]
    found = {"imports": [imports() for _ in range(args.rounds)], "cold": [], "warm": []}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            if number == 0:  # Decodes the data, where that was not done before.
                first_line(command, root / "data", root / "data-cache")
            for name in ("cold", "warm"):
                seconds = first_line(command, root / name, root / "cache")
                found[name].append(round(seconds, 2))
                print(name, found[name][-1], flush=True)
    result = {
        "environment": _timing.environment(),
        "recipe": args.recipe,
        "seconds": found,
        "median_seconds": {k: statistics.median(x) for k, x in found.items()},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["median_seconds"]))


if __name__ == "__main__":
    main()
