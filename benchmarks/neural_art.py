"""Pictures of a finished run of a neural-art recipe, beside tuned optimizers'.

    jaxmeta train lstm-neural-art --weights FILE --pictures FOLDER --out RUN
    python -m benchmarks.neural_art RUN [--out FILE.json]

On the run's test problem: held-out content, another style, twice the resolution. The
others' rates and all losses are the run's own, of `summary.json`.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from benchmarks import _timing
from jaxmeta.runs import _build, _folder, _optimizer_parts

RESULTS = pathlib.Path(__file__).parent / "results" / "neural_art.json"
RIVALS = {"adam", "rmsprop"}


def image_after(tx, problem, num_steps, key):
    """Runs `tx`; returns the first image, the last, and the last loss."""
    sample_key, start_key, run_key = jax.random.split(key, 3)
    instance = problem.sample(sample_key)
    start = problem.init(start_key, instance)
    tx = optax.with_extra_args_support(tx)

    def body(k, carry):
        image, state = carry
        grads = jax.grad(problem.loss)(image, instance, jax.random.fold_in(run_key, k))
        updates, state = tx.update(grads, state, image, total_steps=num_steps)
        return optax.apply_updates(image, updates), state

    image, _ = jax.lax.fori_loop(0, num_steps, body, (start, tx.init(start)))
    return start, image, problem.loss(image, instance, run_key)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    run = _folder.read(args.run)
    problem = run.recipe.problem.splits().test
    test = json.loads((args.run / "summary.json").read_text())["test"]
    theta = _folder.best_meta_params(run, _build.build(run.recipe).like)
    learned = run.recipe.optimizer.make()
    rules = {run.name.removesuffix("-neural-art"): learned.transform(theta)}
    for name in sorted(RIVALS & test["optimizers"].keys()):
        rate = test["optimizers"][name]["rate"]
        rules[f"{name}, {rate:g}"] = _optimizer_parts.BASELINES[name](rate)
    images, losses = {}, {}
    for name, tx in rules.items():
        draw = jax.jit(
            lambda key, tx=tx: image_after(tx, problem, test["num_steps"], key)
        )
        start, image, loss = draw(jax.random.key(run.recipe.seed))
        images |= {"start": start, name: image}
        losses[name] = float(loss)
    figure, axes = plt.subplots(
        1, len(images), figsize=(2.2 * len(images), 2.8), layout="constrained"
    )
    for ax, (name, image) in zip(axes, images.items(), strict=True):
        ax.imshow(np.clip(image, 0, 1))
        loss = f"\nloss {losses[name]:.3f}" if name in losses else ""
        ax.set_title(f"{name}{loss}", fontsize=8)
        ax.axis("off")
    figure.savefig(args.out.with_suffix(".png"), dpi=150)
    kept = {
        name: {key: found[key] for key in ("rate", "final", "summed") if key in found}
        for name, found in test["optimizers"].items()
    }
    result = {
        "environment": _timing.environment(),
        "settings": {"recipe": run.name, "steps": run.recipe.steps},
        "pictures": losses,
        "optimizers": kept,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
