"""How long does one exact MAML meta-gradient step take?

The network, the tasks and the rates are those of the MAML paper's Omniglot 5-way 1-shot
experiment (`--setting five-steps`: more inner steps and more queries). A step is the
mean second-order meta-gradient of 32 tasks and one Adam update. Contestants start from
the same weights and see the same tasks; their first loss and the norm of their first
meta-gradient must agree before anything is timed. jaxmeta alone also draws the tasks,
in the step that is timed.

    python -m benchmarks.meta_step --torch-python /path/to/venv/bin/python

PyTorch has an interpreter of its own, with `benchmarks/peers/requirements-torch.txt`;
without it its rows are left out. This is a benchmark of CPUs, on Linux: every
contestant runs in its own process, pinned to one core and then to all of them, and they
take turns, so that a noisy machine is noisy for all.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _timing

RESULTS = pathlib.Path(__file__).parent / "results" / "meta_step.json"
TASKS, WAYS, SHOTS = 32, 5, 1
FILTERS, BLOCKS, IMAGE = 64, 4, 28
EPSILON = 1e-5  # of the batch normalisation
OUTER_RATE = 1e-3
ADAM_B1 = 0.9


class Setting(NamedTuple):
    inner_steps: int
    inner_rate: float
    queries: int  # a class


SETTINGS = {"one-step": Setting(1, 0.4, 1), "five-steps": Setting(5, 0.1, 15)}


class Program(NamedTuple):
    """A contestant, ready to run."""

    step: Callable[[], float]  # one meta-step from where the last one ended; its loss
    first_moment: Callable[[], list[np.ndarray]]  # Adam's, after the last step
    compile_s: float | None  # None: compiles while the first step runs
    temp_bytes: int | None  # None: see the growth of the process
    framework: str


# --- What is computed: weights, images, floating-point operations.


def make_weights() -> dict[str, np.ndarray]:
    """The network's weights, kernels [3, 3, I, O]."""
    rng = np.random.default_rng(0)
    weights = {}
    for block in range(BLOCKS):
        channels = 1 if block == 0 else FILTERS
        kernel = (
            rng.normal(size=(3, 3, channels, FILTERS)) * (2 / (9 * channels)) ** 0.5
        )
        # Not ones and zeros, with which a swapped pair would go unnoticed.
        weights[f"kernel{block}"] = kernel
        weights[f"scale{block}"] = 1 + 0.1 * rng.normal(size=FILTERS)
        weights[f"bias{block}"] = 0.1 * rng.normal(size=FILTERS)
    weights["head_kernel"] = rng.normal(size=(FILTERS, WAYS)) / FILTERS**0.5
    weights["head_bias"] = 0.1 * rng.normal(size=WAYS)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def make_images() -> np.ndarray:
    """Two-coloured images of 100 classes, [C, E, H, W] uint8: a prototype and noise."""
    rng = np.random.default_rng(1)
    prototypes = rng.random((100, 1, IMAGE, IMAGE)) < 0.3
    flipped = rng.random((100, 20, IMAGE, IMAGE)) < 0.1
    return np.where(prototypes ^ flipped, 255, 0).astype(np.uint8)


def meta_step_flops(setting: Setting) -> int:
    """Floating-point operations (products and sums) that exact MAML needs for a step.

    Only convolutions and the head are counted. With F for the forward pass of a set:

    - a gradient takes 3 F: the forward pass, and as much each for the weights' and for
      the inputs' derivatives;
    - a Hessian-vector product takes another 6 F, the derivative of a gradient along a
      direction: each of its products has two factors that move, hence two terms;
    - so an inner step takes 9 F of the support set, and the gradient at the end 3 F of
      the query set.

    The first layer's inputs, the images, need no derivative and do not move: it takes
    2 F for a gradient and 2 F for a product. Recomputing what was not kept, and
    multiplying by the zeros of a padding, is not needed work and not counted apart.
    """
    layers = []
    size, channels = IMAGE, 1
    for _ in range(BLOCKS):
        size = (size + 1) // 2
        layers.append(2 * size**2 * 9 * channels * FILTERS)
        channels = FILTERS
    layers.append(2 * FILTERS * WAYS)
    first, rest = layers[0], sum(layers[1:])
    support = WAYS * SHOTS * (4 * first + 9 * rest)
    query = WAYS * setting.queries * (2 * first + 3 * rest)
    return TASKS * (setting.inner_steps * support + query)


