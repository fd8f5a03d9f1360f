"""Small learners and tasks that several test files share."""

import jax
import jax.numpy as jnp
import optax

import jaxmeta as jm


def regression_task(key, num_support=4, num_query=6):
    """One random sinusoid of [N, 1] points."""
    sample_task = jm.tasks.sinusoid(shots=num_support, queries=num_query)
    return sample_task(key)


def tanh_model(width=5):
    """A smooth network, so that finite differences of second derivatives hold."""

    def init(key, inputs):
        keys = jax.random.split(key, 2)
        return {
            "hidden": jax.random.normal(keys[0], (inputs.shape[-1], width)),
            "bias": jnp.zeros(width),
            "out": jax.random.normal(keys[1], (width, 1)),
        }

    def apply(params, inputs):
        hidden = inputs @ params["hidden"] + params["bias"].reshape(1, -1)
        return jnp.tanh(hidden) @ params["out"]

    return jm.Model(init, apply)


def scaled_sgd():
    """A small learned rule: one learned rate for each leaf, log-parametrised."""

    def init(key, params=None):
        del key
        return jax.tree.map(lambda x: jnp.full((), jnp.log(0.02), x.dtype), params)

    def transform(theta):
        def update(updates, state, params=None, **extra_args):
            del params, extra_args
            rates = jax.tree.map(jnp.exp, theta)
            return jax.tree.map(lambda r, g: -r * g, rates, updates), state

        return optax.GradientTransformationExtraArgs(
            lambda _: optax.EmptyState(), update
        )

    return jm.LearnedOptimizer(init, transform)


def maml(model=None, **options):
    """MAML of the smooth network, two steps of SGD unless told otherwise."""
    options = {"inner_tx": optax.sgd(0.02), "inner_steps": 2} | options
    return jm.maml(model or tanh_model(), jm.losses.squared_error, **options)


LEARNERS = {
    "maml": maml,
    "fomaml": lambda: maml(first_order=True),
    "maml, reverse over reverse": lambda: maml(hvp="reverse-over-reverse"),
    "maml, momentum": lambda: maml(inner_tx=optax.sgd(0.02, momentum=0.9)),
    "maml, adam": lambda: maml(inner_tx=jm.optimizers.adam(0.01)),
    "maml, learned rule": lambda: maml(inner_tx=scaled_sgd()),
    "fomaml, learned rule": lambda: maml(inner_tx=scaled_sgd(), first_order=True),
}
