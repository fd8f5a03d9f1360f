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
import pathlib
import re
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
BOUND = 1e3  # Meta-gradients of plain gradient descent are under 1 here.
RATE = 0.1

ADAM = "`adam`"
# Names of optax's rules, with what to use instead where a derivative is not right.
OPTAX = {
    "sgd": "",
    "sgd(momentum=0.9)": "",
    "clip": "",
    "clip_by_global_norm": "`clip_by_global_norm`",
    "clip_by_block_rms": "`clip_by_block_rms`",
    "adaptive_grad_clip": "`adaptive_grad_clip`",
    "normalize_by_update_norm": "`normalize_by_update_norm`",
    "scale_by_trust_ratio": "",
    "adam": ADAM,
    "adam(eps_root=1e-8)": "",
    "adamw": "`adamw`",
    "nadam": ADAM,
    "radam": ADAM,
    "amsgrad": ADAM,
    "adamax": ADAM,
    "adabelief": ADAM,
    "adan": "",
    "novograd": ADAM,
    "yogi": "",
    "lamb": ADAM,
    "lars": "",
    "fromage": "",
    "adafactor": ADAM,
    "adagrad": "",
    "adadelta": "",
    "rmsprop": "",
    "rprop": "",
    "sm3": "",
    "lion": "",
    "sign_sgd": "",
    "polyak_sgd": "",
    "contrib.adopt": ADAM,
    "contrib.ademamix": ADAM,
    "contrib.madgrad": "",
    "contrib.muon": "",
    "contrib.schedule_free_sgd": "",
}
OURS = (
    "clip_by_global_norm",
    "clip_by_block_rms",
    "adaptive_grad_clip",
    "normalize_by_update_norm",
    "adam",
    "adamw",
)
# Parts of a chain, which ends in gradient descent, and what they are given.
PARTS = {
    "clip": (1.0,),
    "clip_by_global_norm": (1.0,),
    "clip_by_block_rms": (1.0,),
    "adaptive_grad_clip": (0.1,),
    "normalize_by_update_norm": (),
    "scale_by_trust_ratio": (),
}


class Situation(NamedTuple):
    """A task and where the model starts."""

    params: Any
    task: jm.Task


class Finding(NamedTuple):
    """What a meta-gradient is."""

    verdict: str  # right, bounded, unbounded, wrong or NaN
    largest: float  # of the meta-gradient, in magnitude
    expected: float  # the largest finite difference, where all of them exist, else NaN


def make_rule(library: Any, name: str) -> optax.GradientTransformation:
    """The rule of this name in `optax` or `jaxmeta.optimizers`, at the rate `RATE`."""
    name, options = re.fullmatch(r"([\w.]+)(?:\((\w+)=(.+)\))?", name).group(1, 2), name
    name, option = name
    for part in name.split("."):
        library = getattr(library, part)
    if name in PARTS:
        return optax.chain(library(*PARTS[name]), optax.sgd(RATE))
    if option:
        value = float(options.rstrip(")").split("=")[1])
        return library(RATE, **{option: value})
    return library(RATE)


def situations() -> dict[str, Situation]:
    """Name -> situation."""
    inputs, targets = jnp.array([[1.0, 0.2], [0.1, -1.0]]), jnp.array([1.0, -1.0])
    support = jm.Examples(inputs, targets)
    task = jm.Task(support, jm.Examples(0.2 * inputs + 0.1, targets))
    params = lambda *x: {"features": jnp.array([x[:1], x[1:2]]), "head": jnp.array(x[2:])}
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
                grads, info = learner.meta_grad(jax.random.key(0), unravel(params), task)
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
    largest = np.abs(expected).max() if has_slope.all() else np.nan
    return Finding(verdict, float(np.abs(grad).max()), float(largest))


def measure_all() -> dict[str, dict[str, Finding]]:
    """Name of each rule, optax's and ours, -> its findings."""
    theirs = {f"optax.{n}": measure(make_rule(optax, n)) for n in OPTAX}
    ours = {
        f"jm.optimizers.{n}": measure(make_rule(jm.optimizers, n)) for n in OURS
    }
    return theirs | ours


def table(found: dict[str, dict[str, Finding]]) -> str:
    """The table of `docs/debugging.md`."""
    cases = list(next(iter(found.values())))
    lines = [
        f"Measured with optax {optax.__version__}.",
        "",
        f"| rule | {' | '.join(cases)} | instead, of `jm.optimizers` |",
        "|---" * (len(cases) + 2) + "|",
    ]
    for name, findings in found.items():
        instead = OPTAX.get(name.removeprefix("optax."), "")
        verdicts = " | ".join(finding.verdict for finding in findings.values())
        lines.append(f"| `{name}` | {verdicts} | {instead} |")
    return "\n".join(lines)


def committed_table() -> str:
    """What stands in `docs/debugging.md`."""
    return PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0].strip()


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    found = measure_all()
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
