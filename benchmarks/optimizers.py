"""Optimizers on problems that no rule of ours was trained on.

    python -m benchmarks.optimizers --data FOLDER
    python -m benchmarks.optimizers --data FOLDER --only characters --steps 200
    python -m benchmarks.optimizers --data FOLDER --rivals "adam, cosine" celo
    python -m benchmarks.optimizers --table

"general" as it is, beside optax's optimizers with a rate tuned for each problem and
number of updates, on other seeds than those of the test. The problems and what the
folder must have are in `_optimizer_problems`; those whose data are missing are left
out. Celo takes part if the folder has its published weights, `celo/celo_theta.state`.
What is run takes the place of the same in the JSON; the rest stays.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmeta as jm
from benchmarks import _timing
from benchmarks._optimizer_problems import FEW, Case, cases, later

RESULTS = pathlib.Path(__file__).parent / "results" / "optimizers.json"
RATES = tuple(float(f"{rate:.1e}") for rate in 10 ** np.arange(-4, 0.1, 0.5))
MANY = 3000  # examples of which final training losses are taken, or at most
TUNING_SEEDS = 2
POINTS = 20  # losses along a run
FLOOR = 1e-4  # Below this share of the first loss, losses count as equal.
OURS, DEFAULT, BEST = "general", "adam, 1e-3", "adam, cosine"
LATER = tuple(later(pathlib.Path()))  # In the tables, not in the means.
TIMED = (OURS, BEST, "celo")
# (rate, number of updates) -> transformation
Make = Callable[[Any, Any], optax.GradientTransformation]


def optimizers() -> dict[str, Make]:
    """Those of optax, by name."""

    def cosine(make):
        def scheduled(rate, total):
            return make(lambda t: rate * 0.5 * (1 + jnp.cos(jnp.pi * t / total)))

        return scheduled

    def constant(make):
        return lambda rate, total: make(rate)

    nesterov = lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)
    adamw = lambda rate: optax.adamw(rate, weight_decay=1e-2)
    return {
        "adam, constant": constant(optax.adam),
        BEST: cosine(optax.adam),
        "adamw, constant": constant(adamw),
        "adamw, cosine": cosine(adamw),
        "nag, cosine": cosine(nesterov),
        "lion, cosine": cosine(optax.lion),
        "muon, cosine": cosine(optax.contrib.muon),
        "schedule-free": constant(optax.contrib.schedule_free_adamw),
    }


def learned(theta: Any | None, celo: pathlib.Path) -> dict[str, Make]:
    """Learned rules by name; they have no rate."""
    if theta is None:
        theta = jm.optimizers.load_pretrained(OURS).theta
    ours = lambda rate, total: jm.optimizers.learned_adam(total).transform(theta)
    if not celo.exists():
        return {OURS: ours}
    weights = jm.optimizers.read_celo(celo)
    of_celo = lambda rate, total: jm.optimizers.celo(total).transform(weights)
    return {OURS: ours, "celo": of_celo}


def runner(case: Case, make: Make) -> Callable[..., Any]:
    """Returns `(rates [N], seeds [N], total) -> (curves [N, POINTS], losses [N, 2])`.

    The curves are training losses of few examples, the others the final training and
    test losses.
    """
    data = jax.tree.map(jnp.asarray, case.data)
    seen, few = (jax.tree.map(lambda x, n=n: x[:n], data.train) for n in (MANY, FEW))

    def loss(params, batch):
        inputs, targets = batch
        outputs = case.model.apply(params, inputs)
        if outputs.ndim == 3:  # Of a sequence all tokens are examples.
            outputs = outputs.reshape(-1, outputs.shape[-1])
            targets = targets.reshape(-1)
        return case.loss(outputs, targets)

    def found(carry):
        """Parameters to evaluate: those of schedule-free are an average."""
        params, state = carry
        if hasattr(state, "z"):
            return optax.contrib.schedule_free_eval_params(state, params)
        return params

    def one(total, rate, seed):
        start_key, run_key = jax.random.split(jax.random.key(seed))
        params = case.model.init(start_key, data.train[0][:2])
        tx = optax.with_extra_args_support(make(rate, total))

        def body(k, carry):
            params, state = carry
            key = jax.random.fold_in(run_key, k)
            rows = jax.random.randint(key, (case.batch_size,), 0, len(data.train[0]))
            batch = jax.tree.map(lambda x: x[rows], data.train)
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params, value=value)
            return optax.apply_updates(params, updates), state

        def part(carry, i):
            ends = (i * total // POINTS, (i + 1) * total // POINTS)
            carry = jax.lax.fori_loop(*ends, body, carry)
            return carry, loss(found(carry), few)

        start = params, tx.init(params)
        carry, curve = jax.lax.scan(part, start, jnp.arange(POINTS))
        params = found(carry)
        return curve, jnp.stack([loss(params, seen), loss(params, data.test)])

    @jax.jit
    def run(rates, seeds, total):
        if case.is_large:
            return jax.lax.map(lambda each: one(total, *each), (rates, seeds))
        return jax.vmap(lambda *each: one(total, *each))(rates, seeds)

    return run


def measure(
    case: Case, steps: Sequence[int], num_seeds: int, makes: dict[str, Make]
) -> dict[str, Any]:
    """Number of updates -> optimizer -> its rate, losses and time of a step."""
    found: dict[str, Any] = {str(total): {} for total in steps}
    test, tuning = jnp.arange(num_seeds), 1000 + jnp.arange(TUNING_SEEDS)
    for name, make in makes.items():
        run = runner(case, make)

        def test_at(rate, total, run=run):
            curves, losses = run(jnp.full(num_seeds, rate), test, total)
            train, held_out = np.asarray(losses).T.tolist()
            curve = np.asarray(curves).mean(0).tolist()
            return {"rate": rate, "train": train, "test": held_out, "curve": curve}

        us_per_step = _us_per_step(run) if name in TIMED else None
        for total in steps:
            best = 1e-3
            if name in optimizers():
                rates, seeds = (
                    x.ravel() for x in jnp.meshgrid(jnp.array(RATES), tuning)
                )
                finals = run(rates, seeds, total)[1][:, 0].reshape(len(tuning), -1)
                finals = np.nan_to_num(np.asarray(finals.mean(0)), nan=np.inf)
                best = RATES[int(np.argmin(finals))]
            found[str(total)][name] = test_at(best, total) | {"us": us_per_step}
            if name == "adam, constant":
                found[str(total)][DEFAULT] = test_at(1e-3, total)
        if name == OURS:
            _, first = run(jnp.ones(num_seeds), test, 0)
    return {"first": np.asarray(first)[:, 0].tolist(), "steps": found}


def _us_per_step(run, total=400):
    """Of one run, without what it costs to evaluate it."""

    def seconds(total):
        start = time.process_time()
        jax.block_until_ready(run(jnp.array([1e-3]), jnp.array([0]), total))
        return time.process_time() - start

    seconds(0)  # Compiles.
    empty, full = (min(seconds(n) for _ in range(3)) for n in (0, total))
    return 1e6 * (full - empty) / total


# Statistics.


def log_ratios(problems: dict[str, Any], total: int, rival: str) -> np.ndarray:
    """log(ours / theirs) of final training losses, [problems, seeds]."""
    rows = []
    for found in problems.values():
        first = np.mean(found["first"])
        ours, theirs = (
            np.maximum(
                np.nan_to_num(found["steps"][str(total)][name]["train"], nan=first),
                FLOOR * first,
            )
            for name in (OURS, rival)
        )
        # What diverged got nowhere.
        rows.append(np.log(np.minimum(ours, first) / np.minimum(theirs, first)))
    return np.array(rows)


def totals(problems: dict[str, Any]) -> list[int]:
    """Numbers of updates that any problem was run for."""
    return sorted(
        {int(total) for found in problems.values() for total in found["steps"]}
    )


def having(problems: dict[str, Any], total: int, rule: str = OURS) -> dict[str, Any]:
    """The problems that a rule was run on for so many updates."""
    return {
        problem: found
        for problem, found in problems.items()
        if rule in found["steps"].get(str(total), {})
    }


def rules(problems: dict[str, Any], total: int) -> list[str]:
    """Rules that were run for so many updates, ours first."""
    found = having(problems, total).values()
    return [*dict.fromkeys(name for x in found for name in x["steps"][str(total)])]


def summary(problems: dict[str, Any], total: int, rival: str) -> dict[str, Any]:
    """Ratios of final training losses over problems, of means over seeds."""
    counted = {name: found for name, found in problems.items() if name not in LATER}
    ratios = log_ratios(counted, total, rival)
    means = ratios.mean(1)
    draw = np.random.default_rng(0)
    chosen = draw.integers(ratios.shape[1], size=(2000, *ratios.shape))
    resampled = np.take_along_axis(ratios[None], chosen, 2)
    interval = np.quantile(resampled.mean((1, 2)), [0.025, 0.975])
    inner = np.sort(ratios.ravel())[ratios.size // 4 : -(ratios.size // 4) or None]
    return {
        "geometric_mean": float(np.exp(means.mean())),
        "interval": np.exp(interval).tolist(),
        "median": float(np.exp(np.median(means))),
        "interquartile_mean": float(np.exp(inner.mean())),
        "better": int((means < 0).sum()),
        "problems": len(means),
    }


def steps_to_reach(row: dict[str, Any], total: int) -> float:
    """Updates until our loss is that of Adam at 1e-3 at the end; infinite if never.

    NaN if Adam did not run.
    """
    if DEFAULT not in row:
        return np.nan
    reached = np.array(row[OURS]["curve"]) <= row[DEFAULT]["curve"][-1]
    return (np.argmax(reached) + 1) * total / POINTS if reached.any() else np.inf


def table(problems: dict[str, Any]) -> str:
    """Returns the Markdown tables: a row a problem, and the ratios to each rival."""
    lines = []
    for total in totals(problems):
        those, names = having(problems, total), rules(problems, total)
        lines += [
            "",
            f"| {total:,} updates | {' | '.join(names)} | Adam's loss after |",
        ]
        lines += ["|---" * (len(names) + 2) + "|"]
        for problem, found in those.items():
            row = found["steps"][str(total)]
            loss = lambda name, row=row: (
                f"{np.mean(row[name]['train']):.3g}" if name in row else ""
            )
            cells = [*map(loss, names), f"{steps_to_reach(row, total):g}"]
            lines.append(f"| {problem} | {' | '.join(cells)} |")
        lines += ["", "| against | geometric mean | median | interquartile | better |"]
        lines += ["|---|---|---|---|---|"]
        for rival in names[1:]:
            if set(having(problems, total, rival)) <= set(LATER):
                continue
            s = summary(having(problems, total, rival), total, rival)
            low, high = s["interval"]
            lines.append(
                f"| {rival} | {s['geometric_mean']:.3f} ({low:.3f} to {high:.3f}) "
                f"| {s['median']:.2f} | {s['interquartile_mean']:.2f} "
                f"| {s['better']} of {s['problems']} |"
            )
        rose = lambda name, found, total=total: np.sum(
            ~(np.array(found["steps"][str(total)][name]["train"]) < found["first"])
        )
        failed = {
            name: int(sum(rose(name, x) for x in having(those, total, name).values()))
            for name in names
        }
        lines += ["", f"Runs that end above their first loss: {failed}"]
    return "\n".join(lines)


def plot(problems: dict[str, Any], path: pathlib.Path):
    """Losses along the runs over that of tuned Adam at the end, all problems' mean."""
    # Losses are over that of tuned Adam.
    problems = {
        name: found | {"steps": {k: x for k, x in found["steps"].items() if BEST in x}}
        for name, found in problems.items()
    }
    if not (count := len(totals(problems))):
        return
    figure, axes = plt.subplots(
        1, count, figsize=(3.6 * count, 3.2), squeeze=False, layout="constrained"
    )
    for ax, total in zip(axes[0], totals(problems), strict=True):
        for name in rules(problems, total):
            logs = []
            for found in having(problems, total, name).values():
                start, row = np.mean(found["first"]), found["steps"][str(total)]
                bound = lambda x, start=start: np.clip(
                    np.nan_to_num(x, nan=start), FLOOR * start, start
                )
                end = bound(row[BEST]["curve"][-1])
                logs.append(np.log(bound(row[name]["curve"]) / end))
            at = total * np.arange(1, POINTS + 1) / POINTS
            is_ours = name == OURS
            ax.plot(
                at,
                np.exp(np.mean(logs, 0)),
                label=name,
                linewidth=2.5 if is_ours else 1,
                color="black" if is_ours else None,
            )
        ax.set(title=f"{total:,} updates", yscale="log", xlabel="update")
    axes[0, 0].set_ylabel("loss / final loss of tuned Adam, cosine")
    axes[0, -1].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, help="folder with the data")
    parser.add_argument("--steps", type=int, nargs="*", default=[200, 1000, 5000])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", help="problems whose names begin so")
    parser.add_argument("--rivals", nargs="*", help="names; default: all")
    parser.add_argument("--theta", type=pathlib.Path, help="of our rule")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args(argv)
    problems: dict[str, Any] = {}
    if args.out.exists():
        problems = json.loads(args.out.read_text())["problems"]
    if not args.table:
        if args.data is None:
            parser.error("--data: the folder with the data is required")
        _measure_all(args, problems)
    print(table(problems))
    plot(problems, args.out.with_suffix(".png"))


def _measure_all(args, problems):
    theta = None
    if args.theta is not None:
        like = jax.eval_shape(jm.optimizers.learned_adam().init, jax.random.key(0))
        theta = jm.training.load(args.theta, like=like)
    makes = learned(theta, args.data / "celo" / "celo_theta.state") | optimizers()
    if args.rivals is not None:
        makes = {name: makes[name] for name in [OURS, *args.rivals]}
    for name, make in cases(args.data).items():
        if args.only and not name.startswith(tuple(args.only)):
            continue
        try:
            case = make()
        except FileNotFoundError as error:
            print(f"{name}: left out, {error}")
            continue
        found = measure(case, args.steps, args.seeds, makes)
        kept = problems.setdefault(name, {"steps": {}})
        kept["first"] = found["first"]
        for total, rows in found["steps"].items():
            kept["steps"].setdefault(total, {}).update(rows)
        result = {"environment": _timing.environment(), "problems": problems}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        for total, row in found["steps"].items():
            means = {k: f"{np.mean(v['train']):.3g}" for k, v in row.items()}
            print(name, total, means, flush=True)


if __name__ == "__main__":
    main()
