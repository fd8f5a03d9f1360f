"""What every contestant of `meta_step.py` is given, and what it hands back.

Any peer's interpreter imports this: JAX is imported inside the function that needs it.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks import _timing

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


def load_tasks(folder: pathlib.Path) -> tuple[np.ndarray, ...]:
    """Support inputs, support targets, query inputs, query targets, [T, ...] each."""
    tasks = np.load(folder / "tasks.npz")
    names = ("support_inputs", "support_targets", "query_inputs", "query_targets")
    return tuple(tasks[name] for name in names)


def jax_program(step, carry, data, first_moment) -> Program:
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
