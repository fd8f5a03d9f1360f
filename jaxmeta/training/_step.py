"""One meta-training step over any estimator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxmeta import base


class TrainStep(NamedTuple):
    """How a run starts and goes on.

    Attributes:
      init: `(key) -> TrainState`.
      step: `(state) -> (state, info)`, pure; a `jax.tree_util.Partial` whose leaves
        are the estimator's data.
    """

    init: Callable[[jax.Array], base.TrainState]
    step: Callable[[base.TrainState], tuple[base.TrainState, Any]]


def make_train_step(
    estimator: base.GradientEstimator, outer_tx: optax.GradientTransformation
) -> TrainStep:
    """Returns `(init, step)`: an estimator's gradients through any optax chain.

    Neither is jitted here: wrap them in `jax.jit`, `jax.lax.scan` (many meta-steps a
    dispatch) or `jax.vmap` (many meta-seeds at once).

    Args:
      estimator: what gives the meta-gradient; see `jaxmeta.estimators`. Its
        `estimate` is told the number of steps made as `step`.
      outer_tx: the outer update, say `optax.adam(1e-3)`.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> learner = jm.maml(jm.models.MLP([8, 1]), jm.losses.squared_error,
      ...                   inner_tx=optax.sgd(0.01), inner_steps=1)
      >>> sample_task = jm.tasks.sinusoid()
      >>> estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=4)
      >>> init, step = make_train_step(estimator, optax.adam(1e-3))
      >>> keys = jax.random.split(jax.random.key(0), 3)  # three meta-seeds at once
      >>> states, infos = jax.jit(jax.vmap(step))(jax.vmap(init)(keys))
      >>> infos.loss.shape
      (3, 4)
    """
    outer_tx = optax.with_extra_args_support(outer_tx)

    def init(key):
        init_key, run_key = jax.random.split(key)
        meta_params, carry = estimator.init(init_key)
        return base.TrainState(
            step=jnp.zeros((), jnp.int32),
            meta_params=meta_params,
            carry=carry,
            opt_state=outer_tx.init(meta_params),
            key=run_key,
        )

    def step(estimate, state):
        next_key, step_key = jax.random.split(state.key)
        grads, carry, info = estimate(
            step_key, state.meta_params, state.carry, step=state.step
        )
        updates, opt_state = outer_tx.update(grads, state.opt_state, state.meta_params)
        state = base.TrainState(
            step=state.step + 1,
            meta_params=optax.apply_updates(state.meta_params, updates),
            carry=carry,
            opt_state=opt_state,
            key=next_key,
        )
        return state, info

    return TrainStep(init, Partial(step, estimator.estimate))
