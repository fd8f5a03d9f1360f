"""An optimizer meta-trained on 20 units, on networks of other widths and depths.

    python -m benchmarks.reproduce lstm-mnist --data-dir DIR
    python -m benchmarks.l2l_sizes --data-dir DIR

Figure 6 of "Learning to learn by gradient descent by gradient descent": final losses of
perceptrons with 5 to 50 sigmoid units in one or two hidden layers after 100 updates.
Adam's and NAG's rates are tuned anew for each of them.
"""

import argparse
import dataclasses
import json
import pathlib

import jax

from benchmarks import _timing
from benchmarks.l2l_panels import meta_trained
from jaxmeta import optimizers, plots, training
from jaxmeta.runs import _optimizer_parts

RESULTS = pathlib.Path(__file__).parent / "results" / "l2l_sizes.json"
WIDTHS = tuple(range(5, 51, 5))
DEPTHS = (1, 2)
RATES = (0.01, 0.018, 0.032, 0.056, 0.1, 0.32, 0.56, 1.0, 1.8, 3.2)
# Andrychowicz et al. 2016, Figure 6, read off its curves; NAG's panel there shows the
# losses after 200 updates.
PAPER = {
    "LSTM": (
        (0.595, 0.349, 0.282, 0.245, 0.231, 0.212, 0.207, 0.192, 0.178, 0.194),
        (1.02, 0.550, 0.399, 0.321, 0.296, 0.264, 0.245, 0.238, 0.226, 0.203),
    ),
    "adam": (
        (0.829, 0.489, 0.422, 0.369, 0.352, 0.321, 0.315, 0.311, 0.293, 0.294),
        (1.55, 1.02, 0.837, 0.696, 0.640, 0.611, 0.603, 0.572, 0.559, 0.554),
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--problems", type=int, default=16)
    args = parser.parse_args()
    training.use_cpu_devices()
    recipe, (theta,) = meta_trained("lstm-mnist", 1, args.runs, args.data_dir)
    options = {
        "num_steps": 100,
        "num_problems": args.problems,
        "problems_per_chunk": recipe.problems_per_chunk,
        "mesh": training.task_mesh(),
    }
    found = {"LSTM": [], "adam": [], "nag": []}
    for depth in DEPTHS:
        rows = {name: [] for name in found}
        for width in WIDTHS:
            problem = dataclasses.replace(recipe.problem, units=width, layers=depth)
            splits = problem.splits()
            for name, row in rows.items():
                row.append(_final_loss(name, recipe, theta, splits, options))
            print(depth, width, {name: row[-1] for name, row in rows.items()})
        for name, row in rows.items():
            found[name].append(row)
    result = {
        "environment": _timing.environment(("jaxmeta", "jax", "jaxlib", "optax")),
        "widths": WIDTHS,
        "depths": DEPTHS,
        "ours": found,
        "paper": PAPER,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    ax = plots.width_depth_grid(found, WIDTHS, DEPTHS)
    ax.figure.savefig(RESULTS.with_suffix(".png"), dpi=100)


def _final_loss(name, recipe, theta, splits, options):
    lopt = recipe.optimizer.make()
    if name in _optimizer_parts.BASELINES:
        lopt = optimizers.learned_rate(_optimizer_parts.BASELINES[name])
        tuning = options | {"key": jax.random.key(2)}
        theta = training.tune(lopt, RATES, splits.train, **tuning).rate
    test = options | {"key": jax.random.key(1)}
    curves = training.evaluate_optimizer(lopt, theta, splits.test, **test)
    return float(curves.final.mean)


if __name__ == "__main__":
    main()
