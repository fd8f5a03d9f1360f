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


def part_model():
    """The smooth network, its output layer called `head`."""
    model = tanh_model()

    def init(key, inputs):
        params = model.init(key, inputs)
        return {"head": params.pop("out"), "body": params}

    def apply(params, inputs):
        return model.apply(params["body"] | {"out": params["head"]}, inputs)

    return jm.Model(init, apply)


def with_inner_sgd(factory, **options):
    """A learner of the smooth network whose inner loop is two steps of SGD."""
    options = {"inner_tx": optax.sgd(0.02), "inner_steps": 2} | options
    return factory(part_model(), jm.losses.squared_error, **options)


def with_own_rule(factory, **options):
    """A learner of the smooth network that brings its own inner rule."""
    options = {"inner_steps": 2} | options
    return factory(part_model(), jm.losses.squared_error, **options)


# Learners of regression_task.
LEARNERS = {
    "maml": maml,
    "fomaml": lambda: maml(first_order=True),
    "maml, learned rule": lambda: maml(inner_tx=scaled_sgd()),
    "reptile": lambda: with_inner_sgd(jm.reptile, batch_size=2),
    "reptile, kept state": lambda: with_inner_sgd(
        jm.reptile, inner_tx=optax.adam(0.01, b1=0.0), keep_inner_state=True
    ),
    "meta_sgd": lambda: with_own_rule(jm.meta_sgd, learning_rate=(0.01, 0.02)),
    "anil": lambda: with_inner_sgd(jm.anil),
    "boil": lambda: with_inner_sgd(jm.boil),
    "maml_plus_plus": lambda: with_own_rule(
        jm.maml_plus_plus,
        learning_rate=0.02,
        multi_step_until=10,
        first_order_until=5,
        is_per_step=lambda path: "bias" in path,
    ),
    "cavia": lambda: with_inner_sgd(jm.cavia, num_context=2),
    "imaml": lambda: with_inner_sgd(jm.imaml),
    "meta_curvature": lambda: with_own_rule(jm.meta_curvature, learning_rate=0.02),
    "meta_lstm": lambda: with_own_rule(jm.meta_lstm, hidden_size=3),
}