# --- JAX.


def jaxmeta_start(setting, folder, cores, change=lambda learner: learner):
    """The public way to a training step, with the benchmark's weights put in."""
    import jax
    import optax

    import jaxmeta as jm

    mesh = None
    if cores > 1:
        jax.config.update("jax_num_cpu_devices", cores)
        mesh = jm.training.task_mesh()
    learner = jm.maml(
        jm.models.Conv4(FILTERS, head=WAYS, strided=True),
        jm.losses.cross_entropy,
        inner_tx=optax.sgd(setting.inner_rate),
        inner_steps=setting.inner_steps,
    )
    sample_task = jm.tasks.few_shot(
        np.load(folder / "images.npy"), ways=WAYS, shots=SHOTS, queries=setting.queries
    )
    estimator = jm.estimators.over_tasks(
        change(learner), sample_task, num_tasks=TASKS, mesh=mesh
    )
    init, step = jm.training.make_train_step(estimator, optax.adam(OUTER_RATE))
    state = init(jax.random.key(0))
    weights = np.load(folder / "weights.npz")
    params = {
        f"Block_{i}": {
            "kernel": weights[f"kernel{i}"],
            "BatchNorm_0": {
                "scale": weights[f"scale{i}"],
                "bias": weights[f"bias{i}"],
            },
        }
        for i in range(BLOCKS)
    }
    params["head"] = {"kernel": weights["head_kernel"], "bias": weights["head_bias"]}
    params = jax.tree.map(jax.numpy.asarray, {"params": params})
    state = state._replace(meta_params=params)
    if mesh is not None:
        everywhere = jax.NamedSharding(mesh, jax.P())
        step, state = jax.device_put((step, state), everywhere)
    return step, state


def save_tasks(setting, folder, cores):
    """Saves the tasks that jaxmeta's first step draws, for the others."""
    import jax

    def report_the_task(learner):
        return learner._replace(
            meta_grad=lambda key, meta_params, task, **extra: (meta_params, task)
        )

    step, state = jaxmeta_start(setting, folder, cores, change=report_the_task)
    _, tasks = jax.jit(lambda step, state: step(state))(step, state)
    np.savez(
        folder / "tasks.npz",
        support_inputs=tasks.support.inputs,
        support_targets=tasks.support.targets,
        query_inputs=tasks.query.inputs,
        query_targets=tasks.query.targets,
    )
    return {}


def load_tasks(folder):
    """Support inputs, support targets, query inputs, query targets, [T, ...] each."""
    tasks = np.load(folder / "tasks.npz")
    names = ("support_inputs", "support_targets", "query_inputs", "query_targets")
    return tuple(tasks[name] for name in names)


def jax_program(step, carry, data, first_moment):
    """A program from `step(carry, data) -> (carry, loss)`."""
    import jax

    compiled = _timing.compile_apart(step, carry, data, donate=(0,))

    def advance():
        nonlocal carry
        carry, loss = jax.block_until_ready(compiled.call(carry, data))
        return float(loss)

    return Program(
        step=advance,
        first_moment=lambda: jax.tree.leaves(jax.device_get(first_moment(carry))),
        compile_s=compiled.compile_s,
        temp_bytes=compiled.temp_bytes,
        framework=f"jax {jax.__version__}",
    )


def jaxmeta(setting, folder, cores):
    train_step, state = jaxmeta_start(setting, folder, cores)

    def step(state, train_step):
        state, info = train_step(state)
        return state, info.loss.mean()

    return jax_program(step, state, train_step, lambda state: state.opt_state[0].mu)


