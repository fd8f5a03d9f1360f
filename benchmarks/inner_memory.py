"""Memory and time of a task's meta-gradient, against the number of inner steps.

    python -m benchmarks.inner_memory [--torch-python VENV/bin/python]

Two inner loops: Conv4 with 64 filters on 5-way 5-shot tasks with 15 queries a class, by
gradient descent; a small causal transformer that fits sequences, by Adam. On one core.
Contestants see the same task from the same parameters, and must agree in the norm of
the meta-gradient before anything is measured: jaxmeta's default, its reverse over
reverse, and the same by hand, `jax.grad` through a scan of `jax.grad`, plain and with
`jax.checkpoint` around the inner step. All have jaxmeta's convolutions but the last,
which has flax's. Then PyTorch's two ways, where `--torch-python` says so.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "inner_memory.json"
STEPS = (1, 4, 16, 64)
CONV4_RATE = 0.01


class Problem(NamedTuple):
    net: Any
    flax_net: Any  # the same function by flax's own layers, or None
    loss: Any
    inner_tx: Any
    task: Any
    params: Any


def problems() -> dict[str, Problem]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import jaxmeta as jm

    class FlaxConv4(nn.Module):
        """Takes the parameters of `jm.models.Conv4(64, strided=True)`."""

        @nn.compact
        def __call__(self, x):
            for i in range(4):
                x = _FlaxBlock(name=f"Block_{i}")(x)
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    class _FlaxBlock(nn.Module):
        @nn.compact
        def __call__(self, x):
            shape = (3, 3, x.shape[-1], 64)
            kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
            dims = ("NHWC", "HWIO", "NHWC")
            pads = [(1, 1), (1, 1)]
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), pads, dimension_numbers=dims
            )
            return nn.relu(_FlaxNorm(name="BatchNorm_0")(x))

    class _FlaxNorm(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
            mean = x.mean((0, 1, 2), keepdims=True)
            variance = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
            return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias

    key = jax.random.key(0)

    def images(shots):
        inputs = jax.random.uniform(jax.random.key(shots), (5 * shots, 28, 28, 1))
        return jm.Examples(inputs, jnp.repeat(jnp.eye(5), shots, 0))

    def sequences(seed):
        tokens = jax.random.randint(jax.random.key(seed), (8, 33), 0, 16)
        return jm.Examples(tokens[:, :-1], jax.nn.one_hot(tokens[:, 1:], 16))

    def fit(outputs, targets):
        return optax.softmax_cross_entropy(outputs, targets).mean()

    conv = jm.models.Conv4(64, strided=True)
    transformer = jm.models.Transformer(num_layers=2)
    conv_task = jm.Task(images(5), images(15))
    text_task = jm.Task(sequences(0), sequences(1))
    return {
        "Conv4, gradient descent": Problem(
            conv,
            FlaxConv4(),
            jm.losses.cross_entropy,
            optax.sgd(CONV4_RATE),
            conv_task,
            conv.init(key, conv_task.support.inputs),
        ),
        "transformer, Adam": Problem(
            transformer,
            None,
            fit,
            jm.optimizers.adam(1e-3),
            text_task,
            transformer.init(key, text_task.support.inputs),
        ),
    }


def contestants(problem: Problem, inner_steps: int) -> dict[str, Any]:
    """Name -> `(params) -> meta-gradient`."""
    import jax
    import optax

    import jaxmeta as jm

    net, flax_net, loss, inner_tx, task, _ = problem

    def ours(**options):
        learner = jm.maml(
            net, loss, inner_tx=inner_tx, inner_steps=inner_steps, **options
        )
        return lambda params: learner.meta_grad(jax.random.key(0), params, task)[0]

    def by_hand(net, wrap=lambda step: step):
        def on(params, examples):
            return loss(net.apply(params, examples.inputs), examples.targets)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(on)(params, task.support)
            updates, state = inner_tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def meta_loss(params):
            start = (params, inner_tx.init(params))
            (params, _), _ = jax.lax.scan(wrap(step), start, length=inner_steps)
            return on(params, task.query)

        return jax.grad(meta_loss)

    found = {
        "jaxmeta": ours(),
        "jaxmeta, reverse over reverse": ours(hvp="reverse-over-reverse"),
        "by hand": by_hand(net),
        "by hand, checkpointed": by_hand(net, jax.checkpoint),
    }
    if flax_net is not None:
        found["by hand, flax's convolutions"] = by_hand(flax_net)
    return found


def measure_torch(
    problem: Problem, inner_steps: int, seconds: float, python: str
) -> dict[str, dict[str, Any]]:
    """Rows of PyTorch: how far its process's peak grows beyond a query's gradient."""
    import numpy as np

    params, task = problem.params["params"], problem.task
    weights = {}
    for i in range(4):
        block = params[f"Block_{i}"]
        weights[f"kernel{i}"] = block["kernel"]
        weights |= {f"{k}{i}": block["BatchNorm_0"][k] for k in ("scale", "bias")}
    weights |= {f"head_{k}": params["head"][k] for k in ("kernel", "bias")}
    tasks = {
        f"{name}_{field}": np.asarray(getattr(examples, field))[None]
        for name, examples in (("support", task.support), ("query", task.query))
        for field in ("inputs", "targets")
    }
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(pathlib.Path(folder) / "weights.npz", **weights)
        np.savez(pathlib.Path(folder) / "tasks.npz", **tasks)
        for method in ("autograd", "torch.func"):
            command = [python, "-m", "benchmarks.peers.torch_memory", folder]
            command += ["--method", method, "--steps", str(inner_steps)]
            command += ["--rate", str(CONV4_RATE), "--seconds", str(seconds)]
            root = pathlib.Path(__file__).parents[1]
            done = subprocess.run(
                command, cwd=root, stdout=subprocess.PIPE, check=True, text=True
            )
            rows[f"PyTorch, {method}"] = json.loads(done.stdout)
    return rows


def measure(
    problem: Problem, inner_steps: int, seconds: float, torch_python: str | None = None
) -> dict[str, Any]:
    import optax

    rows, norms = {}, {}
    for name, meta_grad in contestants(problem, inner_steps).items():
        compiled = _timing.compile_apart(meta_grad, problem.params)
        norms[name] = float(optax.tree.norm(compiled.call(problem.params)))

        def call(compiled=compiled):
            return float(optax.tree.norm(compiled.call(problem.params)))

        run = _timing.repeat(call, seconds=seconds)
        rows[name] = {
            "temp_mib": compiled.temp_bytes / 2**20,
            "ms": 1e3 * run.median_s,
            "iqr_ms": 1e3 * run.iqr_s,
            "compile_s": round(compiled.compile_s, 1),
        }
    if torch_python and problem.flax_net is not None:
        found = measure_torch(problem, inner_steps, seconds, torch_python)
        norms |= {name: row.pop("norm") for name, row in found.items()}
        rows |= found
    for name, norm in norms.items():
        if not math.isclose(norm, norms["jaxmeta"], rel_tol=1e-3):
            raise RuntimeError(f"{name} disagrees with jaxmeta: norms {norms}.")
    return rows


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Memory and time against inner steps, a column for each problem."""
    from jaxmeta import _axes

    figure = _axes.figure()
    figure.set_size_inches(9, 6)
    axes = figure.subplots(2, len(results), sharex=True, squeeze=False)
    styles = ("o-", "s--", "^-.", "v:", "x:", "+-", "*--")
    colors = (_axes.DARK, _axes.DARK, _axes.LIGHT, "0.35", "0.6", "0.75", "0.75")
    for column, (problem, by_steps) in zip(axes.T, results.items(), strict=True):
        column[0].set_title(problem)
        names = next(iter(by_steps.values()))
        steps = [int(n) for n in by_steps]
        for name, style, color in zip(names, styles, colors, strict=False):
            for ax, what in zip(column, ("temp_mib", "ms"), strict=True):
                values = [row[name][what] for row in by_steps.values()]
                ax.loglog(steps, values, style, color=color, label=name, markersize=4)
        for ax, label in zip(column, ("temporaries, MiB", "time, ms"), strict=True):
            _axes.finish(ax, label)
            ax.set_xticks(steps, [str(n) for n in steps])
            ax.minorticks_off()
            ax.get_legend().remove()
        column[1].set_xlabel("inner steps")
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def table(results: dict[str, Any]) -> str:
    """Returns the Markdown table."""
    lines = []
    for problem, by_steps in results.items():
        heads = " | ".join(f"{steps} steps: MiB, ms" for steps in by_steps)
        lines += [f"| {problem} | {heads} |", "|---" * (1 + len(by_steps)) + "|"]
        for name in next(iter(by_steps.values())):
            cells = " | ".join(
                f"{row[name]['temp_mib']:.1f}, {row[name]['ms']:.0f}"
                for row in by_steps.values()
            )
            lines.append(f"| {name} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each timing")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    args = parser.parse_args(argv)
    _timing.pin_to_cores(1)
    results: dict[str, Any] = {}
    for name, problem in problems().items():
        results[name] = {}
        for steps in args.steps:
            results[name][str(steps)] = measure(
                problem, steps, args.seconds, args.torch_python
            )
            print(name, steps, json.dumps(results[name][str(steps)]), flush=True)
    result = {"environment": _timing.environment(), "results": results}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(results, args.out.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
