"""Sinusoids: Meta-SGD's table of shots, and CAVIA's of context parameters.

    python -m benchmarks.sinusoids

Squared error after one inner step, three seeds at once by `vmap`: each run, from the
draw of its parameters to its test, is one function of a key.
"""

import argparse
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxmeta as jm
from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "sinusoids.json"
MODEL = jm.models.MLP([40, 40, 1])
SGD = {"inner_tx": optax.sgd(0.01), "inner_steps": 1}


class Experiment(NamedTuple):
    """A learner's training, and the published errors of its tests."""

    make: Callable[[], jm.MetaLearner]
    ranges: dict[str, Any]  # of the sinusoids
    train_shots: int
    num_tasks: int  # a meta-step
    steps: int
    published: dict[int, str]  # test shots -> error, after one inner step


# Li et al. 2017, Table 1: random frequencies, and a phase that is added.
FREQUENCY = {"frequency": (0.8, 1.2), "phase": (-math.pi, 0.0)}
META_SGD = {
    ("MAML", 5): ("1.13 ± 0.18", "0.85 ± 0.14", "0.71 ± 0.12"),
    ("Meta-SGD", 5): ("0.90 ± 0.16", "0.63 ± 0.12", "0.50 ± 0.10"),
    ("MAML", 10): ("1.17 ± 0.16", "0.77 ± 0.11", "0.56 ± 0.08"),
    ("Meta-SGD", 10): ("0.88 ± 0.14", "0.53 ± 0.09", "0.35 ± 0.06"),
    ("MAML", 20): ("1.29 ± 0.20", "0.76 ± 0.12", "0.48 ± 0.08"),
    ("Meta-SGD", 20): ("1.01 ± 0.17", "0.54 ± 0.08", "0.31 ± 0.05"),
}
# Zintgraf et al. 2019, Table 1.
CAVIA = {1: "0.84 ± 0.06", 2: "0.21 ± 0.02", 5: "0.19 ± 0.02"}

LEARNERS = {
    "MAML": lambda: jm.maml(MODEL, jm.losses.squared_error, **SGD),
    "Meta-SGD": lambda: jm.meta_sgd(
        MODEL, jm.losses.squared_error, learning_rate=(0.005, 0.1)
    ),
}


def cavia(num_context):
    """The paper's: one inner step at rate 1."""
    return lambda: jm.cavia(
        MODEL,
        jm.losses.squared_error,
        num_context=num_context,
        inner_tx=optax.sgd(1.0),
        inner_steps=1,
    )


EXPERIMENTS = {
    f"{name}, {shots} shots": Experiment(
        LEARNERS[name],
        FREQUENCY,
        shots,
        num_tasks=4,
        steps=60_000,
        published=dict(zip((5, 10, 20), published, strict=True)),
    )
    for (name, shots), published in META_SGD.items()
} | {
    f"CAVIA, {number} context": Experiment(
        cavia(number), {}, 10, num_tasks=25, steps=50_000, published={10: published}
    )
    for number, published in CAVIA.items()
}


def run(experiment: Experiment, keys: jax.Array, num_tests: int, share: float):
    """Trains and tests once a key; returns errors, leaves [seeds], by test shots."""
    learner = experiment.make()
    steps = max(1, round(share * experiment.steps))

    def sampler(shots, queries):
        return jm.tasks.sinusoid(shots=shots, queries=queries, **experiment.ranges)

    estimator = jm.estimators.over_tasks(
        learner,
        sampler(experiment.train_shots, experiment.train_shots),
        num_tasks=experiment.num_tasks,
    )
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))

    @jax.jit
    @jax.vmap
    def train(key):
        state, _ = jax.lax.scan(
            lambda s, _: (step(s)[0], None), init(key), length=steps
        )
        return state.meta_params

    def test(meta_params, shots):
        found = jm.training.evaluate(
            learner,
            meta_params,
            sampler(shots, 100),
            num_tasks=num_tests,
            key=jax.random.key(1),
            inner_steps=1,
        )
        return {
            "mean": float(found.loss.mean[-1]),
            "half_width": float(found.loss.half_width[-1]),
        }

    start = time.perf_counter()
    meta_params = jax.block_until_ready(train(keys))
    seconds = time.perf_counter() - start
    seeds = [jax.tree.map(lambda x, i=i: x[i], meta_params) for i in range(len(keys))]
    tests = {
        shots: {"published": published, "seeds": [test(seed, shots) for seed in seeds]}
        for shots, published in experiment.published.items()
    }
    return {"train_seconds": round(seconds, 1), "steps": steps, "test_shots": tests}


def table(results: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    lines = [
        "| trained | test shots | published | ours (each seed) | seconds of training |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for shots, found in result["test_shots"].items():
            means = [seed["mean"] for seed in found["seeds"]]
            interval = np.mean([seed["half_width"] for seed in found["seeds"]])
            each = ", ".join(f"{mean:.2f}" for mean in means)
            lines.append(
                f"| {name} | {shots} | {found['published']} | "
                f"{np.mean(means):.2f} ± {interval:.2f} ({each}) | "
                f"{result['train_seconds']:.0f} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tests", type=int, default=2000, help="tasks of a test")
    parser.add_argument("--share", type=float, default=1.0, help="of the meta-steps")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    keys = jax.random.split(jax.random.key(0), args.seeds)
    results = {}
    for name, experiment in EXPERIMENTS.items():
        results[name] = run(experiment, keys, args.tests, args.share)
        print(name, json.dumps(results[name]), flush=True)
    result = {"environment": _timing.environment(), "results": results}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
