"""2-D navigation: the return after a few updates, against other places to start from.

    python -m benchmarks.navigation

The setting of MAML's released code: goals uniform in [-0.5, 0.5]^2, reward minus the
distance, 100 time steps, 20 episodes before and after each inner step at rate 0.5, then
0.25, 20 goals a meta-step; tested with 40 episodes an update.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import jaxmeta as jm
from benchmarks import _timing
from jaxmeta import _axes, recipes

RESULTS = pathlib.Path(__file__).parent / "results" / "navigation.json"
RECIPE = recipes.RECIPES["maml-navigation"]
# Finn et al. 2017, Table 4: after 0 ... 3 updates.
PUBLISHED = {
    "MAML": [-40.41, -11.68, -3.33, -3.23],
    "context vector": [-42.42, -13.90, -5.17, -3.18],
}
TARGET = [None, -12.0, -4.0, -3.5]


def variants() -> dict[str, Any]:
    """Learner settings of each row; None is not trained at all."""
    learner = RECIPE.learner
    change = lambda **fields: dataclasses.replace(learner, **fields)
    return {
        "MAML": learner,
        "MAML, trained with one update": change(inner_steps=1),
        "FOMAML": change(first_order=True),
        # One policy for all goals, then fine-tuned like the others.
        "pretraining": change(inner_learning_rate=1e-12, later_learning_rate=1e-12),
        "random": None,
    }


def run(settings: Any, seed: int, num_tests: int, share: float, mesh) -> dict[str, Any]:
    """Trains and tests once; returns means and intervals after 0 ... 3 updates."""
    recipe = dataclasses.replace(RECIPE, learner=settings or RECIPE.learner)
    learner = recipe.make_learner()
    env = recipe.tasks.environment
    sample_task: Any = env.sample_task
    train_step = recipe.make_train_step(learner, sample_task, mesh)
    num_steps = 0 if settings is None else max(1, round(share * recipe.steps))
    key, test_key = jax.random.split(jax.random.key(seed))
    start, records = time.perf_counter(), []
    if num_steps:
        result = jm.training.fit(
            train_step,
            num_steps=num_steps,
            key=key,
            log_every=min(5, num_steps),
            validate_every=5 * num_steps,
            report=lambda record: records.append(record) or print(record, flush=True),
        )
        meta_params = result.state.meta_params
    else:
        meta_params = jax.jit(train_step.init)(key).meta_params
    seconds = time.perf_counter() - start
    found = jm.training.evaluate(
        RECIPE.make_learner(),  # With the same inner rates for all.
        meta_params,
        sample_task,
        num_tasks=num_tests,
        key=test_key,
        inner_steps=len(TARGET) - 1,
        mesh=mesh,
    ).metrics["return"]
    return {
        "seed": seed,
        "steps": num_steps,
        "train_seconds": round(seconds, 1),
        "mean": found.mean.tolist(),
        "half_width": found.half_width.tolist(),
        "curve": [[record["step"], record["return"]] for record in records],
    }


def plot(results: dict[str, Any], path: pathlib.Path):
    """Draws the return against the number of updates, bands from seed to seed."""
    figure = _axes.figure(width=6)
    ax = figure.subplots()
    styles = ("o-", "x:", "s--", "^-.", "v:")
    colors = (_axes.DARK, _axes.DARK, _axes.LIGHT, "0.35", "0.6")
    for (name, runs), style, color in zip(
        results.items(), styles, colors, strict=False
    ):
        means = np.array([one["mean"] for one in runs])
        steps = np.arange(means.shape[1])
        ax.plot(steps, means.mean(0), style, color=color, markersize=4, label=name)
        band = means.min(0), means.max(0)
        ax.fill_between(steps, *band, color=color, alpha=0.25, linewidth=0)
    published = PUBLISHED["MAML"]
    ax.plot(range(len(published)), published, "kx", label="MAML, published")
    ax.set_xlabel("updates")
    ax.locator_params(axis="x", integer=True)
    _axes.finish(ax, "return")
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def table(results: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    lines = ["| start | returns after 0 / 1 / 2 / 3 updates | meta-steps | s a seed |"]
    lines.append("|---|---|---|---|")
    for name, returns in PUBLISHED.items():
        cells = " / ".join(f"{x:.2f}" for x in returns)
        lines.append(f"| {name}, published | {cells} | up to 500 | |")
    for name, runs in results.items():
        means = np.mean([one["mean"] for one in runs], 0)
        widths = np.mean([one["half_width"] for one in runs], 0)
        pairs = zip(means, widths, strict=True)
        cells = " / ".join(f"{m:.2f} ± {w:.2f}" for m, w in pairs)
        seconds = np.mean([one["train_seconds"] for one in runs])
        lines.append(f"| {name} | {cells} | {runs[0]['steps']} | {seconds:.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tests", type=int, default=400, help="goals of a test")
    parser.add_argument("--share", type=float, default=1.0, help="of the meta-steps")
    parser.add_argument("--only", nargs="*", default=list(variants()))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    mesh = jm.training.task_mesh()
    results = {}
    for name in args.only:
        results[name] = [
            run(variants()[name], seed, args.tests, args.share, mesh)
            for seed in range(args.seeds)
        ]
        print(name, json.dumps(results[name]), flush=True)
    result = {
        "environment": _timing.environment(),
        "published": PUBLISHED,
        "target": TARGET,
        "results": results,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(results, args.out.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
