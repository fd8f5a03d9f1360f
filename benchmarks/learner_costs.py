"""What a meta-step of each learner costs, against one forward and backward pass.

    python -m benchmarks.learner_costs

One task of Omniglot's shapes, 5 ways, 1 shot, 5 queries a class, Conv4 with 64 filters,
strided, on one core. The unit is the gradient of a classifier's loss on the task's 30
images. Also: exact MAML against first order with 1 and 5 inner steps, and the memory
of implicit MAML from 1 to 64.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "learner_costs.json"


def learners(filters: int = 64) -> dict[str, Any]:
    """Name -> learner, in the order of the table in docs."""
    import optax

    import jaxmeta as jm

    net = jm.models.Conv4(filters, strided=True)
    embedding = jm.models.Conv4(filters, head=None, strided=True)
    film = jm.models.FilmConv4(filters, head=5, strided=True)
    relation = jm.models.RelationEmbedding(filters)
    entropy = jm.losses.cross_entropy

    def steps(count, rate=0.1):
        return {"inner_tx": optax.sgd(rate), "inner_steps": count}

    return {
        "maml, 1 step": jm.maml(net, entropy, **steps(1)),
        "maml, 5 steps": jm.maml(net, entropy, **steps(5)),
        "maml, first order, 1 step": jm.maml(
            net, entropy, first_order=True, **steps(1)
        ),
        "maml, first order, 5 steps": jm.maml(
            net, entropy, first_order=True, **steps(5)
        ),
        "reptile, 5 steps": jm.reptile(net, entropy, **steps(5)),
        "meta_sgd, 1 step": jm.meta_sgd(net, entropy),
        "anil, 5 steps": jm.anil(net, entropy, **steps(5)),
        "boil, 1 step": jm.boil(net, entropy, **steps(1)),
        "maml_plus_plus, 5 steps": jm.maml_plus_plus(net, entropy, multi_step_until=1),
        "cavia, 2 steps": jm.cavia(
            film, entropy, num_context=100, context="model", **steps(2)
        ),
        "imaml, 5 steps, 5 of CG": jm.imaml(net, entropy, **steps(5)),
        "meta_curvature, 1 step": jm.meta_curvature(net, entropy),
        "meta_lstm, 5 steps": jm.meta_lstm(net, entropy, inner_steps=5),
        "proto_maml, 1 step": jm.proto_maml(embedding, **steps(1)),
        "prototypical": jm.prototypical(embedding),
        "matching": jm.matching(embedding),
        "siamese": jm.siamese(embedding),
        "relation": jm.relation(relation),
        "ridge": jm.ridge(embedding),
        "svm": jm.svm(embedding),
        "subspace": jm.subspace(embedding, flip=True),
        "feat": jm.feat(embedding),
    } | {
        f"imaml, {count} steps": jm.imaml(net, entropy, **steps(count))
        for count in (1, 4, 16, 64)
    }


def make_task():
    """Random images in Omniglot's shapes."""
    import jax
    import jax.numpy as jnp

    import jaxmeta as jm

    def examples(seed, shots):
        images = jax.random.uniform(jax.random.key(seed), (5 * shots, 28, 28, 1))
        return jm.Examples(images, jnp.repeat(jnp.eye(5), shots, 0))

    return jm.Task(examples(0, 1), examples(1, 5))


def measure(fn, *args, seconds) -> dict[str, float]:
    """FLOPs, milliseconds, temporaries and seconds of compilation of one call."""
    from benchmarks import _flops

    timing = _timing.time_compiled(fn, *args, seconds=seconds)
    return {
        "gflop": _flops.count(fn, *args) / 1e9,
        "ms": 1e3 * timing.run.median_s,
        "iqr_ms": 1e3 * timing.run.iqr_s,
        "temp_mib": timing.temp_bytes / 2**20,
        "compile_s": timing.compile_s,
    }


def unit(seconds):
    """One forward and backward pass of a classifier on all of the task's images."""
    import jax
    import jax.numpy as jnp

    import jaxmeta as jm

    net, task = jm.models.Conv4(64, strided=True), make_task()
    images, targets = (jnp.concatenate(parts) for parts in zip(*task, strict=True))
    params = net.init(jax.random.key(0), images)

    def gradient(params, images, targets):
        loss = lambda p: jm.losses.cross_entropy(net.apply(p, images), targets)
        return jax.grad(loss)(params)

    return measure(gradient, params, images, targets, seconds=seconds)


def table(result: dict[str, Any]) -> str:
    """Returns the Markdown table, everything relative to the unit."""
    one = result["unit"]
    lines = [
        "| learner | FLOPs | time | temporaries | compile, s |",
        "|---|---|---|---|---|",
    ]
    for name, found in result["learners"].items():
        ratios = (found[k] / one[k] for k in ("gflop", "ms", "temp_mib"))
        cells = " | ".join(f"{ratio:.1f}" for ratio in ratios)
        lines.append(f"| `{name}` | {cells} | {found['compile_s']:.1f} |")
    lines.append(
        f"\nThe unit: {one['gflop']:.2f} GFLOP, {one['ms']:.1f} ms, "
        f"{one['temp_mib']:.1f} MiB."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each timing")
    parser.add_argument("--only", nargs="*", help="learners whose names begin so")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    _timing.pin_to_cores(1)
    import jax

    found = {}
    key, task = jax.random.key(0), make_task()
    one = unit(args.seconds)
    for name, learner in learners().items():
        if args.only and not name.startswith(tuple(args.only)):
            continue
        meta_params = learner.init(key, task)
        step = lambda meta_params, learner=learner: learner.meta_grad(
            key, meta_params, task, step=jax.numpy.zeros((), int)
        )
        found[name] = measure(step, meta_params, seconds=args.seconds)
        print(name, json.dumps(found[name]), flush=True)
    environment = _timing.environment()
    result = {"environment": environment, "unit": one, "learners": found}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
