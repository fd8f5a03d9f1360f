"""Zero-shot learning: do metric learners find classes that they only know described?

    python -m benchmarks.zero_shot
    python -m benchmarks.zero_shot --seen 100
    python -m benchmarks.zero_shot --data-dir DIR

Prototypical and relation networks, meta-trained on seen classes by tasks of 20, choose
among all the unseen classes at once; beside chance and the closed form of ESZSL. On
worlds of `attribute_world`, and with `--data-dir` on Omniglot's characters (Vinyals et
al.'s split), described by statistics of ten drawings of each and tested on the others.
Settings were chosen on other worlds than these; validation classes choose ESZSL's.
"""

import argparse
import json
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _eszsl, _timing
from jaxmeta import estimators, models, tasks, training
from jaxmeta.learners import prototypical, relation

RESULTS = pathlib.Path(__file__).parent / "results" / "zero_shot.json"
WAYS, QUERIES = 20, 5
# Worlds 0 and 1, of 40 seen classes, chose the settings.
FIRST_WORLD = 100
# Forty seen classes are soon known by heart.
WEIGHT_DECAY = {"prototypical": 1.0, "relation": 2.0}


class Comparison(nn.Module):
    """A relation module that sees products and squared differences of its pair."""

    hidden: int = 64
    normalize: bool = False

    @nn.compact
    def __call__(self, pairs):
        described, shown = jnp.split(pairs, 2, -1)
        if self.normalize:
            described, shown = nn.LayerNorm()(described), nn.LayerNorm()(shown)
        seen = [jnp.square(described - shown), described * shown]
        return models.MLP([self.hidden, 1])(jnp.concatenate(seen, -1))


def learners(model, support_model, comparison):
    """Name -> learner of an embedding of queries and one of attributes."""
    return {
        "prototypical": prototypical(model, support_model=support_model),
        "relation": relation(
            model, support_model=support_model, relation_model=comparison
        ),
    }


def meta_train(learner, data, *, steps, weight_decay, key):
    """Meta-trains on the seen classes; returns meta-parameters."""
    sample_task = tasks.zero_shot(data, ways=WAYS, queries=QUERIES)
    estimator = estimators.over_tasks(learner, sample_task, num_tasks=1)
    schedule = optax.cosine_decay_schedule(3e-3, steps)
    outer_tx = optax.adamw(schedule, weight_decay=weight_decay)
    init, step = training.make_train_step(estimator, outer_tx)

    @jax.jit
    def run(step, state):
        return jax.lax.scan(lambda state, _: step(state), state, length=steps)

    state, _ = run(step, init(key))
    return state.meta_params


def accuracy(learner, meta_params, task, *, batch=100):
    """Mean over classes of the share of their examples found among all of them."""
    predict = jax.jit(learner.predict)
    task_params, _ = learner.adapt(jax.random.key(0), meta_params, task.support)
    batches = np.array_split(task.query.inputs, -(-len(task.query.inputs) // batch))
    predicted = np.concatenate([predict(task_params, x).argmax(-1) for x in batches])
    labels = np.asarray(task.query.targets).argmax(1)
    hits = predicted == labels
    return float(np.mean([hits[labels == c].mean() for c in np.unique(labels)]))


def closed_form(data):
    """ESZSL's accuracy on unseen classes, and what validation chose."""
    seen, unseen = (
        _as_numpy(tasks.zero_shot_test(data, classes=classes))
        for classes in (data.seen, data.unseen)
    )
    weights, chosen = _eszsl.choose(*seen)
    return float(_eszsl.accuracy(weights, *unseen)), chosen._asdict()


def _as_numpy(task):
    """Features [N, D], labels [N], and attributes [S, A] scaled to length one."""
    features = np.asarray(task.query.inputs, float)
    attributes = np.asarray(task.support.inputs, float)
    return (
        features.reshape(len(features), -1),
        np.asarray(task.query.targets).argmax(1),
        # As the attributes are in the data of Xian et al.
        attributes / np.linalg.norm(attributes, axis=1, keepdims=True),
    )


def measure(data, made, *, seeds, steps, weight_decay):
    """Accuracies on one set of data, one for each seed."""
    start = time.perf_counter()
    eszsl, chosen = closed_form(data)
    found = {
        "chance": 1 / len(data.unseen),
        "eszsl": eszsl,
        "eszsl_chosen": chosen,
        "eszsl_seconds": time.perf_counter() - start,
    }
    test = tasks.zero_shot_test(data)
    for name, learner in made.items():
        start = time.perf_counter()
        found[name] = [
            accuracy(
                learner,
                meta_train(
                    learner,
                    data,
                    steps=steps,
                    weight_decay=weight_decay[name],
                    key=jax.random.key(seed),
                ),
                test,
            )
            for seed in seeds
        ]
        found[f"{name}_seconds"] = (time.perf_counter() - start) / len(seeds)
    print(json.dumps(found, indent=1), flush=True)
    return found


def synthetic(seeds, steps, num_seen):
    """A world a seed."""
    linear = models.MLP([64])
    worlds = []
    for seed in range(seeds):
        data = tasks.attribute_world(
            jax.random.key(FIRST_WORLD + seed),
            num_classes=num_seen + 20,
            num_seen=num_seen,
        )
        options = {"steps": steps, "weight_decay": WEIGHT_DECAY}
        made = learners(linear, linear, Comparison())
        worlds.append(measure(data, made, seeds=[seed], **options))
    means = {
        name: float(np.mean([world[name] for world in worlds]))
        for name in ("chance", "eszsl", "prototypical", "relation")
    }
    print(means)
    return {"mean": means, "worlds": worlds, "steps": steps}


def omniglot(data_dir, seeds, steps):
    """One data set, several meta-seeds."""
    splits = tasks.load_omniglot(data_dir)
    data = tasks.image_attributes(splits.train, splits.test)
    # Without batch statistics: what one query is taken for depends on no other.
    images = models.Conv4(32, head=64, strided=True, norm=None)
    # Embeddings of a deep network begin so far apart that all relations stay zero.
    made = learners(images, models.MLP([128, 64]), Comparison(normalize=True))
    options = {"steps": steps, "weight_decay": dict.fromkeys(made, 0.01)}
    return measure(data, made, seeds=range(seeds), **options) | {"steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seen", type=int, default=40, help="classes of a world")
    parser.add_argument("--data-dir", type=pathlib.Path, help="of Omniglot")
    args = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    packages = ("jaxmeta", "jax", "jaxlib", "optax", "numpy")
    if args.data_dir is None:
        name = f"synthetic, {args.seen} seen classes"
        result[name] = synthetic(args.seeds, args.steps, args.seen)
    else:
        name = "omniglot"
        result[name] = omniglot(args.data_dir, args.seeds, args.steps)
    result[name]["environment"] = _timing.environment(packages)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
