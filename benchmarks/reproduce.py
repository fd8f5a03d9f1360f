"""Reproduces published numbers: runs recipes, keeps their summaries as JSON.

    python -m benchmarks.reproduce maml-sinusoid fomaml-sinusoid --seeds 3
    python -m benchmarks.reproduce maml-omniglot-5w1s --data-dir DIR
    python -m benchmarks.reproduce --table

Interrupted runs resume. The last form prints the table of docs/benchmarks/reproduce.md
from the JSON files in benchmarks/results.
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from benchmarks import _timing
from jaxmeta import recipes, runs, training

RESULTS = pathlib.Path(__file__).parent / "results" / "recipes"
# What learners that embed are also tested on.
OTHER_TASKS = {
    "5_ways": {"ways": 5},
    "5_shots": {"shots": 5},
    "5_ways_5_shots": {"ways": 5, "shots": 5},
}


def reproduce(name, seeds, folder, data_dir, overrides):
    """Trains `name` with each seed and writes what its runs say."""
    summaries = []
    for seed in range(seeds):
        recipe = dataclasses.replace(recipes.RECIPES[name], seed=seed, **overrides)
        recipe = with_data(recipe, data_dir)
        directory = folder / f"{name}-{seed}"
        summary = runs.train(name, recipe, directory, _report(name, seed))
        if name in ("maml-sinusoid", "fomaml-sinusoid"):
            more = dataclasses.replace(recipe.tasks, test_shots=10)
            summary["test_10_shots"] = runs.evaluate(directory, task_settings=more)
        if getattr(getattr(recipe, "learner", None), "embeds", False):
            for label, other in OTHER_TASKS.items():
                other = dataclasses.replace(recipe.tasks, **other)
                summary[f"test_{label}"] = runs.evaluate(directory, task_settings=other)
        summary["settings"] = settings(recipe)
        summaries.append(summary)
    result = {
        "recipe": name,
        "published": recipes.RECIPES[name].published,
        "protocol": recipes.RECIPES[name].describe_protocol(),
        "environment": _timing.environment(),
        "runs": summaries,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def with_data(recipe, data_dir):
    """The recipe, reading its data from `data_dir` if it has any."""
    part = "problem" if isinstance(recipe, recipes.OptimizerRecipe) else "tasks"
    found = getattr(recipe, part)
    if data_dir is None or not hasattr(found, "data_dir"):
        return recipe
    found = dataclasses.replace(found, data_dir=data_dir)
    return dataclasses.replace(recipe, **{part: found})


def settings(recipe):
    """The recipe as JSON, without words and without where this machine's data are."""
    told = recipes.to_json(recipe)
    for part in ("tasks", "problem"):
        told.get(part, {}).pop("data_dir", None)
    return {
        k: v for k, v in told.items() if k not in ("summary", "published", "protocol")
    }


def _report(name, seed):
    def report(record):
        if "validation_loss" in record:
            print(f"{name} seed {seed}: {json.dumps(record)}", flush=True)

    return report


def table():
    """Returns the Markdown table of all results."""
    lines = [
        "| recipe | published | ours, mean ± 95 % interval over tasks | inductive | "
        "seeds | meta-steps | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in recipes.RECIPES:
        path = RESULTS / f"{name}.json"
        if path.exists():
            lines.append(_row(json.loads(path.read_text())))
    return "\n".join(lines)


LABELS = {"test": ""} | {
    f"test_{label}": label.replace("_", " ") + " " for label in OTHER_TASKS
}


def _row(result):
    summaries = result["runs"]
    first = summaries[0]
    if "optimizers" in first["test"]:
        ours, inductive = (
            _optimizers([run["test"]["optimizers"] for run in summaries]),
            "",
        )
    elif "accuracy" in first["test"]:
        ours, inductive = (
            ", ".join(
                label + _percent([pick(run[test]) for run in summaries])
                for test, label in LABELS.items()
                if test in first
            )
            for pick in (
                lambda test: test["accuracy"],
                lambda test: test["inductive"]["accuracy"],
            )
        )
    else:
        ours, inductive = _errors([run["test"]["loss"] for run in summaries]), ""
    minutes = np.mean([run["train_seconds"] for run in summaries]) / 60
    return (
        f"| `{result['recipe']}` | {result['published']} | {ours} | {inductive} | "
        f"{len(summaries)} | {first['steps']:,} | {minutes:.1f} |"
    )


def _percent(values):
    mean = 100 * np.mean([v["mean"][-1] for v in values])
    interval = 100 * np.mean([v["half_width"][-1] for v in values])
    return f"{mean:.2f} ± {interval:.2f} %"


def _errors(values):
    """After 1, 5 and 10 inner steps."""
    means = np.mean([v["mean"] for v in values], 0)
    intervals = np.mean([v["half_width"] for v in values], 0)
    return " / ".join(f"{means[k]:.2f} ± {intervals[k]:.2f}" for k in (1, 5, 10))


def _optimizers(tests):
    """The learned one's final and summed loss, and the best other's."""

    def both(name):
        final, summed = (
            np.mean([test[name][k]["mean"] for test in tests])
            for k in ("final", "summed")
        )
        return f"final {final:.4f}, summed {summed:.2f}"

    others = [name for name in tests[0] if name != "learned"]
    best = min(
        others, key=lambda name: np.mean([t[name]["final"]["mean"] for t in tests])
    )
    return f"{both('learned')}; {best} {both(best)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--steps", type=int, help="fewer meta-steps than the recipe's")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    overrides = {} if args.steps is None else {"steps": args.steps}
    if args.recipes:
        training.use_cpu_devices()
    for name in args.recipes:
        reproduce(name, args.seeds, args.runs, args.data_dir, overrides)
    if args.table:
        print(table())


if __name__ == "__main__":
    main()
