"""One learner for 5 to 20 ways and 1 to 10 shots, beside those of one setting each.

    python -m benchmarks.varying_ways

Glyphs as a data set of classes: every learner meta-trains on tasks whose ways and shots
vary (padded to the highest, one compiled program), or on one of the fixed settings, for
as many tasks; all are tested on the fixed ones. Without batch normalisation padding
changes nothing. What it does to a learner with batch normalisation, trained without
padding, is measured too.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta as jm
from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "varying_ways.json"
VARYING = {"ways": (5, 20), "shots": (1, 10)}
FIXED = {
    "5-way 1-shot": {"ways": 5, "shots": 1},
    "5-way 5-shot": {"ways": 5, "shots": 5},
    "20-way 1-shot": {"ways": 20, "shots": 1},
}
NUM_CLASSES, NUM_TEST_CLASSES, NUM_EXAMPLES = 800, 200, 20


SIZE = 16  # pixels


class Training(NamedTuple):
    """A learner and its training."""

    learner: jm.MetaLearner
    steps: int  # of 4 tasks each
    varies: bool = True  # also on varying tasks


def model(norm: str | None = None) -> jm.models.Conv4:
    """The embedding: MAML's network for Omniglot with half the filters."""
    return jm.models.Conv4(32, head=None, strided=True, norm=norm)


TRAININGS = {
    "ProtoNet": Training(jm.prototypical(model()), 600),
    "Proto-MAML": Training(
        jm.proto_maml(model(), inner_tx=optax.sgd(0.03), inner_steps=2), 150
    ),
    "ProtoNet, batch normalisation": Training(
        jm.prototypical(model("batch")), 600, varies=False
    ),
}


def glyph_classes() -> tuple[np.ndarray, np.ndarray]:
    """Draws the data set, [C, E, 16, 16, 1] uint8: to train and to test."""
    sample = jm.tasks.glyphs(ways=50, queries=NUM_EXAMPLES - 1, size=SIZE)

    @jax.jit
    def draw(key):
        task = sample(key)
        parts = [x.inputs.reshape(50, -1, SIZE, SIZE, 1) for x in task]
        return jnp.round(255 * jnp.concatenate(parts, 1)).astype(jnp.uint8)

    keys = jax.random.split(jax.random.key(0), (NUM_CLASSES + NUM_TEST_CLASSES) // 50)
    images = np.concatenate([np.asarray(draw(key)) for key in keys])
    return images[:NUM_CLASSES], images[NUM_CLASSES:]


def pad(task: jm.Task) -> jm.Task:
    """Pads a task to 20 ways, 10 support examples and 5 queries of each."""

    def rows(examples, count):
        missing = (0, count - examples.targets.shape[0])
        ways = (0, 20 - examples.targets.shape[1])
        nothing = [(0, 0)] * 3
        return jm.Examples(
            jnp.pad(examples.inputs, [missing, *nothing]),
            jnp.pad(examples.targets, [missing, ways]),
        )

    return jm.Task(rows(task.support, 200), rows(task.query, 100))


def train(training: Training, images: np.ndarray, setting: dict, share: float):
    """Meta-trains on tasks of one setting; returns the meta-parameters."""
    sample_task = jm.tasks.few_shot(images, queries=5, **setting)
    estimator = jm.estimators.over_tasks(training.learner, sample_task, num_tasks=4)
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    num_steps = max(1, round(share * training.steps))

    @jax.jit
    def run(step, state):
        once = lambda state, _: (step(state)[0], None)
        return jax.lax.scan(once, state, length=num_steps)[0]

    return run(step, init(jax.random.key(0))).meta_params


def test(learner: jm.MetaLearner, meta_params, sample_task, num_tests: int):
    """Returns the accuracy over tasks and its interval."""
    key = jax.random.key(1)
    found = jm.training.evaluate(
        learner, meta_params, sample_task, num_tasks=num_tests, key=key
    ).metrics["accuracy"]
    return {"mean": float(found.mean[-1]), "half_width": float(found.half_width[-1])}


def run(training: Training, data, share: float, num_tests: int) -> dict[str, Any]:
    """Trains on varying and on fixed tasks; returns accuracies by test setting."""
    images, test_images = data
    varying = train(training, images, VARYING, share) if training.varies else None
    results = {}
    for name, setting in FIXED.items():
        sample_task = jm.tasks.few_shot(test_images, queries=5, **setting)
        padded = lambda key, sample_task=sample_task: pad(sample_task(key))
        fixed = train(training, images, setting, share)
        results[name] = {
            "fixed": test(training.learner, fixed, sample_task, num_tests),
            "fixed, padded": test(training.learner, fixed, padded, num_tests),
        }
        if varying is not None:
            found = test(training.learner, varying, sample_task, num_tests)
            results[name]["varying"] = found
        print(name, json.dumps(results[name]), flush=True)
    return results


def table(results: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    columns = ("fixed", "fixed, padded", "varying")
    lines = [
        "| learner | tested on | trained on that | the same, test tasks padded | "
        "trained on 5 to 20 ways, 1 to 10 shots |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for setting, found in result["tests"].items():
            cells = [
                f"{100 * found[c]['mean']:.1f} ± {100 * found[c]['half_width']:.1f}"
                if c in found
                else ""
                for c in columns
            ]
            lines.append(f"| {name} | {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=int, default=400, help="tasks of a test")
    parser.add_argument("--share", type=float, default=1.0, help="of the meta-steps")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--only", choices=TRAININGS, nargs="*", default=TRAININGS)
    args = parser.parse_args(argv)
    data = glyph_classes()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.only:
        training = TRAININGS[name]
        results[name] = {
            "environment": _timing.environment(),
            "steps": round(args.share * training.steps),
            "tests": run(training, data, args.share, args.tests),
        }
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
