"""The panels of "Learning to learn by gradient descent by gradient descent".

    python -m benchmarks.reproduce lstm-quadratic lstm-mnist --seeds 3 --data-dir DIR
    python -m benchmarks.l2l_panels lstm-quadratic lstm-mnist --data-dir DIR

Takes the runs that `benchmarks.reproduce` left, one a meta-seed, to each panel's
problem, beside other optimizers whose rates are tuned on one grid for the least loss at
the panel's last step, on the problem's half for meta-training. All optimizers of a
panel see the same test problems, starts and minibatches.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import _timing
from benchmarks.reproduce import with_data
from jaxmeta import optimizers, plots, runs, training
from jaxmeta.runs import _optimizer_parts

RESULTS = pathlib.Path(__file__).parent / "results" / "l2l_panels"
RATES = _optimizer_parts.RATES


class Panel(NamedTuple):
    """A problem for the learned optimizer of a recipe, and what the paper found."""

    recipe: str
    changes: Mapping[str, Any] = {}  # of the problem that it was meta-trained on
    steps: int = 100
    paper: tuple[float, float] | None = None  # final losses: LSTM, best other
    rates: Sequence[float] = RATES
    others: Sequence[str] = tuple(_optimizer_parts.BASELINES)
    num_tests: int | None = None  # None is the recipe's


# The paper's numbers: Andrychowicz et al. 2016, Figures 4 to 6, read off their curves.
# Appendix D has no results.
HALF = RATES[::2]
PANELS = {
    "quadratic": Panel("lstm-quadratic", paper=(0.0387, 0.0511)),
    "quadratic, averaging cells": Panel("lstm-gac-quadratic"),
    "quadratic, NTM-BFGS": Panel("ntm-bfgs-quadratic"),
    "mnist": Panel("lstm-mnist", paper=(0.245, 0.3235)),
    "mnist, 200 steps": Panel("lstm-mnist", steps=200, paper=(0.215, 0.252)),
    "mnist, 40 units": Panel("lstm-mnist", {"units": 40}, paper=(0.192, 0.299)),
    "mnist, 2 layers": Panel("lstm-mnist", {"layers": 2}, paper=(0.321, 0.696)),
    "mnist, relu": Panel("lstm-mnist", {"activation": "relu"}, paper=(2.585, 0.350)),
    "mnist, enhanced": Panel("lstm-mnist-enhanced", others=("adam", "nag")),
    "mnist, relu, enhanced": Panel(
        "lstm-mnist-enhanced", {"activation": "relu"}, others=("adam", "nag")
    ),
    "mnist, rnnprop": Panel(
        "rnnprop-mnist-enhanced", others=("adam", "nag"), num_tests=64
    ),
    "mnist, relu, rnnprop": Panel(
        "rnnprop-mnist-enhanced",
        {"activation": "relu"},
        others=("adam", "nag"),
        num_tests=64,
    ),
    "cifar10": Panel("lstm-cifar10", paper=(1.426, 1.637), rates=HALF),
    "cifar5": Panel(
        "lstm-cifar10", {"classes": tuple(range(5))}, paper=(0.698, 1.445), rates=HALF
    ),
    "cifar2": Panel(
        "lstm-cifar10", {"classes": (0, 1)}, paper=(0.21, 0.292), rates=HALF
    ),
    "cifar10, 1,000 steps": Panel(
        "lstm-cifar10",
        steps=1000,
        paper=(0.822, 0.793),
        rates=(0.001, 0.0032, 0.01, 0.032, 0.1),
        others=("adam", "nag"),
        num_tests=4,
    ),
}


def compare(panel, recipe, thetas, starts=None):
    """Returns summaries of the learned optimizer, one a theta, and of the others."""
    splits = dataclasses.replace(recipe.problem, **panel.changes).splits()
    lopt = recipe.optimizer.make()
    options = {
        "num_steps": panel.steps,
        "mesh": training.task_mesh(),
        "problems_per_chunk": recipe.problems_per_chunk,
    }
    num_tests = starts or panel.num_tests or recipe.test_problems
    test = options | {"num_problems": num_tests, "key": jax.random.key(1)}
    tuning = options | {
        "num_problems": recipe.validation_problems,
        "key": jax.random.key(2),
    }
    learned = [
        _optimizer_parts.summarize(
            training.evaluate_optimizer(lopt, theta, splits.test, **test)
        )
        for theta in thetas
    ]
    others = {}
    for other in panel.others:
        family = optimizers.learned_rate(_optimizer_parts.BASELINES[other])
        tuned = training.tune(family, panel.rates, splits.train, **tuning)
        curves = training.evaluate_optimizer(family, tuned.rate, splits.test, **test)
        others[other] = {"rate": tuned.rate} | _optimizer_parts.summarize(curves)
    return {"learned": learned, "others": others}


def meta_trained(recipe_name, seeds, folder, data_dir):
    """Returns a recipe and the best theta of each of its runs."""
    opened = [runs.read(folder / f"{recipe_name}-{seed}") for seed in range(seeds)]
    recipe = with_data(opened[0].recipe, data_dir)
    like = runs.build(recipe).like
    return recipe, [runs.best_meta_params(run, like) for run in opened]


def _path(name, folder):
    plain = name.replace(", ", "-").replace(",", "").replace(" ", "-").lower()
    return folder / f"{plain}.json"


def draw(name, result, path):
    """The first meta-seed's curves beside the others'."""
    ax = plots.optimizer_curves({"learned": result["learned"][0], **result["others"]})
    ax.set_title(name)
    ax.figure.savefig(path, dpi=100)


def table(folder):
    """Returns the Markdown table of the panels in a folder."""
    lines = [
        "| panel | steps | paper: LSTM / best other | ours, mean of seeds (each) | "
        "median | summed | best other, rate: final, summed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, panel in PANELS.items():
        path = _path(name, folder)
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
        paper = " / ".join(f"{x:g}" for x in panel.paper or ()) or "–"
        lines.append(
            f"| {name} | {panel.steps} | {paper} | "
            f"{np.mean(finals):.4f} ({each}) | {np.mean(medians):.4f} | "
            f"{np.mean(sums):.2f} | {best}, {found['rate']:g}: "
            f"{found['final']['mean']:.4f}, {found['summed']['mean']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", help="of which panels there are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--starts", type=int, help="test runs; default: the recipe's")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.recipes:
        training.use_cpu_devices()
        args.results.mkdir(parents=True, exist_ok=True)
    for recipe_name in args.recipes:
        recipe, thetas = meta_trained(recipe_name, args.seeds, args.runs, args.data_dir)
        for name, panel in PANELS.items():
            if panel.recipe != recipe_name:
                continue
            result = compare(panel, recipe, thetas, args.starts)
            result["environment"] = _timing.environment()
            path = _path(name, args.results)
            path.write_text(json.dumps(result, indent=1) + "\n")
            draw(name, result, path.with_suffix(".png"))
            print(table(args.results), flush=True)
    if args.table:
        print(table(args.results))


if __name__ == "__main__":
    main()
