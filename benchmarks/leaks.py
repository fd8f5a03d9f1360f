"""Does a process that trains and tests for long grow?

    python -m benchmarks.leaks [--quick]

Resident memory, threads, open files and mapped regions of one process: over 100,000
meta-steps with 1,000 validations and checkpoints, then over 200 calls of `evaluate`,
and over 50 of `fit`, each of which compiles anew. After warming up all must be level.
"""

import argparse
import json
import pathlib
import resource
import tempfile
import threading

import jax
import optax

import jaxmeta as jm
from benchmarks import _timing

PACKAGES = ("jaxmeta", "jax", "jaxlib", "orbax-checkpoint")
RESULTS = pathlib.Path(__file__).parent / "results" / "leaks.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of each")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    share = 20 if args.quick else 1
    rows: list[dict[str, float]] = []

    def look(what: str, count: int) -> None:
        rows.append({"what": what, "count": count, **usage()})
        print(json.dumps(rows[-1]), flush=True)

    learner = jm.maml(
        jm.models.MLP([40, 40, 1]),
        jm.losses.squared_error,
        inner_tx=optax.sgd(0.01),
        inner_steps=1,
    )
    sample_task = jm.tasks.sinusoid()
    estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=4)
    train_step = jm.training.make_train_step(estimator, optax.adam(1e-3))

    def evaluate(params):
        return jm.training.evaluate(
            learner, params, sample_task, num_tasks=20, key=jax.random.key(1)
        )

    def validate(params):
        return {"loss": evaluate(params).loss.mean[-1]}

    num_steps, each = 100_000 // share, 100
    look("start", 0)
    with tempfile.TemporaryDirectory() as folder:

        def report(record):
            if record["step"] % (num_steps // 10) == 0:
                look("meta-steps", record["step"])

        state = jm.training.fit(
            train_step,
            num_steps=num_steps,
            key=jax.random.key(0),
            directory=folder,
            log_every=each,
            validate=validate,
            validate_every=each,
            report=report,
        ).state
    for i in range(1, 200 // share + 1):
        evaluate(state.meta_params)
        if i % max(1, 20 // share) == 0:
            look("evaluate", i)
    fits = max(10, 50 // share)
    for i in range(1, fits + 1):
        with tempfile.TemporaryDirectory() as folder:
            jm.training.fit(
                train_step,
                num_steps=20,
                key=jax.random.key(i),
                directory=folder,
                log_every=10,
                validate=validate,
                validate_every=10,
            )
        if i % (fits // 10) == 0:
            look("fit", i)
    result = {"environment": _timing.environment(PACKAGES)}
    args.out.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


def usage() -> dict[str, float]:
    """What the process holds (Linux)."""
    process = pathlib.Path("/proc/self")
    pages = int((process / "statm").read_text().split()[1])
    return {
        "resident_mib": round(pages * resource.getpagesize() / 2**20),
        "threads": len(list((process / "task").iterdir())),
        "python_threads": threading.active_count(),
        "open_files": len(list((process / "fd").iterdir())),
        "maps": (process / "maps").read_bytes().count(b"\n"),
    }


if __name__ == "__main__":
    main()
