"""Checks of static facts (shapes, structure, Python values), made while tracing."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from jaxmeta import base


def check_int(name: str, value: Any, *, minimum: int = 1) -> None:
    """Raises unless `value` is a Python or NumPy int of at least `minimum`."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or value < minimum:
        raise ValueError(f"`{name}` must be an int >= {minimum}, got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Raises if something that is no schedule is not positive and finite."""
    if not callable(value) and not _is_above(value, lambda x: x > 0):
        raise ValueError(f"`{name}` must be positive and finite, got {value!r}.")


def check_not_negative(name: str, value: Any) -> None:
    """Raises unless `value` is zero or positive, and finite."""
    if not _is_above(value, lambda x: x >= 0):
        raise ValueError(f"`{name}` must be at least 0 and finite, got {value!r}.")


def _is_above(value, test):
    """Whether all of `value` is finite and passes; what is traced may be anything."""
    if isinstance(value, core.Tracer):
        return True
    if not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        return False
    numbers = np.asarray(value)  # Comparing in JAX would be traced under `jit`.
    return bool(np.all(test(numbers) & (numbers < float("inf"))))


def check_callable(name: str, value: Any) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise ValueError(f"`{name}` must be a function, got {value!r}.")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raises unless `value` is of a type that a learner makes itself."""
    if not isinstance(value, kind):
        origin = "`adapt`" if name == "task_params" else "`init`"
        raise ValueError(
            f"`{name}` must be the `{kind.__name__}` that this learner's {origin} "
            f"returns, got {type(value).__name__}."
        )


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}.")


def check_examples(name: str, examples: base.Examples) -> None:
    """Raises unless all leaves share one leading, non-empty example axis."""
    if not (hasattr(examples, "inputs") and hasattr(examples, "targets")):
        raise ValueError(
            f"`{name}` must be `jaxmeta.Examples(inputs, targets)`, got "
            f"{type(examples).__name__}."
        )
    sizes = {
        f"{name}{jax.tree_util.keystr(path)}": jnp.shape(leaf)[:1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(examples)
    }
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(
            f"All leaves of `{name}` need the same leading example axis, got "
            f"{sizes}. Batched tasks [T, N, ...] go through `jax.vmap`, or "
            "`jaxmeta.estimators.over_tasks`, which adds the task axis."
        )
    wrong = {
        f"{name}{jax.tree_util.keystr(path)}": str(leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(examples)
        if getattr(getattr(leaf, "dtype", None), "kind", "f") in "OSUM"
    }
    if wrong:
        raise ValueError(
            f"`{name}` must hold numbers, got {wrong}. Names of classes go in as "
            "integers: `numpy.unique(names, return_inverse=True)[1]`."
        )
    if not sizes or (0,) in sizes.values():
        raise ValueError(f"`{name}` holds no examples, got {sizes}.")


def check_task(task: base.Task) -> None:
    """Raises unless `task` is a `Task` of two well-formed `Examples`."""
    if not (hasattr(task, "support") and hasattr(task, "query")):
        raise ValueError(
            f"`task` must be `jaxmeta.Task(support, query)`, got {type(task).__name__}."
        )
    check_examples("support", task.support)
    check_examples("query", task.query)


def check_params(params: base.Params) -> None:
    """Raises unless every leaf is floating point (or complex) and trainable."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    wrong = {
        jax.tree_util.keystr(path): str(jnp.result_type(leaf))
        for path, leaf in leaves
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    }
    if wrong:
        raise ValueError(
            f"Parameters must be floating point to be adapted, got {wrong}. Keep "
            "constants out of the parameters: close over them in `apply`."
        )
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        extra = sorted(str(name) for name in params if name != "params")
        raise ValueError(
            f"The model keeps the collections {extra} beside its trainable 'params'. "
            "Wrap it: `jaxmeta.models.from_linen(module)`."
        )


def check_scalar_loss(name: str, loss: jax.Array) -> None:
    """Raises unless a loss function returned a floating-point scalar."""
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.inexact):
        raise ValueError(
            f"`{name}` must return a float scalar, got shape {jnp.shape(loss)} and "
            f"dtype {jnp.result_type(loss)}. Losses here take the mean over examples."
        )


def check_like(name: str, tree: Any, like: Any) -> None:
    """Raises unless `tree` has the structure and the shapes of `like`."""
    shapes = [
        {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (tree, like))
    ]
    if shapes[0] != shapes[1]:
        got, expected = (
            {path: shape for path, shape in a.items() if b.get(path) != shape}
            for a, b in (shapes, reversed(shapes))
        )
        raise ValueError(
            f"`{name}` is of another architecture: got {got}, expected {expected}. "
            "Give the sizes that it was made with, or draw a new one by `init`."
        )


def check_metric_names(metrics: Collection[str]) -> None:
    """Raises if a metric is called like what stands beside metrics in a record."""
    taken = {"step", "loss", "seconds"} & set(metrics)
    if taken:
        raise ValueError(
            f"`metrics` may not be called {sorted(taken)}: records have these already. "
            "Rename them."
        )


def check_transformation(name: str, tx: Any) -> None:
    """Raises unless `tx` has the functions of an optax or a learned rule."""
    if not (
        hasattr(tx, "init") and (hasattr(tx, "update") or hasattr(tx, "transform"))
    ):
        raise ValueError(
            f"`{name}` must be an optax transformation such as `optax.sgd(0.1)`, or a "
            f"`LearnedOptimizer`, got {tx!r}."
        )


def check_real(name: str, tree: Any) -> None:
    """Raises if a leaf is complex."""
    wrong = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.iscomplexobj(leaf)
    ]
    if wrong:
        raise ValueError(
            f"`{name}` must be real, got complex leaves {wrong}. Wrap the "
            "transformation: `optax.contrib.split_real_and_imaginary`."
        )


def check_plain_transformation(name: str, tx: Any) -> None:
    """Raises unless `tx` is an optax transformation, not a learned rule."""
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ValueError(
            f"`{name}` must be an optax transformation such as `optax.sgd(0.1)`, got "
            f"{tx!r}. A learned rule goes into `jaxmeta.maml`."
        )
