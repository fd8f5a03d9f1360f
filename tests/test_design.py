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
    assert result.loss.mean.shape == result.loss.half_width.shape == (11,)
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


def test_c_a_learned_optimizer_is_an_optax_transformation(key):
    params = {"conv": np.ones((2, 2), np.float32), "fc": np.ones(3, np.float32)}
    labels = {"conv": "conv", "fc": "fc"}
    theta_key, theta_conv_key, theta_fc_key = jax.random.split(key, 3)
    lopt = jm.optimizers.lstm(hidden_size=20, num_layers=2)
    theta = lopt.init(theta_key)
    theta_conv, theta_fc = lopt.init(theta_conv_key), lopt.init(theta_fc_key)
    for tx in (
        optax.chain(optax.clip_by_global_norm(1.0), lopt.transform(theta)),
        optax.partition(
            {"conv": lopt.transform(theta_conv), "fc": lopt.transform(theta_fc)}, labels
        ),
        jm.optimizers.pretrained("lstm-mlp"),
    ):
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
        moved = optax.apply_updates(params, updates)
        assert np.isfinite(optax.tree.norm(moved))
        assert optax.tree.norm(updates) > 0


def test_d_learned_rules_inside(key):
    model, loss = jm.models.MLP([10, 1]), jm.losses.squared_error
    lopt = jm.optimizers.lstm(hidden_size=20, num_layers=2)
    for learner in (
        jm.maml(model, loss, inner_tx=lopt, inner_steps=5),
        jm.meta_sgd(model, loss, learning_rate=0.01, inner_steps=1),
        jm.meta_lstm(model, loss, inner_steps=5),
    ):
        task = jm.tasks.sinusoid()(key)
        meta_params = learner.init(key, task)
        assert isinstance(meta_params, jm.learners.MamlParams)
        grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
        assert np.isfinite(optax.tree.norm(grads))
        assert optax.tree.norm(grads.theta) > 0


def test_e_meta_training_an_optimizer():
    lopt = jm.optimizers.lstm(hidden_size=20, num_layers=2)
    problem = jm.problems.quadratics(dim=10)
    for estimator in (
        jm.estimators.truncated_bptt(
            lopt, problem, unroll=20, horizon=100, num_problems=16
        ),
        jm.estimators.pes(
            lopt, problem, unroll=20, horizon=1000, sigma=0.01, num_problems=16
        ),
    ):
        init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
        state, info = jax.jit(step)(init(jax.random.key(0)))
        assert info.loss.shape == (16,)
        assert np.isfinite(info.loss).all()
        assert state.step == 1


def test_f_metric_learners(key):
    learner = jm.prototypical(jm.models.Conv4(64, head=None))
    sample_task = jm.tasks.glyphs(ways=3, queries=2, size=16)
    estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=2)
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    state, info = jax.jit(step)(init(key))
    assert info.loss.shape == info.metrics["accuracy"].shape == (2,)
    task_params, _ = learner.adapt(key, state.meta_params, sample_task(key).support)
    logits = learner.predict(task_params, sample_task(key).query.inputs)
    assert logits.shape == (6, 3) and np.isfinite(logits).all()


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
