"""Meta-training of running bodies: environment steps a second, and does it help?

    python -m benchmarks.locomotion
    jaxmeta train maml-half-cheetah-direction

The first makes some meta-steps of a small setting, for machines without accelerator;
the second is the full run. Both need brax: pip install 'jaxmeta[rl]'.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

import jaxmeta as jm
from benchmarks import _timing
from jaxmeta import recipes

RESULTS = pathlib.Path(__file__).parent / "results" / "locomotion.json"
BODIES = ("half-cheetah-direction", "half-cheetah-velocity")


def run(body: str, args: argparse.Namespace, mesh) -> dict[str, Any]:
    """Trains a body for some meta-steps; tests it before and after."""
    recipe = recipes.RECIPES[f"maml-{body}"]
    recipe = dataclasses.replace(
        recipe,
        tasks=recipes.LocomotionTasks(body, args.horizon, args.backend),  # pyright: ignore
        learner=dataclasses.replace(
            recipe.learner, num_episodes=args.episodes, test_episodes=args.episodes
        ),
        num_tasks=args.tasks,
    )
    learner = recipe.make_learner()
    sample_task: Any = recipe.tasks.splits().train
    init, step = recipe.make_train_step(learner, sample_task, mesh)
    key, test_key = jax.random.split(jax.random.key(0))

    def test(meta_params):
        found = jm.training.evaluate(
            learner,
            meta_params,
            sample_task,
            num_tasks=args.tests,
            key=test_key,
            inner_steps=1,
            mesh=mesh,
        ).metrics["return"]
        return {"mean": found.mean.tolist(), "half_width": found.half_width.tolist()}

    state = jax.jit(init)(key)
    before = test(state.meta_params)
    step, start = jax.jit(step), time.perf_counter()
    compiled = step.lower(state).compile()
    compile_seconds, start = time.perf_counter() - start, time.perf_counter()
    curve = []
    for i in range(args.steps):
        state, info = compiled(state)
        metrics = {name: float(x.mean()) for name, x in info.metrics.items()}
        curve.append(metrics)
        print(body, i + 1, metrics, flush=True)
    seconds = (time.perf_counter() - start) / args.steps
    env_steps = args.tasks * 2 * args.episodes * args.horizon
    return {
        "compile_seconds": round(compile_seconds, 1),
        "seconds_per_meta_step": round(seconds, 2),
        "env_steps_per_second": round(env_steps / seconds),
        "test_before": before,
        "test_after": test(state.meta_params),
        "curve": curve,
    }


def table(results: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    lines = [
        "| body | return after 0 / 1 updates, untrained | meta-trained | "
        "environment steps a second | s a meta-step | compile, s |",
        "|---|---|---|---|---|---|",
    ]
    for body, found in results.items():
        before, after = (
            " / ".join(
                f"{m:.1f} ± {w:.1f}"
                for m, w in zip(test["mean"], test["half_width"], strict=True)
            )
            for test in (found["test_before"], found["test_after"])
        )
        lines.append(
            f"| {body} | {before} | {after} | {found['env_steps_per_second']:,} | "
            f"{found['seconds_per_meta_step']} | {found['compile_seconds']} |"
        )
    return "\n".join(lines)


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Return before and after adaptation over meta-training, a panel a body."""
    from jaxmeta import _axes

    figure = _axes.figure(width=5 * len(results))
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    styles = (("return_before", "before", "--"), ("return", "after", "-"))
    for ax, (body, found) in zip(axes, results.items(), strict=True):
        for (name, label, style), color in zip(styles, _axes.colors(2), strict=True):
            values = np.array([record[name] for record in found["curve"]])
            smooth = np.convolve(values, np.ones(10) / 10, "valid")
            steps = np.arange(len(smooth)) + 10
            ax.plot(steps, smooth, style, color=color, label=f"{label} one update")
        ax.set_title(body)
        ax.set_xlabel("meta-steps")
        _axes.finish(ax, "return, mean of 10 meta-steps")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bodies", nargs="*", default=BODIES)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--backend", default="spring")
    parser.add_argument("--tests", type=int, default=40, help="tasks of a test")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    mesh = jm.training.task_mesh()
    results = {body: run(body, args, mesh) for body in args.bodies}
    packages = (*_timing.PACKAGES, "brax")
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "bodies")}
    result = {
        "environment": _timing.environment(packages),
        "settings": settings,
        "results": results,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(results, args.out.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
