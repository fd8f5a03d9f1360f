"""One meta-training step with any estimator."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from jaxmeta import _pytrees, base


def make_train_step(
    estimator: base.GradientEstimator,
    outer_tx: optax.GradientTransformation,
    *,
    shardings: Callable[[base.Params], Any] | None = None,
) -> base.TrainStep:
    """Returns `(init, step)`: an estimator's gradients through any optax chain.

    Neither is jitted: wrap them in `jax.jit`, `jax.lax.scan` (many meta-steps per
    dispatch) or `jax.vmap` (many meta-seeds at once).

    Args:
      estimator: estimates the meta-gradient; see `jaxmeta.estimators`. Its `estimate`
        receives the number of completed steps as `step`.
      outer_tx: the outer update, e.g. `optax.adam(1e-3)`.
      shardings: `(meta_params) -> tree of NamedSharding` for meta-parameters and their
        outer optimizer state; see `shard_params`. None keeps the estimator's placement,
        replicated on all devices.

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
    constrain = jax.lax.with_sharding_constraint

    def place_like(leaf, param, sharding):
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        if leaf.shape != param.shape:  # Replicated, e.g. Adafactor's factors.
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        return constrain(leaf, sharding)

    def place(state):
        if shardings is None:
            return state
        places = shardings(state.meta_params)
        return state._replace(
            meta_params=jax.tree.map(constrain, state.meta_params, places),
            opt_state=optax.tree.map_params(
                outer_tx,
                place_like,
                state.opt_state,
                state.meta_params,
                places,
                is_leaf=lambda x: isinstance(x, optax.MaskedNode),
            ),
        )

    def init(key):
        init_key, run_key = jax.random.split(key)
        meta_params, carry = estimator.init(init_key)
        return place(
            base.TrainState(
                step=jnp.zeros((), jnp.int32),
                meta_params=meta_params,
                carry=carry,
                opt_state=outer_tx.init(meta_params),
                key=run_key,
            )
        )

    def step(estimate, state, **extra):
        next_key, step_key = jax.random.split(state.key)
        grads, carry, info = estimate(
            step_key, state.meta_params, state.carry, step=state.step, **extra
        )
        if shardings is not None:
            grads = jax.tree.map(constrain, grads, shardings(grads))
        updates, opt_state = outer_tx.update(grads, state.opt_state, state.meta_params)
        state = base.TrainState(
            step=state.step + 1,
            meta_params=optax.apply_updates(state.meta_params, updates),
            carry=carry,
            opt_state=opt_state,
            key=next_key,
        )
        return place(state), info

    return base.TrainStep(init, Partial(step, _pytrees.as_partial(estimator.estimate)))


def alternate(
    sources: Sequence[tuple[base.GradientEstimator, optax.GradientTransformation]],
    probabilities: Sequence[float],
) -> base.TrainStep:
    """Returns `(init, step)`: each step uses one of several estimators at random.

    Each has an outer update with its own state, since their losses differ: for example
    backpropagation most of the time, and sometimes imitation of Adam.

    Args:
      sources: pairs of estimator and outer update for the same meta-parameters, drawn
        by the first one. Their infos must have the same structure.
      probabilities: one per source.

    Raises:
      ValueError: if probabilities are negative, do not sum to 1, or differ in number
        from the sources.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> lopt, problem = jm.optimizers.lstm(4), jm.problems.quadratics(dim=2)
      >>> runs = {"unroll": 5, "horizon": 10, "num_problems": 3}
      >>> init, step = alternate(
      ...     [(jm.estimators.truncated_bptt(lopt, problem, **runs), optax.adam(1e-3)),
      ...      (jm.estimators.imitation(lopt, problem, optax.adam(0.1), **runs),
      ...       optax.adam(1e-3))],
      ...     probabilities=[0.7, 0.3])
      >>> state, info = jax.jit(step)(init(jax.random.key(0)))
      >>> int(state.step)
      1
    """
    shares = np.asarray(probabilities, float)
    if (
        shares.shape != (len(sources),)
        or (shares < 0).any()
        or abs(shares.sum() - 1) > 1e-6
    ):
        raise ValueError(
            f"`probabilities` must be {len(sources)} numbers >= 0 that sum to 1, got "
            f"{list(probabilities)}."
        )
    steps = [make_train_step(*source) for source in sources]

    def init(key):
        run_key, *keys = jax.random.split(key, 1 + len(steps))
        states = [part.init(k) for part, k in zip(steps, keys, strict=True)]
        return base.TrainState(
            step=jnp.zeros((), jnp.int32),
            meta_params=states[0].meta_params,
            carry=tuple(state.carry for state in states),
            opt_state=tuple(state.opt_state for state in states),
            key=run_key,
        )

    def step(parts, state):
        next_key, choice_key, step_key = jax.random.split(state.key, 3)

        def follow(i):
            def branch(state):
                own = state._replace(
                    carry=state.carry[i], opt_state=state.opt_state[i], key=step_key
                )
                own, info = parts[i](own)
                put = lambda old, new: (*old[:i], new, *old[i + 1 :])
                carry = put(state.carry, own.carry)
                opt_state = put(state.opt_state, own.opt_state)
                return own._replace(carry=carry, opt_state=opt_state), info

            return branch

        chosen = jax.random.choice(choice_key, len(parts), p=jnp.asarray(shares))
        state, info = jax.lax.switch(chosen, [*map(follow, range(len(parts)))], state)
        return state._replace(key=next_key), info

    return base.TrainStep(init, Partial(step, [part.step for part in steps]))
