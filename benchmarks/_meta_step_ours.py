"""jaxmeta in `meta_step.py`: the public way to a training step, and its tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta as jm
from benchmarks._meta_step_setting import (
    BLOCKS,
    FILTERS,
    OUTER_RATE,
    SHOTS,
    TASKS,
    WAYS,
    Program,
    jax_program,
)


def maml(setting, folder, cores) -> Program:
    train_step, state = make_step(setting, folder, cores)

    def step(state, train_step):
        state, info = train_step(state)
        return state, info.loss.mean()

    return jax_program(step, state, train_step, lambda state: state.opt_state[0].mu)


def save_tasks(setting, folder, cores):
    """Saves the tasks that jaxmeta's first step draws, for the others."""

    def report_the_task(learner):
        told = lambda task: jm.MetaGradInfo(jnp.zeros(()), {}, task)
        return learner._replace(
            meta_grad=lambda key, meta_params, task, **_: (meta_params, told(task))
        )

    step, state = make_step(setting, folder, cores, change=report_the_task)
    _, info = jax.jit(lambda step, state: step(state))(step, state)
    tasks = info.adapt
    np.savez(
        folder / "tasks.npz",
        support_inputs=tasks.support.inputs,
        support_targets=tasks.support.targets,
        query_inputs=tasks.query.inputs,
        query_targets=tasks.query.targets,
    )
    return {}


def make_step(setting, folder, cores, change=lambda learner: learner):
    """The public way to a training step, with the benchmark's weights put in."""
    mesh = None
    if cores > 1:
        jm.training.use_cpu_devices(cores)
        mesh = jm.training.task_mesh()
    learner = jm.maml(
        jm.models.Conv4(FILTERS, head=WAYS, strided=True),
        jm.losses.cross_entropy,
        inner_tx=optax.sgd(setting.inner_rate),
        inner_steps=setting.inner_steps,
    )
    sample_task = jm.tasks.few_shot(
        np.load(folder / "images.npy"), ways=WAYS, shots=SHOTS, queries=setting.queries
    )
    estimator = jm.estimators.over_tasks(
        change(learner), sample_task, num_tasks=TASKS, mesh=mesh
    )
    init, step = jm.training.make_train_step(estimator, optax.adam(OUTER_RATE))
    state = init(jax.random.key(0))
    weights = np.load(folder / "weights.npz")
    params = {
        f"Block_{i}": {
            "kernel": weights[f"kernel{i}"],
            "BatchNorm_0": {
                "scale": weights[f"scale{i}"],
                "bias": weights[f"bias{i}"],
            },
        }
        for i in range(BLOCKS)
    }
    params["head"] = {"kernel": weights["head_kernel"], "bias": weights["head_bias"]}
    params = jax.tree.map(jax.numpy.asarray, {"params": params})
    state = state._replace(meta_params=params)
    if mesh is not None:
        everywhere = jax.NamedSharding(mesh, jax.P())
        step, state = jax.device_put((step, state), everywhere)
    return step, state