def jax_by_hand(setting, folder, cores, *, batching):
    """What one writes without a library: flax, optax, and `grad` of `grad`."""
    del cores  # XLA takes what the process has.
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    class BatchNorm(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
            mean = x.mean((0, 1, 2))
            variance = jnp.square(x - mean).mean((0, 1, 2))
            return (x - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + bias

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(BLOCKS):
                x = nn.Conv(FILTERS, (3, 3), strides=2, padding=1, use_bias=False)(x)
                x = nn.relu(BatchNorm()(x))
            return nn.Dense(WAYS)(x.mean((1, 2)))

    def loss(params, inputs, targets):
        outputs = Network().apply({"params": params}, inputs)
        return optax.softmax_cross_entropy(outputs, targets).mean()

    def task_loss(params, task):
        support_inputs, support_targets, query_inputs, query_targets = task
        # Under `vmap` a scan would lose that the first step's kernels are shared.
        for _ in range(setting.inner_steps):
            grads = jax.grad(loss)(params, support_inputs, support_targets)
            params = optax.tree.add_scale(params, -setting.inner_rate, grads)
        return loss(params, query_inputs, query_targets)

    def step(carry, tasks):
        params, opt_state = carry
        one_task = functools.partial(jax.value_and_grad(task_loss), params)
        over_tasks = {
            "vmap": jax.vmap(one_task),
            "map": lambda x: jax.lax.map(one_task, x),
        }
        losses, grads = over_tasks[batching](tasks)
        grads = jax.tree.map(lambda g: g.mean(0), grads)
        updates, opt_state = outer_tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), losses.mean()

    outer_tx = optax.adam(OUTER_RATE)
    weights = np.load(folder / "weights.npz")
    params = {}
    for i in range(BLOCKS):
        params[f"Conv_{i}"] = {"kernel": weights[f"kernel{i}"]}
        params[f"BatchNorm_{i}"] = {
            "scale": weights[f"scale{i}"],
            "bias": weights[f"bias{i}"],
        }
    params["Dense_0"] = {"kernel": weights["head_kernel"], "bias": weights["head_bias"]}
    params = jax.tree.map(jnp.asarray, params)
    tasks = jax.tree.map(jnp.asarray, load_tasks(folder))
    carry = (params, outer_tx.init(params))
    return jax_program(step, carry, tasks, lambda carry: carry[1][0].mu)


def matrix_product_peak(setting, folder, cores):
    """The most operations a second that a float32 matrix product gets here."""
    del setting, folder, cores
    import jax.numpy as jnp

    def flops_per_second(size):
        x = jnp.ones((size, size), jnp.float32)
        timing = _timing.time_compiled(jnp.dot, x, x, seconds=1.0)
        return 2 * size**3 / timing.run.fastest_s

    return {"flops_per_second": max(map(flops_per_second, (1024, 1536, 2048)))}


# --- PyTorch.


def torch_network(lowering):
    """`(params, inputs) -> logits`; params are in the order of `make_weights`.

    Convolution and normalisation are the fastest pair of each layout: `F.conv2d` with
    `F.batch_norm` on [N, C, H, W], or, on [N, H, W, C], shifted slices and a matrix
    product (im2col; `F.unfold` is slower) with the normalisation spelled out.
    """
    import torch
    import torch.nn.functional as F

    def conv_norm(x, kernel, scale, bias):
        x = F.conv2d(x, kernel, stride=2, padding=1)
        return F.batch_norm(x, None, None, scale, bias, training=True, eps=EPSILON)

    def im2col_norm(x, kernel, scale, bias):
        size = (x.shape[1] + 1) // 2
        x = F.pad(x, (0, 0, 1, 1, 1, 1))
        shifts = [slice(i, i + 2 * size - 1, 2) for i in range(3)]
        x = torch.cat(
            [x[:, rows, columns] for rows in shifts for columns in shifts], -1
        )
        x = x @ kernel
        x = x - x.mean((0, 1, 2), keepdim=True)
        variance = x.square().mean((0, 1, 2), keepdim=True)
        return x * (scale * torch.rsqrt(variance + EPSILON)) + bias

    block = {"conv2d": conv_norm, "im2col": im2col_norm}[lowering]
    positions = {"conv2d": (2, 3), "im2col": (1, 2)}[lowering]

    def network(params, x):
        *blocks, head_kernel, head_bias = params
        for i in range(BLOCKS):
            x = F.relu(block(x, *blocks[3 * i : 3 * i + 3]))
        return F.linear(x.mean(positions), head_kernel, head_bias)

    return network


def torch_inputs(folder, lowering):
    """Parameters and tasks in the layout of the lowering."""
    import torch

    channels_first = lowering == "conv2d"

    def as_parameter(name, value):
        if name.startswith("kernel"):
            flat = value.reshape(-1, FILTERS)
            value = value.transpose(3, 2, 0, 1) if channels_first else flat
        value = value.T if name == "head_kernel" else value
        return torch.from_numpy(np.ascontiguousarray(value))

    def as_inputs(images):
        images = images.transpose(0, 1, 4, 2, 3) if channels_first else images
        return torch.from_numpy(np.ascontiguousarray(images))

    def as_labels(one_hot):
        return torch.from_numpy(one_hot.argmax(-1))

    weights = np.load(folder / "weights.npz")
    params = tuple(as_parameter(name, weights[name]) for name in weights.files)
    support_x, support_y, query_x, query_y = load_tasks(folder)
    support = as_inputs(support_x), as_labels(support_y)
    return params, (*support, as_inputs(query_x), as_labels(query_y))


def torch_func(setting, folder, cores, *, lowering, batching):
    """`torch.func.grad` of `grad`, under `vmap`, or compiled and one task at a time."""
    import torch
    import torch.nn.functional as F
    from torch.func import grad, grad_and_value, vmap

    network = torch_network(lowering)

    def loss(params, inputs, labels):
        return F.cross_entropy(network(params, inputs), labels)

    def task_loss(params, support_inputs, support_labels, query_inputs, query_labels):
        for _ in range(setting.inner_steps):
            grads = grad(loss)(params, support_inputs, support_labels)
            params = tuple(
                p - setting.inner_rate * g for p, g in zip(params, grads, strict=True)
            )
        return loss(params, query_inputs, query_labels)

    one_task = grad_and_value(task_loss)

    def vmapped(params, tasks):
        grads, losses = vmap(one_task, (None, 0, 0, 0, 0))(params, *tasks)
        return [g.mean(0) for g in grads], losses.mean()

    meta_grad = vmapped
    if batching == "compile":
        meta_grad = torch_one_by_one(torch.compile(one_task))
    return torch_program(meta_grad, *torch_inputs(folder, lowering), cores)


def torch_autograd(setting, folder, cores):
    """The classic loop: `torch.autograd.grad(..., create_graph=True)`."""
    import torch
    import torch.nn.functional as F

    network = torch_network("conv2d")

    def one_task(params, support_inputs, support_labels, query_inputs, query_labels):
        params = task_params = [p.detach().requires_grad_() for p in params]
        for _ in range(setting.inner_steps):
            loss = F.cross_entropy(network(task_params, support_inputs), support_labels)
            grads = torch.autograd.grad(loss, task_params, create_graph=True)
            task_params = [
                p - setting.inner_rate * g
                for p, g in zip(task_params, grads, strict=True)
            ]
        loss = F.cross_entropy(network(task_params, query_inputs), query_labels)
        return torch.autograd.grad(loss, params), loss.detach()

    inputs = torch_inputs(folder, "conv2d")
    return torch_program(torch_one_by_one(one_task), *inputs, cores)


def torch_one_by_one(one_task):
    """The mean of `one_task(params, *task) -> (grads, loss)` over tasks, in a loop."""
    import torch

    def meta_grad(params, tasks):
        total, total_loss = None, 0.0
        for task in zip(*tasks, strict=True):
            grads, loss = one_task(params, *task)
            total_loss = total_loss + loss
            if total is None:
                total = list(grads)
            else:
                torch._foreach_add_(total, grads)
        return [g / TASKS for g in total], total_loss / TASKS

    return meta_grad


def torch_program(meta_grad, params, tasks, cores):
    import torch

    torch.set_num_threads(cores)
    optimizer = torch.optim.Adam(params, lr=OUTER_RATE, betas=(ADAM_B1, 0.999))

    def step():
        grads, loss = meta_grad(params, tasks)
        for param, gradient in zip(params, grads, strict=True):
            param.grad = gradient
        optimizer.step()
        return float(loss)

    return Program(
        step=step,
        first_moment=lambda: [optimizer.state[p]["exp_avg"].numpy() for p in params],
        compile_s=None,
        temp_bytes=None,
        framework=f"torch {torch.__version__}",
    )


# --- One contestant, in its own process.

CONTESTANTS: dict[str, Callable[..., Program]] = {
    "jaxmeta": jaxmeta,
    "jax-vmap": functools.partial(jax_by_hand, batching="vmap"),
    "jax-map": functools.partial(jax_by_hand, batching="map"),
    "torch-vmap": functools.partial(torch_func, lowering="conv2d", batching="vmap"),
    "torch-vmap-im2col": functools.partial(
        torch_func, lowering="im2col", batching="vmap"
    ),
    "torch-loop": torch_autograd,
    "torch-compile": functools.partial(
        torch_func, lowering="im2col", batching="compile"
    ),
}
ERRANDS = {"save-tasks": save_tasks, "peak": matrix_product_peak}


def run_contestant(name, setting, folder, cores, seconds):
    """Runs the first step, to be checked, and, for `seconds`, the next ones."""
    program = CONTESTANTS[name](setting, folder, cores)
    before = peak_memory()
    start = time.perf_counter()
    loss = program.step()
    first_s = time.perf_counter() - start
    # Adam's first moment starts at zero: after one step it is (1 - b1) gradients.
    moment = np.concatenate([x.ravel() for x in program.first_moment()], dtype=float)
    report = {
        "framework": program.framework,
        "loss": loss,
        "grad_norm": float(np.linalg.norm(moment)) / (1 - ADAM_B1),
        "compile_s": first_s if program.compile_s is None else program.compile_s,
    }
    if seconds:
        program.step()
        report["run"] = _timing.repeat(program.step, seconds=seconds)._asdict()
    xla = program.temp_bytes is not None
    report["temp_bytes"] = program.temp_bytes if xla else peak_memory() - before
    return report


def peak_memory() -> int:
    """Most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- All of them.


class Place(NamedTuple):
    """What every process of this run is told."""

    setting: str
    folder: pathlib.Path
    torch_python: str | None


def run_process(place: Place, contestant: str, cores: int, seconds: float = 0.0):
    """Returns the report that a process of its own printed; 0 seconds: untimed."""
    is_torch = contestant.startswith("torch")
    command = [
        place.torch_python if is_torch else sys.executable,
        *("-m", "benchmarks.meta_step", "--contestant", contestant),
        *("--setting", place.setting, "--folder", str(place.folder)),
        *("--cores", str(cores), "--seconds", str(seconds)),
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compilation is measured cold. Inductor's cache, empty at first, then spares
        # the rounds a minute each.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(place.folder / f"inductor-{cores}"),
    }
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{contestant} failed on {cores} core(s):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def check_agreement(rows: list[dict[str, Any]]) -> None:
    """Raises if contestants do not compute the same thing as the first of them.

    The norm, not the gradients themselves: in float32 an activation within rounding of
    zero falls on either side of its ReLU, which moves one task's gradient by a percent.
    """
    for row in rows:
        for name in ("loss", "grad_norm"):
            if not math.isclose(row[name], rows[0][name], rel_tol=1e-4):
                raise RuntimeError(
                    f"{row['contestant']} on {row['cores']} core(s) disagrees with "
                    f"{rows[0]['contestant']}: {name} {row[name]} and {rows[0][name]}."
                )


def compare(place: Place, all_cores: list[int], rounds: int, seconds: float, console):
    """Checks every contestant, then times them in turns; returns rows and peaks."""
    names = [
        name
        for name in CONTESTANTS
        if place.torch_python or not name.startswith("torch")
    ]
    turns = [(cores, name) for cores in all_cores for name in names]
    run_process(place, "save-tasks", 1)
    rows = []
    for cores, name in turns:
        console.print(f"checking {name} on {cores} core(s)")
        report = run_process(place, name, cores)
        rows.append({"contestant": name, "cores": cores, **report, "rounds": []})
    check_agreement(rows)
    peaks = dict.fromkeys(all_cores, 0.0)
    for number in range(rounds):
        for cores in all_cores:
            report = run_process(place, "peak", cores)
            peaks[cores] = max(peaks[cores], report["flops_per_second"])
        for row in rows:
            name, cores = row["contestant"], row["cores"]
            console.print(f"round {number + 1}: {name} on {cores} core(s)")
            report = run_process(place, name, cores, seconds)
            row["rounds"].append(report["run"])
            row["temp_bytes"] = max(row["temp_bytes"], report["temp_bytes"])
    return rows, peaks


def summarise_rows(rows, peaks, flops) -> None:
    """Adds medians over rounds, the ratio to jaxmeta, and the share of the peak."""
    for row in rows:
        for name in ("median_s", "iqr_s", "median_cpu_s"):
            row[name] = statistics.median(run[name] for run in row["rounds"])
        row["share_of_peak"] = flops / (row["median_s"] * peaks[row["cores"]])
        is_xla = row["framework"].startswith("jax")
        row["compile_is"] = "trace + lower + compile" if is_xla else "first step"
        row["temp_is"] = "XLA temporaries" if is_xla else "growth of the process's peak"
    ours = {r["cores"]: r["median_s"] for r in rows if r["contestant"] == "jaxmeta"}
    for row in rows:
        row["ratio"] = row["median_s"] / ours[row["cores"]]


def print_table(console, result) -> None:
    from rich.table import Table

    table = Table(title=f"One exact MAML meta-step, {result['setting']}")
    for heading in ("cores", "contestant"):
        table.add_column(heading, no_wrap=True)
    headings = ("step, ms", "IQR", "ratio", "peak", "compile", "MiB")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(
            str(row["cores"]),
            row["contestant"],
            f"{1e3 * row['median_s']:.0f}",
            f"{1e3 * row['iqr_s']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['compile_s']:.1f}",
            f"{row['temp_bytes'] / 2**20:.0f}",
            end_section=row["contestant"] == result["rows"][-1]["contestant"],
        )
    console.print(table)
    console.print(
        "ratio: to jaxmeta's time. peak: share of the matrix product's. compile: "
        "seconds, JAX's tracing, lowering and compiling, PyTorch's first step. "
        "MiB: XLA's temporaries, the growth of PyTorch's process."
    )
    torch_rows = [r for r in result["rows"] if r["contestant"].startswith("torch")]
    if not torch_rows:
        console.print("No PyTorch rows: give its interpreter by --torch-python.")
    ours = [row for row in result["rows"] if row["contestant"] == "jaxmeta"]
    for our in ours if torch_rows else ():
        # A second thread can cost more than it brings: nobody has to use it.
        allowed = [row for row in torch_rows if row["cores"] <= our["cores"]]
        best = min(allowed, key=lambda row: row["median_s"])
        console.print(
            f"PyTorch's fastest with {our['cores']} core(s) to use: "
            f"{best['contestant']} on {best['cores']}, "
            f"{best['median_s'] / our['median_s']:.2f} of jaxmeta's time."
        )


def save(result, path: pathlib.Path) -> None:
    """Puts the result beside those of the other settings."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[result["setting"]] = result
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def benchmark(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console()
    available = len(os.sched_getaffinity(0))
    all_cores = [arguments.cores] if arguments.cores else sorted({1, available})
    flops = meta_step_flops(SETTINGS[arguments.setting])
    with tempfile.TemporaryDirectory() as folder:
        place = Place(arguments.setting, pathlib.Path(folder), arguments.torch_python)
        np.savez(place.folder / "weights.npz", **make_weights())
        np.save(place.folder / "images.npy", make_images())
        rows, peaks = compare(
            place, all_cores, arguments.rounds, arguments.seconds, console
        )
    summarise_rows(rows, peaks, flops)
    result = {
        "setting": arguments.setting,
        "environment": _timing.environment(
            ("jaxmeta", "jax", "jaxlib", "flax", "optax")
        ),
        "device": "cpu",
        "flops": flops,
        "peak_flops_per_second": peaks,
        "rows": rows,
    }
    print_table(console, result)
    save(result, arguments.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, default="one-step")
    parser.add_argument("--torch-python", help="interpreter that has PyTorch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a round")
    parser.add_argument("--cores", type=int, help="default: one, then all")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    # For the processes that this script starts, for which 0 seconds is untimed.
    parser.add_argument("--contestant", choices=[*CONTESTANTS, *ERRANDS])
    parser.add_argument("--folder", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.contestant and not (arguments.folder and arguments.cores):
        parser.error("--contestant needs --folder and --cores")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if not arguments.contestant:
        benchmark(arguments)
        return
    _timing.pin_to_cores(arguments.cores)
    name, cores = arguments.contestant, arguments.cores
    setting = SETTINGS[arguments.setting]
    if name in ERRANDS:
        report = ERRANDS[name](setting, arguments.folder, cores)
    else:
        report = run_contestant(
            name, setting, arguments.folder, cores, arguments.seconds
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
