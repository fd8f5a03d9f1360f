"""Does a learned optimizer last? Runs of 10,000 updates, a hundred times the horizon.

    python -m benchmarks.long_runs --runs runs --data-dir DIR

The plain and the enhanced LSTM (`lstm-mnist`, `lstm-mnist-enhanced`), the enhanced
RNNprop (`rnnprop-mnist-enhanced`) and Adam, tuned for the least loss at the end, on the
network that the three were meta-trained on, and with ReLU in it.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import numpy as np
import optax

from benchmarks import _timing
from benchmarks.reproduce import with_data
from jaxmeta import optimizers, plots, runs, training

RESULTS = pathlib.Path(__file__).parent / "results" / "long_runs.json"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PROBLEMS = {"sigmoid": {}, "ReLU": {"activation": "relu"}}
AT = (0, 100, 200, 500, 1000, 2000, 5000, 10_000)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    training.use_cpu_devices()
    result = {"environment": _timing.environment(("jaxmeta", "jax", "jaxlib", "optax"))}
    opened = {
        name: runs.read(args.runs / f"{name}-0")
        for name in ("lstm-mnist", "lstm-mnist-enhanced", "rnnprop-mnist-enhanced")
    }
    options = {
        "num_steps": args.steps,
        "num_problems": args.problems,
        "problems_per_chunk": 1,
        "mesh": training.task_mesh(),
    }
    for network, changes in PROBLEMS.items():
        first = with_data(opened["lstm-mnist"].recipe, args.data_dir)
        splits = dataclasses.replace(first.problem, **changes).splits()
        test = options | {"key": jax.random.key(1)}
        adam = optimizers.learned_rate(optax.adam)
        tuned = training.tune(
            adam, RATES, splits.train, **options | {"key": jax.random.key(2)}
        )
        found = {
            f"adam, {tuned.rate:g}": training.evaluate_optimizer(
                adam, tuned.rate, splits.test, **test
            )
        }
        for name, run in opened.items():
            recipe = with_data(run.recipe, args.data_dir)
            theta = runs.best_meta_params(run, runs.build(recipe).like)
            found[name] = training.evaluate_optimizer(
                recipe.optimizer.make(), theta, splits.test, **test
            )
        result[network] = {name: _table(curves) for name, curves in found.items()}
        ax = plots.horizon_sweep(found, horizon=100)
        ax.set_title(f"MNIST perceptron, {network}")
        ax.figure.savefig(RESULTS.with_name(f"long_runs-{network.lower()}.png"))
        print(network, json.dumps(result[network], indent=1), flush=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def _table(curves):
    """Mean loss over the hundred updates up to each, and the share of lost runs."""
    losses = np.asarray(curves.per_problem)
    at = [step for step in AT if step < losses.shape[1]]
    told = {}
    for step in at:
        window = losses[:, max(0, step - 99) : step + 1]
        told[str(step)] = float(window.mean())
    is_lost = ~np.isfinite(losses[:, -1]) | (losses[:, -100:].mean(1) > losses[:, 0])
    return {"loss": told, "lost": float(is_lost.mean())}


if __name__ == "__main__":
    main()
