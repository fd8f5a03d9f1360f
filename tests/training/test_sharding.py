"""Tasks on several devices, meta-parameters whole or in parts: always the same."""

import os
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxmeta as jm
from jaxmeta import training

RULES = {"Dense_0/kernel$": PartitionSpec(None, "params"), "bias": PartitionSpec()}


def _maml(mesh, num_tasks=8):
    net = jm.models.MLP([16, 1])
    learner = jm.maml(
        net, jm.losses.squared_error, inner_tx=optax.sgd(0.01), inner_steps=1
    )
    return jm.estimators.over_tasks(
        learner, jm.tasks.sinusoid(), num_tasks=num_tasks, mesh=mesh
    )


def _lstm(mesh):
    return jm.estimators.truncated_bptt(
        jm.optimizers.lstm(4),
        jm.problems.quadratics(dim=2),
        unroll=5,
        horizon=10,
        num_problems=8,
        mesh=mesh,
    )


def _run(train_step, steps):
    state = jax.jit(train_step.init)(jax.random.key(0))
    step = jax.jit(train_step.step)
    places = jax.tree.map(lambda x: x.sharding, state)
    for _ in range(steps):
        state, _ = step(state)
    # Where `init` puts things is where steps do: else they would compile twice.
    assert jax.tree.map(lambda x: x.sharding, state) == places
    return state


@pytest.mark.parametrize("make", [_maml, pytest.param(_lstm, marks=pytest.mark.slow)])
def test_twenty_steps_are_the_same_on_any_number_of_devices(make):
    with jax.enable_x64(True):
        meta_params = []
        for count in (None, 1, 2, 4, 8):
            mesh = count and training.task_mesh(jax.devices()[:count])
            train_step = training.make_train_step(make(mesh), optax.adam(1e-2))
            meta_params.append(_run(train_step, 20).meta_params)
        for other in meta_params[1:]:
            chex.assert_trees_all_close(other, meta_params[0], rtol=0, atol=1e-10)


def _sharded(outer_tx):
    mesh = training.task_mesh(jax.devices()[:4], param_shards=2)
    assert dict(mesh.shape) == {"tasks": 2, "params": 2}
    shardings = training.shard_params(mesh, RULES)
    return training.make_train_step(_maml(mesh), outer_tx, shardings=shardings)


def test_parameters_in_parts_are_the_same():
    outer_tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    with jax.enable_x64(True):
        plain = _run(training.make_train_step(_maml(None), outer_tx), 20)
        found = _run(_sharded(outer_tx), 20)
        chex.assert_trees_all_close(
            found.meta_params, plain.meta_params, rtol=0, atol=1e-10
        )
    adam = found.opt_state[1][0]
    for tree in (found.meta_params, adam.mu, adam.nu):
        kernels = {
            layer: tree["params"][layer]["kernel"] for layer in ("Dense_0", "Dense_1")
        }
        parts = {
            layer: {part.data.shape for part in kernel.addressable_shards}
            for layer, kernel in kernels.items()
        }
        assert parts == {"Dense_0": {(1, 8)}, "Dense_1": {(16, 1)}}


