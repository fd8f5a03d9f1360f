"""Trace-time checks of static facts: shapes, structure, Python values."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from jaxmeta import _dtypes, base


def check_int(name: str, value: Any, *, minimum: int = 1) -> None:
    """Raises unless `value` is a Python or NumPy int of at least `minimum`."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or value < minimum:
        raise ValueError(f"`{name}` must be an int >= {minimum}, got {value!r}.")


def check_seed(name: str, value: Any) -> None:
    """Raises unless `value` is an int that `jax.random.key` keeps apart from others."""
    check_int(name, value, minimum=0)
    if value >= 2**32:
        raise ValueError(
            f"`{name}` must be less than 2**32, got {value}: JAX's keys keep 32 bits, "
            f"and it would be the seed {value % 2**32}."
        )


def check_positive(name: str, value: Any) -> None:
    """Raises unless `value` is a schedule, or positive and finite."""
    if not callable(value) and not _is_above(value, lambda x: x > 0):
        raise ValueError(f"`{name}` must be positive and finite, got {value!r}.")


def check_not_negative(name: str, value: Any) -> None:
    """Raises unless `value` is zero or positive, and finite."""
    if not _is_above(value, lambda x: x >= 0):
        raise ValueError(f"`{name}` must be at least 0 and finite, got {value!r}.")


def _is_above(value, test):
    """Whether all of `value` is finite and passes `test`; tracers always pass."""
    if isinstance(value, core.Tracer):
        return True
    if not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        return False
    numbers = np.asarray(value)  # A JAX comparison would be traced under `jit`.
    return bool(np.all(test(numbers) & (numbers < float("inf"))))


def check_callable(name: str, value: Any) -> None:
    """Raises unless `value` is callable."""
    if not callable(value):
        raise ValueError(f"`{name}` must be a function, got {value!r}.")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raises unless `value` has the type that the learner's `init` or `adapt` makes."""
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
    leaves = jax.tree.leaves(examples)
    plain = sorted({type(x).__name__ for x in leaves if not hasattr(x, "shape")})
    if plain:
        raise ValueError(
            f"`{name}` must hold arrays, got leaves of types {plain}: JAX treats lists "
            "as pytrees. Convert them by `numpy.asarray(...)`."
        )
    sizes = {
        f"{name}{jax.tree_util.keystr(path)}": jnp.shape(leaf)[:1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(examples)
    }
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(
            f"All leaves of `{name}` need the same leading example axis, got "
            f"{sizes}. For batched tasks [T, N, ...] use `jax.vmap` or "
            "`jaxmeta.estimators.over_tasks`, which adds the task axis."
        )
    wrong = {
        f"{name}{jax.tree_util.keystr(path)}": str(leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(examples)
        if getattr(getattr(leaf, "dtype", None), "kind", "f") in "OSUM"
    }
    if wrong:
        raise ValueError(
            f"`{name}` must hold numbers, got {wrong}. Encode class names as "
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
    """Raises unless every leaf is a floating-point (or complex) array or number."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kinds = {jax.tree_util.keystr(path): _kind(leaf) for path, leaf in leaves}
    wrong = {path: str(kind) for path, kind in kinds.items() if not _is_inexact(kind)}
    if wrong:
        fix = "Keep constants out of the parameters: close over them in `apply`."
        if any(isinstance(kind, str) for kind in kinds.values()):
            fix += " Wrap an Equinox module with `jaxmeta.models.from_equinox`."
        raise ValueError(
            f"Parameters must be floating point to be adapted, got {wrong}. {fix}"
        )
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        extra = sorted(str(name) for name in params if name != "params")
        raise ValueError(
            f"The model has the collections {extra} besides its trainable 'params'. "
            "Wrap it: `jaxmeta.models.from_linen(module)`."
        )


def _kind(leaf):
    """The dtype of an array or a number, else the name of its type."""
    if hasattr(leaf, "dtype") or _dtypes.is_number(leaf):
        return jnp.result_type(leaf)
    return type(leaf).__name__


def _is_inexact(kind):
    return not isinstance(kind, str) and jnp.issubdtype(kind, jnp.inexact)


def check_scalar_loss(name: str, loss: jax.Array) -> None:
    """Raises unless a loss function returned just a floating-point scalar."""
    if not isinstance(loss, jax.Array):
        fix = "Return only the scalar; report other values through `metrics`."
        if _dtypes.is_number(loss):
            fix = "A plain number has no gradient: compute it with `jax.numpy`."
        raise ValueError(
            f"`{name}` must return a JAX float scalar, got {_describe(loss)}. {fix}"
        )
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.inexact):
        raise ValueError(
            f"`{name}` must return a float scalar, got shape {loss.shape} and dtype "
            f"{loss.dtype}. Take the mean over examples."
        )


def as_metric(name: str, value: Any) -> jax.Array:
    """Returns a metric's value as a scalar array; raises if it is not a scalar."""
    if not _dtypes.is_number(value) or jnp.shape(value) != ():
        raise ValueError(
            f"The metric {name!r} must return a scalar, got {_describe(value)}. Take "
            "the mean over examples; give each number its own name in `metrics`."
        )
    return jnp.asarray(value)


def _describe(value):
    """A value for error messages: dtype and shape of arrays, repr of the rest."""
    if isinstance(value, tuple | list | Mapping):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        listed = ", ".join(f"{name!r}: {_describe(item)}" for name, item in items)
        return f"a {type(value).__name__} of {{{listed}}}"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


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
            f"`{name}` does not match this architecture: got {got}, expected "
            f"{expected}. Use the sizes it was made with, or draw a new one by `init`."
        )


def check_metric_names(metrics: Collection[str]) -> None:
    """Raises if a metric's name clashes with another field of the records."""
    taken = {"step", "loss", "seconds"} & set(metrics)
    if taken:
        raise ValueError(
            f"`metrics` may not be called {sorted(taken)}: records use these names. "
            "Rename them."
        )


def check_transformation(name: str, tx: Any) -> None:
    """Raises unless `tx` is an optax transformation or a learned rule."""
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
            f"{tx!r}. For a learned rule use `jaxmeta.maml`."
        )


def check_intervals(
    num_steps: int, log_every: int, validate_every: int, patience: int | None
) -> None:
    """Raises unless these arguments of `training.fit` are consistent."""
    check_int("num_steps", num_steps)
    if num_steps >= 2**31:
        raise ValueError(
            f"`num_steps` must be less than 2**31, got {num_steps}: steps are int32."
        )
    check_int("log_every", log_every)
    check_int("validate_every", validate_every)
    if validate_every % log_every:
        raise ValueError(
            f"`validate_every` must be a multiple of `log_every`, {log_every}, got "
            f"{validate_every}."
        )
    if patience is not None:
        check_int("patience", patience)
