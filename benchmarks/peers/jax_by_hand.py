"""The JAX that one writes without a library: flax, optax, and `grad` of `grad`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._meta_step_setting import (
    BLOCKS,
    EPSILON,
    FILTERS,
    OUTER_RATE,
    WAYS,
    Program,
    jax_program,
    load_tasks,
)


class BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        mean = x.mean((0, 1, 2))
        variance = jnp.square(x - mean).mean((0, 1, 2))
        return (x - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + bias


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(BLOCKS):
            x = nn.Conv(FILTERS, (3, 3), strides=2, padding=1, use_bias=False)(x)
            x = nn.relu(BatchNorm()(x))
        return nn.Dense(WAYS)(x.mean((1, 2)))


def loss(params, inputs, targets):
    outputs = Network().apply({"params": params}, inputs)
    return optax.softmax_cross_entropy(outputs, targets).mean()


def maml(setting, folder, cores, *, batching) -> Program:
    """One of three ways to the mean meta-gradient over tasks.

    "vmap" and "map" average the tasks' gradients, taken side by side or in turns.
    "grad-of-mean" is what tutorials write: one gradient of the mean of the losses.
    """
    del cores  # XLA takes what the process has.

    def task_loss(params, task):
        support_inputs, support_targets, query_inputs, query_targets = task
        # Under `vmap` a scan would lose that the first step's kernels are shared.
        for _ in range(setting.inner_steps):
            grads = jax.grad(loss)(params, support_inputs, support_targets)
            params = optax.tree.add_scale(params, -setting.inner_rate, grads)
        return loss(params, query_inputs, query_targets)

    def mean_of_grads(over_tasks, params, tasks):
        one_task = functools.partial(jax.value_and_grad(task_loss), params)
        losses, grads = over_tasks(one_task, tasks)
        return losses.mean(), jax.tree.map(lambda g: g.mean(0), grads)

    def mean_loss(params, tasks):
        return jax.vmap(task_loss, (None, 0))(params, tasks).mean()

    meta_grad = {
        "vmap": functools.partial(mean_of_grads, lambda f, x: jax.vmap(f)(x)),
        "map": functools.partial(mean_of_grads, jax.lax.map),
        "grad-of-mean": jax.value_and_grad(mean_loss),
    }[batching]

    def step(carry, tasks):
        params, opt_state = carry
        mean, grads = meta_grad(params, tasks)
        updates, opt_state = outer_tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), mean

    outer_tx = optax.adam(OUTER_RATE)
    params = load_params(folder)
    tasks = jax.tree.map(jnp.asarray, load_tasks(folder))
    carry = (params, outer_tx.init(params))
    return jax_program(step, carry, tasks, lambda carry: carry[1][0].mu)


def load_params(folder):
    """The benchmark's weights, under the names that flax gives them."""
    weights = np.load(folder / "weights.npz")
    params = {}
    for i in range(BLOCKS):
        params[f"Conv_{i}"] = {"kernel": weights[f"kernel{i}"]}
        params[f"BatchNorm_{i}"] = {
            "scale": weights[f"scale{i}"],
            "bias": weights[f"bias{i}"],
        }
    params["Dense_0"] = {"kernel": weights["head_kernel"], "bias": weights["head_bias"]}
    return jax.tree.map(jnp.asarray, params)
