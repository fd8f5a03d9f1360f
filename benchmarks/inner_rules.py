"""Which of optax's rules can be differentiated where an inner gradient is zero?

    python -m benchmarks.inner_rules

The meta-gradient of MAML through each rule, in float64, in two situations. In "flat"
the support set has no loss (a hinge loss with every margin met), so that all gradients
are zero; in "head" the last layer is zero, and with it the gradient of the layer below.
One-sided finite differences say what is right. The table in `docs/debugging.md` is
written anew.
"""

import argparse
import json
import operator
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxmeta as jm
from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "inner_rules.json"
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "debugging.md"
MARKS = ("<!-- inner rules: python -m benchmarks.inner_rules -->", "<!-- end -->")
INNER_STEPS = (1, 20)
BOUND = 100.0  # Meta-gradients of plain gradient descent are under 1 here.
RATE = 0.1

# Parts of a chain that ends in gradient descent, with their arguments.
PARTS = {
    "clip_by_global_norm": (1.0,),
    "clip_by_block_rms": (1.0,),
    "adaptive_grad_clip": (0.1,),
    "normalize_by_update_norm": (),
}
COMPLETE = (
    *("adam", "adamw", "nadam", "radam", "amsgrad", "adamax", "adabelief", "adan"),
    *("novograd", "yogi", "lamb", "lars", "fromage", "adafactor", "adagrad"),
    *("adadelta", "rmsprop", "rprop", "lion", "polyak_sgd"),
    *("contrib.adopt", "contrib.muon"),
)
# What to use -> instead of which rules of optax.
INSTEAD = {f"jm.optimizers.{name}": [name] for name in PARTS} | {
    "jm.optimizers.adam": [
        *("adam", "nadam", "radam", "amsgrad", "adamax", "adabelief", "novograd"),
        *("adafactor", "contrib.adopt", "contrib.muon"),
    ],
    "jm.optimizers.adamw": ["adamw", "lamb"],
    "optax.sgd": ["lars", "polyak_sgd"],
}


class Situation(NamedTuple):
    """A task and where the model starts."""

    params: Any
    task: jm.Task


class Finding(NamedTuple):
    """What a meta-gradient is."""

    verdict: str  # right, bounded, unbounded, wrong or NaN
    largest: float | None  # magnitude in the meta-gradient; None is NaN
    expected: float | None  # the same in finite differences; None if they disagree


def rules() -> dict[str, optax.GradientTransformation]:
    """Name -> optax's rules, then ours."""

    def parts(library):
        return {
            name: optax.chain(getattr(library, name)(*args), optax.sgd(RATE))
            for name, args in PARTS.items()
        }

    theirs = {
        "sgd": optax.sgd(RATE),
        "sgd(momentum=0.9)": optax.sgd(RATE, momentum=0.9),
        "clip": optax.chain(optax.clip(1.0), optax.sgd(RATE)),
        **parts(optax),
        "adam(eps_root=1e-8)": optax.adam(RATE, eps_root=1e-8),
        **{name: operator.attrgetter(name)(optax)(RATE) for name in COMPLETE},
    }
    ours = parts(jm.optimizers) | {
        "adam": jm.optimizers.adam(RATE),
        "adamw": jm.optimizers.adamw(RATE),
    }
    return {f"optax.{name}": tx for name, tx in theirs.items()} | {
        f"jm.optimizers.{name}": tx for name, tx in ours.items()
    }


def situations() -> dict[str, Situation]:
    """Name -> situation."""
    inputs, targets = jnp.array([[1.0, 0.2], [0.1, -1.0]]), jnp.array([1.0, -1.0])
    support = jm.Examples(inputs, targets)
    task = jm.Task(support, jm.Examples(0.2 * inputs + 0.1, targets))
    params = lambda *x: {
        "features": jnp.array([x[:1], x[1:2]]),
        "head": jnp.array(x[2:]),
    }
    return {
        "flat": Situation(params(2.0, 2.0, 2.0), task),
        "head": Situation(params(0.7, 0.4, 0.0), task),
    }


