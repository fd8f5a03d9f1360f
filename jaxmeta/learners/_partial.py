"""MAML on a subset of the parameters, chosen by path; shared by ANIL and BOIL."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from jaxmeta import _checks, _unroll, base
from jaxmeta.learners import _adaptation

IsAdapted = Callable[[str], bool]


def is_head(path: str) -> bool:
    """Whether a parameter's path, such as "params/head/kernel", contains "head"."""
    return "head" in path.split("/")


def adapt_part(
    model: base.ModelLike,
    loss: base.LossFn,
    *,
    is_adapted: IsAdapted,
    inner_tx: optax.GradientTransformation,
    inner_steps: int,
    first_order: bool,
    hvp: _unroll.Hvp,
    metrics: Mapping[str, base.MetricFn] | None,
    description: str,
) -> base.MetaLearner:
    """Returns a MAML learner that adapts the parameters `is_adapted` selects."""
    if not callable(is_adapted):
        raise ValueError(
            "`is_adapted` must be a function of a parameter's path, e.g. `lambda path: "
            f'"head" in path`, got {is_adapted!r}.'
        )
    _checks.check_plain_transformation("inner_tx", inner_tx)

    def init(key, task):
        params = loop.net.init(key, task.support.inputs)
        split(params, is_adapted)  # Raises if there is nothing to adapt.
        return params

    def prepare(key, meta_params, support):
        del key, support
        adapted, kept = split(meta_params, is_adapted)
        to_params = lambda variables, step: merge(variables, kept)
        return _adaptation.Adaptation(adapted, to_params, inner_tx)

    loop = _adaptation.inner_loop(
        model,
        loss,
        prepare,
        inner_steps=inner_steps,
        first_order=first_order,
        hvp=hvp,
        metrics=metrics,
    )
    return _adaptation.as_learner(loop, init, description=description)


def split(params: Any, is_adapted: IsAdapted) -> tuple[Any, Any]:
    """Two trees like `params`, with None where a leaf is in the other one.

    Raises:
      ValueError: if `is_adapted` selects no leaf.
    """
    names = jax.tree_util.tree_map_with_path(lambda path, _: path_name(path), params)
    adapted = jax.tree.map(
        lambda x, name: x if is_adapted(name) else None, params, names
    )
    kept = jax.tree.map(lambda x, name: None if is_adapted(name) else x, params, names)
    if not jax.tree.leaves(adapted):
        listed = path_names(params)
        layer = listed[-1].rpartition("/")[0] or listed[-1]
        raise ValueError(
            f"`is_adapted` selects none of the parameters {listed}. Pass a predicate "
            f'over such paths, e.g. `lambda path: "{layer}" in path`.'
        )
    return adapted, kept


def merge(adapted: Any, kept: Any) -> Any:
    """Undoes `split`."""
    # JAX treats None as an empty subtree, so `is_leaf` must make it a leaf here.
    choose = lambda x, y: y if x is None else x
    return jax.tree.map(choose, adapted, kept, is_leaf=lambda x: x is None)


def path_names(params: Any) -> list[str]:
    """The paths of all leaves."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def path_name(path: Any) -> str:
    """A leaf's path as text, "params/head/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
