"""What do loaders make of damaged files?

    python -m benchmarks.hostile_files [--only NAME ...] [--mutations 500]

Each loader reads a small file that was damaged, again and again, in a process of its
own: flipped bytes, pieces removed, doubled or replaced, the end cut off. It must raise
a clear error or return values: counted are these, exceptions of other kinds, crashes
and hangs of the process, and how far its memory grew. Loaders and mutations are those
of `tests/test_hostile_files.py`.
"""

import argparse
import faulthandler
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import _timing
from tests import _loaders

PACKAGES = ("jaxmeta", "jax", "numpy", "pillow", "scipy", "orbax-checkpoint")
RESULTS = pathlib.Path(__file__).parent / "results" / "hostile_files.json"
HANGS_AFTER = 20  # seconds for one file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(_loaders.LOADERS))
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        damage(args.child, args.first, args.mutations)
        return
    rows = []
    for name in args.only or _loaders.LOADERS:
        rows.append(attack(name, args.mutations))
        print(json.dumps(rows[-1]), flush=True)
    result = {"environment": _timing.environment(PACKAGES), "rows": rows}
    args.out.write_text(json.dumps(result, indent=2) + "\n")


def attack(name: str, mutations: int) -> dict[str, object]:
    """Counts what a loader makes of damaged files."""
    kinds = ("error", "equal", "other values", "foreign", "crash", "hang")
    counts = dict.fromkeys(kinds, 0)
    row = {"loader": name, **counts, "peak_mib": 0.0, "slowest_s": 0.0, "notes": []}
    first = 0
    while first < mutations:
        command = [sys.executable, "-m", "benchmarks.hostile_files", "--child", name]
        command += ["--first", str(first), "--mutations", str(mutations)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        lines = [json.loads(x) for x in child.stdout.splitlines() if x[:1] == "{"]
        if not lines:
            raise RuntimeError(f"{name} did not start: {child.returncode}")
        for line in lines:
            if "what" in line:
                row[line["what"]] += 1
                row["slowest_s"] = max(row["slowest_s"], line["seconds"])
            row["peak_mib"] = max(row["peak_mib"], line["grown_mib"])
            row["notes"] += [line["note"]] if "note" in line else []
        first = 1 + max(line["index"] for line in lines)
        if child.returncode:  # The next one was begun, and not ended.
            is_hang = lines[-1]["time"] + HANGS_AFTER < time.time() + 1
            row["hang" if is_hang else "crash"] += 1
            row["notes"].append(f"file {first}: exit code {child.returncode}")
            first += 1
    return row


def damage(name: str, first: int, mutations: int) -> None:
    """Damages the file, loads it and writes what came of it, line by line."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path, load = _loaders.LOADERS[name](pathlib.Path(folder))
        content, expected = path.read_bytes(), load()
        before = peak()
        tell(index=first - 1, grown_mib=0.0)
        for index in range(mutations):
            mutated = _loaders.mutated(content, draw)
            if index < first:
                continue
            path.write_bytes(mutated)
            faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
            start, told = time.perf_counter(), {}
            try:
                told["what"] = _loaders.outcome(load, expected, folder)
            except Exception as error:
                told = {"what": "foreign", "note": f"file {index}: {error!r}"[:300]}
            faulthandler.cancel_dump_traceback_later()
            told["seconds"] = round(time.perf_counter() - start, 3)
            tell(index=index, grown_mib=round(peak() - before, 1), **told)
        path.write_bytes(content)
        assert _loaders.outcome(load, expected) == "equal"


def tell(**line: object) -> None:
    print(json.dumps({**line, "time": time.time()}), flush=True)


def peak() -> float:
    """Peak memory in MiB, of this process or of its largest child."""
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return max(resource.getrusage(x).ru_maxrss for x in who) / 1024


if __name__ == "__main__":
    main()