def measure(inner_tx: optax.GradientTransformation) -> dict[str, Finding]:
    """Situation and number of inner steps -> what the meta-gradient is."""
    model = jm.Model(lambda key, x: None, lambda p, x: x @ p["features"] @ p["head"])
    hinge = lambda outputs, targets: jnp.mean(jax.nn.relu(1 - targets * outputs))
    learners = {
        steps: jm.maml(model, hinge, inner_tx=inner_tx, inner_steps=steps)
        for steps in INNER_STEPS
    }
    with jax.enable_x64(True):
        cases = situations()
        unravel = ravel_pytree(cases["flat"].params)[1]

        @jax.jit
        def meta_grads(params, task):
            found = {}
            for steps, learner in learners.items():
                grads, info = learner.meta_grad(
                    jax.random.key(0), unravel(params), task
                )
                found[steps] = ravel_pytree(grads)[0], info.loss
            return found

        return {
            f"{name}, K = {steps}": _judge(
                lambda p, case=case, steps=steps: meta_grads(p, case.task)[steps],
                np.asarray(ravel_pytree(case.params)[0]),
            )
            for name, case in cases.items()
            for steps in INNER_STEPS
        }


def _judge(grad_and_loss, params):
    """Compares a meta-gradient with one-sided differences at two distances."""
    grad, here = (np.asarray(x) for x in grad_and_loss(params))
    steps = [side * h for h in (1e-6, 1e-7) for side in (1, -1)]
    slopes = np.array(
        [
            [(float(grad_and_loss(params + h * e)[1]) - here) / h for h in steps]
            for e in np.eye(params.size)
        ]
    )  # [P, 4]
    expected = slopes[:, 2:].mean(1)
    has_slope = np.ptp(slopes, 1) < 0.01 * (1 + np.abs(expected))
    expected = np.where(has_slope, expected, grad)
    if not np.isfinite(grad).all():
        verdict = "NaN"
    elif not np.allclose(grad, expected, rtol=0.01, atol=1e-3):
        verdict = "wrong"
    elif has_slope.all():
        verdict = "right"
    else:
        verdict = "bounded" if np.abs(grad).max() < BOUND else "unbounded"
    largest = None if verdict == "NaN" else float(np.abs(grad).max())
    return Finding(
        verdict, largest, float(np.abs(expected).max()) if has_slope.all() else None
    )


def row(name: str, findings: dict[str, Finding]) -> str:
    """A rule's row of the table."""
    verdicts = [finding.verdict for finding in findings.values()]
    library, rule = name.split(".", 1)
    unsafe = {rule: safe for safe, rules in INSTEAD.items() for rule in rules}
    instead = f" `{unsafe[rule]}`" if library == "optax" and rule in unsafe else ""
    return f"| `{name}` | {' | '.join(verdicts)} |{instead} |"


def table(found: dict[str, dict[str, Finding]]) -> str:
    """The table of `docs/debugging.md`."""
    cases = list(next(iter(found.values())))
    lines = [
        f"Measured with optax {optax.__version__}:",
        "",
        f"| rule | {' | '.join(cases)} | instead |",
        "|---" * (len(cases) + 2) + "|",
        *(row(name, findings) for name, findings in found.items()),
    ]
    return "\n".join(lines)


def committed_table() -> str:
    """What stands in `docs/debugging.md`."""
    return PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0].strip()


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    found = {name: measure(rule) for name, rule in rules().items()}
    print(table(found))
    page = PAGE.read_text().replace(committed_table(), table(found))
    PAGE.write_text(page)
    result = {
        "environment": _timing.environment(),
        "rules": {
            name: {case: finding._asdict() for case, finding in findings.items()}
            for name, findings in found.items()
        },
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
