"""Shared by rules with a network: checks and casts of theta, states and arguments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxmeta import _checks, _replay, base
from jaxmeta.optimizers import _coordinates


def from_network(
    description: str,
    init: Callable[[jax.Array], Any],
    init_state: Callable[[Any, Any, DTypeLike], Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    needs: tuple[str, ...] = (),
    takes_total_steps: bool = False,
    total_steps: Any = None,
    coordinatewise: bool = False,
) -> base.LearnedOptimizer:
    """Returns a learned optimizer with one theta for all parameters.

    Args:
      description: the call of its factory.
      init: `(key) -> theta`.
      init_state: `(theta, params, compute) -> state`; theta is not cast, `compute` is
        the dtype that updates are computed in. No two fields may share an array,
        because callers donate states.
      update: `(theta, grads, state, **needed) -> (steps, state)`, all but the state
        in `compute`. The steps are cast to the gradients' dtypes.
      needs: which of "params" and "value" (the loss) `update` requires as keywords.
      takes_total_steps: whether `update` requires the keyword `total_steps`, which
        callers may pass as an extra argument.
      total_steps: what it is where they do not; None if they have to.
      coordinatewise: whether each coordinate's update depends on that coordinate alone;
        see `_replay`.
    """

    def init_any(key, params=None):
        del params
        return init(key)

    if isinstance(total_steps, int):
        _checks.check_int("total_steps", total_steps)
    like = jax.eval_shape(init, jax.random.key(0))

    def transform(theta):
        _checks.check_like("theta", theta, like)
        compute = compute_dtype(theta)
        cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, compute), tree)
        weights = cast(theta)

        def init_checked(params):
            _checks.check_real("params", params)
            return init_state(theta, params, compute)

        def update_checked(updates, state, params=None, *, value=None, **extra_args):
            told = {}
            if takes_total_steps:
                planned = extra_args.get("total_steps", total_steps)
                told = {"total_steps": _required_steps(description, planned)}
            given = {"params": params, "value": value}
            needed = {name: given[name] for name in needs}
            _check_given(description, needed)
            check_state(init_checked, updates, state, needed.get("params"))
            if "params" in needed:
                needed["params"] = _coordinates.without_masked(updates, params)
            steps, state = update(weights, cast(updates), state, **cast(needed), **told)
            like_grads = lambda g, step: step.astype(jnp.result_type(g))
            return jax.tree.map(like_grads, updates, steps), state

        if coordinatewise:
            return _replay.Coordinatewise(init_checked, update_checked)
        return optax.GradientTransformationExtraArgs(init_checked, update_checked)

    return base.LearnedOptimizer(init_any, transform, description)


def compute_dtype(theta: Any) -> DTypeLike:
    """The dtype a rule computes in: float32, or theta's if that is wider."""
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(theta)), jnp.float32)


def check_state(
    init_state: Callable[[Any], Any], updates: Any, state: Any, params: Any = None
) -> None:
    """Raises unless `state` belongs to parameters like `updates`.

    Args:
      init_state: the transformation's `init`.
      updates: gradients; `state` and `params` must cover their leaves.
      state: the state that was passed.
      params: the parameters that were passed, if the rule requires them.
    """
    paths = lambda tree: {
        jax.tree_util.keystr(path): jnp.shape(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    for name, tree, like in (
        ("state", state, lambda: jax.eval_shape(init_state, updates)),
        ("params", params, lambda: updates),
    ):
        if tree is None and name == "params":
            continue
        found = paths(tree)
        for path, shape in paths(like()).items():
            if found.get(path) != shape:
                got = f"shape {found[path]}" if path in found else "nothing"
                raise ValueError(
                    f"{_coordinates.OTHER_PARAMETERS} `{name}` has {got} at {path}, "
                    f"not {shape}."
                )


def _required_steps(description, total_steps):
    if total_steps is None:
        name = description.partition("(")[0]
        raise ValueError(
            f"The update of `{name}` requires `total_steps`, got None: "
            f"`{name}(total_steps=...)`, or pass it to `tx.update`."
        )
    return total_steps


def _check_given(description, needed):
    if any(x is None for x in needed.values()):
        name = description.partition("(")[0]
        loss = ", value=loss" if "value" in needed else ""
        what = " and ".join(f"`{argument}`" for argument in needed)
        raise ValueError(
            f"The update of `{name}` requires {what}, got None: "
            f"tx.update(grads, state, params{loss})."
        )
