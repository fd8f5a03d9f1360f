"""Small metric learners and classification tasks that several test files share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta as jm
from jaxmeta import learners


def vector_task(key, ways=3, shots=2, queries=2, size=5):
    """Random vectors around a random centre for each class, one-hot targets."""
    centre_key, *keys = jax.random.split(key, 3)
    centres = jax.random.normal(centre_key, (ways, 1, size))

    def examples(key, count):
        x = centres + 0.5 * jax.random.normal(key, (ways, count, size))
        targets = jnp.repeat(jnp.eye(ways), count, 0)
        return jm.Examples(x.reshape(-1, size), targets)

    return jm.Task(examples(keys[0], shots), examples(keys[1], queries))


def classification_task(key, ways=3, shots=2, queries=2):
    """The same, as images of 4x4 pixels."""
    as_images = lambda examples: examples._replace(
        inputs=examples.inputs.reshape(-1, 4, 4, 1)
    )
    return jm.Task(*map(as_images, vector_task(key, ways, shots, queries, size=16)))


def tanh_embedding(width=6, size=4):
    """A smooth embedding [N, size] of anything, for finite differences."""

    def init(key, inputs):
        keys = jax.random.split(key)
        fan_in = inputs[0].size
        return {
            "hidden": jax.random.normal(keys[0], (fan_in, width)) * fan_in**-0.5,
            "out": jax.random.normal(keys[1], (width, size)),
        }

    def apply(params, inputs):
        x = inputs.reshape(inputs.shape[0], -1)
        return jnp.tanh(x @ params["hidden"]) @ params["out"]

    return jm.Model(init, apply)


def identity_embedding():
    """Leaves vectors as they are, so that a head can be computed by hand."""
    return jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x)


def logits_of(learner, task, meta_params=None):
    """What the learner predicts for the queries, its parameters drawn if not given."""

    @jax.jit
    def predict(meta_params):
        task_params, _ = learner.adapt(jax.random.key(7), meta_params, task.support)
        return learner.predict(task_params, task.query.inputs)

    if meta_params is None:
        meta_params = learner.init(jax.random.key(0), task)
    return np.asarray(predict(meta_params))


def finite_difference_error(learner, key, task=None, eps=1e-5):
    """Relative error of the meta-gradient of `evaluate`'s loss, in float64."""
    task = vector_task(key) if task is None else task
    meta_params = learner.init(key, task)
    grads, _ = jax.jit(learner.meta_grad)(key, meta_params, task)
    flat, unravel = jax.flatten_util.ravel_pytree(meta_params)

    @jax.jit
    @jax.vmap
    def query_loss(flat):
        return learner.evaluate(key, unravel(flat), task).loss[-1]

    steps = eps * jnp.eye(flat.size)
    ahead, behind = query_loss(flat[None] + steps), query_loss(flat[None] - steps)
    numeric = (ahead - behind) / (2 * eps)
    exact = jax.flatten_util.ravel_pytree(grads)[0]
    return float(jnp.linalg.norm(exact - numeric) / jnp.linalg.norm(numeric))


METRIC_LEARNERS = {
    "prototypical": lambda: learners.prototypical(tanh_embedding()),
    "prototypical, support model": lambda: learners.prototypical(
        tanh_embedding(), support_model=tanh_embedding(3), normalize_prototypes=True
    ),
    "matching": lambda: learners.matching(tanh_embedding()),
    "matching, full context": lambda: learners.matching(
        tanh_embedding(), full_context=True, context_steps=2
    ),
    "siamese": lambda: learners.siamese(tanh_embedding()),
    "relation": lambda: learners.relation(tanh_embedding()),
    "ridge": lambda: learners.ridge(tanh_embedding()),
    "subspace": lambda: learners.subspace(tanh_embedding()),
    # As many features as examples: with fewer, rounding is larger than 1e-9.
    "svm": lambda: learners.svm(tanh_embedding(8, size=8)),
    "proto_maml": lambda: learners.proto_maml(
        tanh_embedding(), inner_tx=optax.sgd(0.02), inner_steps=2
    ),
    "feat": lambda: learners.feat(tanh_embedding(), temperature=4.0),
}
