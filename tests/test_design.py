"""What users write: the examples of the design, as they stand."""

import pathlib

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jaxmeta as jm

DATA = pathlib.Path(__file__).parents[1] / ".." / "shared" / "data" / "tfds"


def test_a_maml_on_a_sinusoid():
    sample_task = jm.tasks.sinusoid(shots=10, queries=10)
    learner = jm.maml(
        jm.models.MLP([40, 40, 1]),
        jm.losses.squared_error,
        inner_tx=optax.sgd(0.01),
        inner_steps=1,
    )
    estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=25)
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))

    state = init(jax.random.key(0))
    state, info = jax.jit(step)(state)
    state, infos = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: step(s), s, length=1000)
    )(state)

    result = jm.training.evaluate(
        learner,
        state.meta_params,
        sample_task,
        num_tasks=600,
        key=jax.random.key(1),
        inner_steps=10,
    )
    print(result)
    assert info.loss.shape == (25,)
    assert result.loss.mean.shape == result.loss.interval.shape == (11,)
    assert result.loss.mean[1] < result.loss.mean[0]
    assert infos.loss[-100:].mean() < infos.loss[:100].mean()


def test_b_any_optax_chain_inside(key):
    model, loss = jm.models.MLP([10, 1]), jm.losses.squared_error
    sample_task = jm.tasks.sinusoid()
    for learner in (
        jm.maml(
            model,
            loss,
            inner_tx=optax.chain(
                optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)
            ),
            inner_steps=5,
        ),
        jm.maml(
            model,
            loss,
            inner_tx=optax.adam(1e-2, eps_root=1e-8),
            inner_steps=5,
            first_order=True,
        ),
    ):
        task = sample_task(key)
        meta_params = learner.init(key, task)
        grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
        assert np.isfinite(optax.tree.norm(grads))


@pytest.mark.skipif(
    not DATA.exists(), reason="Omniglot is not prepared beside the clone"
)
def test_g_real_few_shot_data(key):
    data_dir = DATA
    splits = jm.tasks.load_omniglot(data_dir)
    sample_task = jm.tasks.few_shot(
        splits.train, ways=5, shots=1, queries=1, rotations=True
    )
    task = jax.jit(sample_task)(key)
    assert task.support.inputs.shape == (5, 28, 28, 1)
    assert task.query.targets.shape == (5, 5)
    ink = task.support.inputs.mean()
    assert 0.02 < ink < 0.3  # High ink on low paper.


def test_h_devices(key):
    mesh = jm.training.task_mesh(jax.devices())
    learner = jm.maml(
        jm.models.MLP([8, 1]),
        jm.losses.squared_error,
        inner_tx=optax.sgd(0.01),
        inner_steps=1,
    )
    estimator = jm.estimators.over_tasks(
        learner, jm.tasks.sinusoid(), num_tasks=1024, mesh=mesh
    )
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    _, info = jax.jit(step)(init(key))
    assert info.loss.shape == (1024,)


MODELS = {
    "linen": lambda: nn.Dense(1),
    "haiku": lambda: hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x))),
    "model": lambda: jm.Model(
        lambda key, x: {"w": jax.random.normal(key, (x.shape[-1], 1))},
        lambda params, x: x @ params["w"],
    ),
    "nnx": lambda: jm.models.from_nnx(lambda rngs: nnx.Linear(1, 1, rngs=rngs)),
    "linen, adapted": lambda: jm.models.from_linen(
        nn.Sequential([nn.Dense(3), nn.Dense(1)])
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_i_any_model(name, key):
    learner = jm.maml(
        MODELS[name](), jm.losses.squared_error, inner_tx=optax.sgd(0.01), inner_steps=1
    )
    task = jm.tasks.sinusoid()(key)
    meta_params = learner.init(key, task)
    grads, info = jax.jit(learner.meta_grad)(key, meta_params, task)
    assert optax.tree.norm(grads) > 0
    assert np.isfinite(info.loss)
