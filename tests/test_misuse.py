"""What users get wrong is named, and what looks harmless is no trap."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._metric_learners import METRIC_LEARNERS, classification_task

SGD = {"inner_tx": optax.sgd(0.1), "inner_steps": 1}
CROSS_ENTROPY = jm.losses.cross_entropy


class Normed(nn.Module):
    """A network as users write them."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


HEADS = {
    "prototypical": jm.prototypical,
    "siamese": jm.siamese,
    "relation": functools.partial(
        jm.relation, relation_model=jm.models.MLP([4, 1], norm=None)
    ),
    "ridge": jm.ridge,
    "svm": jm.svm,
    "subspace": jm.subspace,
    "feat": jm.feat,
    "matching": jm.matching,
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_take_networks_normalised_by_the_support(name, key):
    model = jm.models.from_linen(Normed(), statistics="support")
    learner, task = HEADS[name](model), classification_task(key)
    params = learner.init(key, task)
    found = jax.jit(learner.evaluate)(key, params, task)
    assert np.isfinite(found.loss).all()


def _image_task(key, dtype):
    images = jax.random.randint(key, (10, 8, 8, 1), 0, 256).astype(dtype)
    examples = jm.Examples(images, jnp.tile(jnp.eye(5), (2, 1)))
    return jm.Task(examples, examples)


def test_integer_images_are_taken_as_they_are(key):
    ints, floats = (_image_task(key, dtype) for dtype in (jnp.uint8, jnp.float32))
    cavia = jm.cavia(jm.models.MLP([8, 5]), CROSS_ENTROPY, num_context=3, **SGD)
    maml = jm.maml(jm.models.Conv4(4, strided=True), CROSS_ENTROPY, **SGD)
    for learner in (cavia, maml):
        params = learner.init(key, floats)
        adapt = jax.jit(learner.adapt)
        found, expected = (
            adapt(key, params, task.support)[0] for task in (ints, floats)
        )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5), found, expected
        )
        assert optax.tree.norm(getattr(found, "context", 1.0)) > 0


def test_state_kept_by_reptile_stays_adams(key):
    learner = jm.reptile(
        jm.models.MLP([8, 5]),
        CROSS_ENTROPY,
        inner_tx=optax.adam(1e-2),
        inner_steps=5,
        keep_inner_state=True,
    )
    outer_tx = jm.learners.reptile_outer_tx(optax.adam(1e-2))
    sample_task = functools.partial(_image_task, dtype=jnp.float32)
    estimator = jm.estimators.over_tasks(learner, sample_task, num_tasks=2)
    init, step = jm.training.make_train_step(estimator, outer_tx)
    state = init(key)
    for _ in range(6):
        state, info = jax.jit(step)(state)
    assert np.isfinite(info.loss).all()
    state = state.meta_params.inner_state[0]
    np.testing.assert_allclose(state.count, 30, rtol=1e-6)
    assert all((x >= 0).all() for x in jax.tree.leaves(state.nu))


@pytest.mark.parametrize("inner_steps", [1, 4])
def test_maml_plus_plus_adapts_by_other_numbers_of_steps(inner_steps, key):
    make = functools.partial(
        jm.maml_plus_plus, jm.models.MLP([8, 3], norm="batch"), CROSS_ENTROPY
    )
    task = classification_task(key)
    params = make(inner_steps=2).init(key, task)
    found, info = make(inner_steps=inner_steps).adapt(key, params, task.support)
    expected = make(inner_steps=2).evaluate(key, params, task, inner_steps=inner_steps)
    assert info.losses.shape == (inner_steps,)
    outputs = make(inner_steps=2).predict(found, task.query.inputs)
    loss = CROSS_ENTROPY(outputs, task.query.targets)
    np.testing.assert_allclose(loss, expected.loss[-1], rtol=1e-5)


@pytest.mark.parametrize("name", ["norm", "bn_1", "LayerNorm_0", "my_norm"])
def test_names_of_normalisation_layers(name):
    from jaxmeta.learners._maml_plus_plus import is_norm

    assert is_norm(f"params/{name}/scale")
    assert not is_norm("params/Dense_0/kernel")
    assert not is_norm(f"params/{name}/Dense_0/kernel")  # A block that has others too.


def test_examples_given_twice_leave_ridge_finite(key):
    x = 1e3 * jax.random.normal(key, (20, 64))
    x = jnp.concatenate([x, x[:5]])
    examples = jm.Examples(x, jax.nn.one_hot(jnp.arange(25) % 5, 5))
    identity = jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x)
    learner = jm.ridge(identity, regularization=1e-4)
    params = learner.init(key, task := jm.Task(examples, examples))
    grads, info = jax.jit(learner.meta_grad)(key, params, task)
    assert np.isfinite(info.loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert info.metrics["accuracy"] == 1


@pytest.mark.parametrize("name", ["prototypical", "subspace", "proto_maml"])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_classes_without_support_are_never_predicted(name, scale, key):
    x = scale * jax.random.normal(key, (6, 4))
    targets = jax.nn.one_hot(jnp.arange(6) % 3, 4)  # None of the fourth class.
    identity = jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x - 9 * scale)
    learner = {
        "prototypical": lambda: jm.prototypical(identity),
        "subspace": lambda: jm.subspace(identity),
        "proto_maml": lambda: jm.proto_maml(
            identity, inner_tx=optax.sgd(0.0), inner_steps=1
        ),
    }[name]()
    support = jm.Examples(x, targets)
    params = learner.init(key, jm.Task(support, support))
    task_params, _ = learner.adapt(key, params, support)
    outputs = learner.predict(task_params, jax.random.normal(key, (50, 4)) * scale)
    assert jnp.argmax(outputs, -1).max() < 3
    assert np.isfinite(outputs).all()