@pytest.mark.parametrize(
    "outer_tx",
    [
        optax.masked(
            optax.adam(1e-2),
            lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
        optax.adafactor(1e-2, min_dim_size_to_factor=1),
    ],
    ids=["masked", "adafactor"],
)
def test_states_that_are_not_like_parameters_may_be_in_parts(outer_tx):
    """Masked entries, and Adafactor's rows and columns."""
    estimator = _maml(None)
    mesh = training.task_mesh(jax.devices()[:2], param_shards=2)
    places = training.shard_params(mesh, RULES)
    parts, whole = (
        _run(training.make_train_step(estimator, outer_tx, shardings=shardings), 5)
        for shardings in (places, None)
    )
    kernel = parts.meta_params["params"]["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 8)
    chex.assert_trees_all_close(
        jax.device_get(parts.meta_params), jax.device_get(whole.meta_params), rtol=1e-4
    )


def test_a_run_in_parts_resumes(tmp_path):
    options = {"key": jax.random.key(1), "log_every": 5, "validate_every": 5}
    whole = training.fit(_sharded(optax.adam(1e-2)), num_steps=10, **options)
    for steps in (5, 10):
        resumed = training.fit(
            _sharded(optax.adam(1e-2)), num_steps=steps, directory=tmp_path, **options
        )
    chex.assert_trees_all_equal(resumed.state.meta_params, whole.state.meta_params)
    kernel = resumed.state.meta_params["params"]["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 8)


def _all_reduced(num_tasks):
    """Sizes of what the devices add up in a step."""
    estimator = _maml(training.task_mesh(), num_tasks)
    train_step = training.make_train_step(estimator, optax.adam(1e-2))
    state = jax.eval_shape(train_step.init, jax.random.key(0))
    text = jax.jit(train_step.step).lower(state).compile().as_text()
    assert not re.search("all-gather|all-to-all|collective-permute", text)
    found = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    return [[int(n) for n in re.findall(r"f32\[(\d+)", shapes)] for shapes in found]


def test_what_devices_exchange_does_not_grow_with_tasks():
    few, many = _all_reduced(8), _all_reduced(32)
    assert few == many and len(few) >= 1


def test_rules_that_do_not_suit_are_named():
    mesh = training.task_mesh(param_shards=2)
    params = {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"`rules` do not fit kernel.*\(3, 5\)"):
        training.shard_params(mesh, {"kern": PartitionSpec("params")})(params)
    with pytest.raises(ValueError, match=r"`rules` \['weight'\] match none"):
        training.shard_params(mesh, {"weight": PartitionSpec("params")})(params)
    with pytest.raises(ValueError, match=r"do not fit bias of shape \(4,\)"):
        rules = {"": PartitionSpec(None, "params")}
        training.shard_params(mesh, rules)({"bias": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"do not fit kernel.*model"):
        training.shard_params(mesh, {"kernel": PartitionSpec("model")})(params)
    with pytest.raises(ValueError, match=r"`rules` \['kernel'\] match none"):
        rules = {"n": PartitionSpec(), "kernel": PartitionSpec("params")}
        training.shard_params(mesh, rules)(params)
    with pytest.raises(ValueError, match="`param_shards` must divide the 8 devices"):
        training.task_mesh(param_shards=3)
    assert np.shape(mesh.devices) == (4, 2)


_RUN_AHEAD = """
import os
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxmeta import training

training.use_cpu_devices()
mesh = training.task_mesh()
assert mesh.size == jax.device_count() == max(2, len(os.sched_getaffinity(0)))
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
x, w = put(jnp.ones((4 * mesh.size, 64)), "tasks"), put(jnp.ones(64))
loss = lambda w, x: jnp.mean(jnp.tanh(x @ w[:, None]) ** 2)
step = jax.jit(lambda w, x: w - 0.01 * jax.grad(loss)(w, x))
for _ in range(3000):
    w = step(w, x)
print(float(w[0]))
"""


def test_a_loop_that_runs_ahead_of_cpu_devices_does_not_deadlock():
    """It does within a second with one thread per device; XLA aborts a minute later."""
    cores = max(2, len(os.sched_getaffinity(0)))
    env = {k: v for k, v in os.environ.items() if k not in ("NPROC", "XLA_FLAGS")}
    env |= {"JAX_NUM_CPU_DEVICES": str(cores), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _RUN_AHEAD]
    ran = subprocess.run(command, env=env, timeout=50, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_cpu_devices_are_said_before_jax_is_used():
    with pytest.raises(ValueError, match="`num_devices` must be an int >= 1, got 0"):
        training.use_cpu_devices(0)
    jax.devices()
    with pytest.raises(RuntimeError, match="before"):
        training.use_cpu_devices(3)


@pytest.mark.parametrize(("devices", "threads"), [("1", "5"), ("3", "6")])
def test_threads_are_twice_the_devices_or_the_cores(devices, threads, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", devices)
    monkeypatch.delenv("NPROC")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    training.use_cpu_devices()
    assert os.environ["NPROC"] == threads
