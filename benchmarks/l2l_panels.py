"""The panels of "Learning to learn by gradient descent by gradient descent".

    python -m benchmarks.reproduce lstm-quadratic lstm-mnist --seeds 3 --data-dir DIR
    python -m benchmarks.l2l_panels quadratic mnist --data-dir DIR

Takes the runs that `benchmarks.reproduce` left, one a meta-seed, to each panel's
problem, beside other optimizers whose rates are tuned on one grid for the least loss at
the panel's last step, on the problem's half for meta-training. All optimizers of a
panel see the same test problems, starts and minibatches.
"""

import argparse
import dataclasses
import json
import os
import pathlib

import jax
import numpy as np

from benchmarks import _timing
from benchmarks.reproduce import with_data
from jaxmeta import optimizers, plots, recipes, training
from jaxmeta.recipes import _optimizer_run, _run

RESULTS = pathlib.Path(__file__).parent / "results" / "l2l_panels"
# Andrychowicz et al. 2016, Figures 4 to 6, read off their curves.
PAPER = {
    "quadratic": {"steps": 100, "learned": 0.0387, "best": 0.0511},
    # Appendix D, without results.
    "quadratic, averaging cells": {"steps": 100, "learned": "–", "best": "–"},
    "quadratic, NTM-BFGS": {"steps": 100, "learned": "–", "best": "–"},
    "mnist": {"steps": 100, "learned": 0.245, "best": 0.3235},
    "mnist-200": {"steps": 200, "learned": 0.215, "best": 0.252},
    "mnist-40-units": {"steps": 100, "learned": 0.192, "best": 0.299},
    "mnist-2-layers": {"steps": 100, "learned": 0.321, "best": 0.696},
    "mnist-relu": {"steps": 100, "learned": 2.585, "best": 0.350},
    "cifar10": {"steps": 1000, "learned": 0.822, "best": 0.793},
}
GROUPS = {
    "quadratic": ("lstm-quadratic", {"quadratic": {}}),
    "gac": ("lstm-gac-quadratic", {"quadratic, averaging cells": {}}),
    "ntm": ("ntm-bfgs-quadratic", {"quadratic, NTM-BFGS": {}}),
    "mnist": (
        "lstm-mnist",
        {
            "mnist": {},
            "mnist-200": {},
            "mnist-40-units": {"units": 40},
            "mnist-2-layers": {"layers": 2},
            "mnist-relu": {"activation": "relu"},
        },
    ),
    "cifar10": ("lstm-cifar10", {"cifar10": {}}),
}


def panel(name, problem, lopt, thetas, recipe):
    """Returns summaries of the learned optimizer, one a theta, and of the others."""
    steps = PAPER[name]["steps"]
    splits = problem.splits()
    mesh = training.task_mesh()
    options = {
        "num_steps": steps,
        "mesh": mesh,
        "problems_per_chunk": recipe.problems_per_chunk,
    }
    test = options | {"num_problems": recipe.test_problems, "key": jax.random.key(1)}
    tuning = options | {
        "num_problems": recipe.validation_problems,
        "key": jax.random.key(2),
    }
    learned = [
        _optimizer_run.summarize(
            training.evaluate_optimizer(lopt, theta, splits.test, **test)
        )
        for theta in thetas
    ]
    others = {}
    for other, make_tx in _optimizer_run.BASELINES.items():
        family = optimizers.learned_rate(make_tx)
        tuned = training.tune(family, _optimizer_run.RATES, splits.train, **tuning)
        curves = training.evaluate_optimizer(family, tuned.rate, splits.test, **test)
        others[other] = {"rate": tuned.rate} | _optimizer_run.summarize(curves)
    return {"learned": learned, "others": others}


def _path(name):
    return RESULTS / f"{name.replace(', ', '-').replace(' ', '-').lower()}.json"


def draw(name, result, path):
    """The first meta-seed's curves beside the others'."""
    ax = plots.optimizer_curves({"LSTM": result["learned"][0], **result["others"]})
    ax.set_title(name)
    ax.figure.savefig(path, dpi=100)


def table():
    """Returns the Markdown table of all panels."""
    lines = [
        "| panel | steps | paper: LSTM / best other | ours: LSTM, mean of seeds (each) "
        "| median | summed | best other, rate: final, summed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, paper in PAPER.items():
        path = _path(name)
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        finals = [run["final"]["mean"] for run in result["learned"]]
        medians = [run["final"]["median"] for run in result["learned"]]
        sums = [run["summed"]["mean"] for run in result["learned"]]
        others = result["others"]
        best = min(others, key=lambda other: others[other]["final"]["mean"])
        found = others[best]
        each = ", ".join(f"{x:.3g}" for x in finals)
        lines.append(
            f"| {name} | {paper['steps']} | {paper['learned']} / {paper['best']} | "
            f"{np.mean(finals):.4f} ({each}) | {np.mean(medians):.4f} | "
            f"{np.mean(sums):.2f} | {best}, {found['rate']:g}: "
            f"{found['final']['mean']:.4f}, {found['summed']['mean']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", choices=GROUPS, metavar="GROUP")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.groups:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
        RESULTS.mkdir(parents=True, exist_ok=True)
    for group in args.groups:
        recipe_name, panels = GROUPS[group]
        runs = [
            recipes.open_run(args.runs / f"{recipe_name}-{seed}")
            for seed in range(args.seeds)
        ]
        recipe = with_data(runs[0].recipe, args.data_dir)
        parts = _run.build(recipe)
        thetas = [_run.best_meta_params(run, parts) for run in runs]
        lopt = recipe.optimizer.make()
        for name, changes in panels.items():
            problem = dataclasses.replace(recipe.problem, **changes)
            result = panel(name, problem, lopt, thetas, recipe)
            packages = ("jaxmeta", "jax", "jaxlib", "flax", "optax")
            result["environment"] = _timing.environment(packages)
            path = _path(name)
            path.write_text(json.dumps(result, indent=1) + "\n")
            draw(name, result, path.with_suffix(".png"))
            print(table(), flush=True)
    if args.table:
        print(table())


if __name__ == "__main__":
    main()