def _learner(**options):
    return jm.prototypical(jm.models.MLP([4]), **options)


def _with_targets(change):
    def call(key):
        task = classification_task(key)
        support = task.support._replace(targets=change(task.support.targets))
        learner = _learner()
        learner.meta_grad(key, learner.init(key, task), task._replace(support=support))

    return call


def _swapped(learner):
    def call(key):
        task = classification_task(key)
        params = jm.models.MLP([3]).init(key, task.support.inputs)
        learner().adapt(key, params, task.support)

    return call


def _zero_shot(widths, function="meta_grad"):
    def call(key):
        data = jm.tasks.attribute_world(key)
        task = jm.tasks.zero_shot(data, ways=3, queries=2)(key)
        nets = [jm.models.MLP([width]) for width in widths]
        learner = jm.prototypical(*nets[:1], support_model=[*nets, None][1])
        getattr(learner, function)(key, learner.init(key, task), task)

    return call


def _init(learner):
    return lambda key: learner().init(key, classification_task(key))


CALLS = {
    "one column of labels": (
        _with_targets(lambda t: jnp.argmax(t, -1)[:, None]),
        r"one-hot.*int32 of shape",
    ),
    "batched targets": (_with_targets(lambda t: t[None]), "jax.vmap"),
    "one column for a loss": (
        lambda key: CROSS_ENTROPY(jnp.zeros((4, 3)), jnp.zeros((4, 1), int)),
        "one column",
    ),
    "names of classes": (
        lambda key: jm.maml(jm.models.MLP([3]), CROSS_ENTROPY, **SGD).adapt(
            key,
            {"w": jnp.ones(())},
            jm.Examples(np.ones((2, 3)), np.array(["cat", "dog"])),
        ),
        "must hold numbers.*targets",
    ),
    "widths of zero-shot": (_zero_shot([8, 1]), "`support_model` must return"),
    "widths when judged": (
        _zero_shot([8, 1], "evaluate"),
        "`support_model` must return",
    ),
    "no support model": (_zero_shot([8]), "pass a `support_model`"),
    "a class as model": (
        lambda key: jm.maml(jm.models.MLP, CROSS_ENTROPY, **SGD),
        r"the class MLP: `MLP\(...\)`",
    ),
    "a mode that nobody sets": (
        lambda key: jm.prototypical(Normed()),
        r"takes \['train'\].*from_linen",
    ),
    "no loss": (
        lambda key: jm.maml(jm.models.MLP([3]), None, **SGD),
        "`loss` must be a function",
    ),
    "no number": (
        lambda key: jm.ridge(jm.models.MLP([3]), regularization="1"),
        "`regularization` must be positive",
    ),
    "a range upside down": (
        lambda key: jm.meta_sgd(
            jm.models.MLP([3]), CROSS_ENTROPY, learning_rate=(0.1, 0.005)
        ),
        r"`learning_rate` must be \(low, high\)",
    ),
    "one number for a range": (
        lambda key: jm.tasks.sinusoid(amplitude=2.0),
        r"`amplitude` must be \(low, high\)",
    ),
    "no predicate": (
        lambda key: jm.anil(
            jm.models.MLP([3]), CROSS_ENTROPY, is_adapted="head", **SGD
        ),
        "`is_adapted` must be a function",
    ),
    "nothing adapted": (
        _init(
            lambda: jm.anil(
                jm.models.MLP([4, 3]),
                CROSS_ENTROPY,
                is_adapted=lambda path: "no" in path,
                **SGD,
            )
        ),
        'e.g. `lambda path: "params/Dense_1" in path`',
    ),
    "everything adapted": (
        _init(lambda: jm.boil(jm.models.MLP([4, 3]), CROSS_ENTROPY, **SGD)),
        "selects all parameters",
    ),
    "images alone": (
        _init(
            lambda: jm.cavia(
                jm.models.Conv4(4),
                CROSS_ENTROPY,
                num_context=2,
                context="model",
                **SGD,
            )
        ),
        "FilmConv4",
    ),
    "images without a context": (
        _init(lambda: jm.maml(jm.models.FilmConv4(4), CROSS_ENTROPY, **SGD)),
        'context="model"',
    ),
    "one example": (
        lambda key: jm.models.MLP([4, 3], norm="batch").apply(
            jm.models.MLP([4, 3], norm="batch").init(key, jnp.ones((1, 2))),
            jnp.ones((1, 2)),
        ),
        'statistics="support"',
    ),
    "another learner's": (
        _swapped(METRIC_LEARNERS["ridge"]),
        "`meta_params` must be the `MetricParams`",
    ),
    "meta-parameters for predictions": (
        lambda key: _learner().predict({"params": {}}, jnp.ones((2, 3))),
        "`task_params` must be the `MetricTaskParams` that this learner's `adapt`",
    ),
    "a slice of classes": (
        lambda key: jm.tasks.few_shot(
            jm.tasks.image_classes(np.zeros((4, 5, 8, 8), np.uint8))[:3],
            ways=2,
            shots=1,
            queries=1,
        ),
        "take_classes",
    ),
    "a negative array": (
        lambda key: jm.prototypical(jm.models.MLP([3]), temperature=np.array(-1.0)),
        "`temperature` must be positive and finite",
    ),
    "no damping": (
        lambda key: jm.imaml(
            jm.models.MLP([3]),
            CROSS_ENTROPY,
            inner_tx=optax.sgd(0.1),
            inner_steps=1,
            damping=None,
        ),
        "`damping` must be at least 0 and finite, got None",
    ),
    "classes twice": (
        lambda key: jm.tasks.image_classes(
            np.zeros((4, 5, 8, 8), np.uint8)
        ).take_classes([1, 1]),
        "each once",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_error_names_what_is_wrong(name, key):
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call(key)
