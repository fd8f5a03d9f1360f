"""Equinox modules through `from_equinox`, against programs written in Equinox alone."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from tests._learners import regression_task

LOSS = jm.losses.squared_error


class Net(eqx.Module):
    """Has what modules have: functions, flags, integers, a norm, dropout, a name."""

    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear
    order: jax.Array
    activation: object = eqx.field(static=True)

    def __init__(self, rate=0.0, *, key):
        first_key, head_key = jax.random.split(key)
        self.first = eqx.nn.Linear(1, 4, key=first_key)
        self.norm = eqx.nn.LayerNorm(4)
        self.dropout = eqx.nn.Dropout(rate)
        self.head = eqx.nn.Linear(4, 1, key=head_key)
        self.order = jnp.array([2, 0, 3, 1])
        self.activation = lambda x: jnp.tanh(x)  # Another object in each module.

    def __call__(self, x, *, key=None):
        x = self.norm(self.first(x))[self.order]
        return self.head(self.dropout(self.activation(x), key=key))


def _maml(model):
    return jm.maml(model, LOSS, inner_tx=optax.sgd(0.05), inner_steps=2)


def test_the_meta_gradient_is_that_of_the_program_in_equinox_alone(key, x64):
    net, task = Net(key=key), regression_task(key)
    is_array = eqx.is_inexact_array

    def loss(net, examples):
        return jnp.mean((jax.vmap(net)(examples.inputs) - examples.targets) ** 2)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def by_hand(net):
        for _ in range(2):
            grads = eqx.filter_grad(loss)(net, task.support)
            net = eqx.apply_updates(net, jax.tree.map(lambda g: -0.05 * g, grads))
        return loss(net, task.query)

    value, expected = by_hand(net)
    for module in (net, Net):
        learner = _maml(jm.models.from_equinox(module))
        meta_params = learner.init(key, task)
        chex.assert_trees_all_equal_dtypes(
            jax.tree.leaves(meta_params), jax.tree.leaves(eqx.filter(net, is_array))
        )
        params = jax.tree.unflatten(
            jax.tree.structure(meta_params), jax.tree.leaves(eqx.filter(net, is_array))
        )
        grads, info = jax.jit(learner.meta_grad)(key, params, task)
        np.testing.assert_allclose(info.loss, value, rtol=1e-10)
        for got, want in zip(
            jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12)


def test_task_parameters_and_the_module_make_a_module_again(key):
    net, task = Net(0.5, key=key), regression_task(key)
    learner = _maml(jm.models.from_equinox(net))
    params = learner.init(key, task)
    chex.assert_trees_all_equal(params, eqx.filter(net, eqx.is_inexact_array))
    task_params, _ = jax.jit(learner.adapt)(key, params, task.support)
    adapted = eqx.nn.inference_mode(eqx.combine(task_params, net))
    expected = jax.vmap(adapted)(task.query.inputs)
    got = learner.predict(task_params, task.query.inputs)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    jax.tree.map(lambda x: x.delete(), params)  # As donation does.
    assert np.isfinite(net.first.weight).all()


def test_a_constructor_draws_from_the_key_and_fits_the_first_structure(key):
    model = jm.models.from_equinox(lambda key: Net(key=key))
    keys = jax.random.split(key)
    a, b = (model.init(k, None) for k in keys)
    chex.assert_trees_all_equal_structs(a, b)  # Though their lambdas differ.
    for params, k in zip((a, b), keys, strict=True):
        np.testing.assert_array_equal(params.head.weight, Net(key=k).head.weight)


def test_parts_are_named_by_attributes(key):
    task = regression_task(key)
    learner = jm.anil(
        jm.models.from_equinox(Net), LOSS, inner_tx=optax.sgd(0.1), inner_steps=1
    )
    params = learner.init(key, task)
    task_params, _ = learner.adapt(key, params, task.support)
    chex.assert_trees_all_equal(task_params.first, params.first)
    assert (task_params.head.weight != params.head.weight).all()


def test_parameters_are_saved_and_loaded(key, tmp_path):
    params = jm.models.from_equinox(Net).init(key, None)
    jm.training.save(tmp_path / "params", params)
    like = jax.tree.map(jnp.zeros_like, params)
    loaded = jm.training.load(tmp_path / "params", like=like)
    chex.assert_trees_all_equal(loaded, params)


@pytest.mark.parametrize("inference", [False, True])
def test_dropout_has_a_key_for_each_example_and_is_off_in_predictions(inference, key):
    dropout = eqx.nn.Dropout(0.75, inference=inference)
    model, x = jm.models.from_equinox(dropout), jnp.ones((100, 100))
    params = model.init(key, x)
    assert not jax.tree.leaves(params)
    chex.assert_trees_all_equal(model.apply(params, x, key=key), x)
    keys = jax.random.split(key)
    first, again, other = (
        model.apply(params, x, key=k, train=True) for k in (*keys[:1], *keys)
    )
    chex.assert_trees_all_equal(first, again)
    kept, others = np.asarray(first) > 0, np.asarray(other) > 0
    np.testing.assert_array_equal(first[kept], 4)
    # Shares are binomial over 10^4 entries, and independent for two keys and two rows.
    for share, mask in [
        (1 / 4, kept),
        (1 / 16, kept & others),
        (1 / 16, kept & np.roll(kept, 1, 0)),
    ]:
        assert abs(mask.mean() - share) < 4 * np.sqrt(share * (1 - share) / 1e4)


class Told(eqx.Module):
    """Doubles its input where it is told that gradients are taken."""

    def of(self, is_train, x):
        return 2 * x if is_train else x


class ToldTrain(Told):
    def __call__(self, x, train):
        return self.of(train, x)


class ToldInference(Told):
    def __call__(self, x, inference, deterministic=None):
        assert deterministic is None
        return self.of(not inference, x)


class ToldDeterministic(Told):
    def __call__(self, x, *, deterministic):
        return self.of(not deterministic, x)


@pytest.mark.parametrize("module", [ToldTrain, ToldInference, ToldDeterministic])
def test_modules_are_told_the_mode_by_the_name_they_use(module, key):
    model, x = jm.models.from_equinox(module()), jnp.ones((2, 1))
    for train in (True, False):
        got = model.apply(model.init(key, x), x, key=key, train=train)
        np.testing.assert_array_equal(got, (1 + train) * x)


def test_inputs_may_be_trees_and_integers(key):
    class Embedded(eqx.Module):
        table: eqx.nn.Embedding

        def __call__(self, x):
            return self.table(x["id"]) * x["scale"]

    net = Embedded(eqx.nn.Embedding(5, 3, key=key))
    model = jm.models.from_equinox(net)
    inputs = {"id": jnp.array([4, 0]), "scale": jnp.array([1.0, 2.0])}
    got = model.apply(model.init(key, inputs), inputs)
    expected = net.table.weight[jnp.array([4, 0])] * jnp.array([[1.0], [2.0]])
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="on one example at a time"):
        model.apply(net, {"id": inputs["id"], "scale": jnp.ones(3)})


class Plain(eqx.Module):
    weight: jax.Array


REFUSED = {
    "state": (
        lambda: eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch"),
        r"keeps state.*LayerNorm",
    ),
    "state of a module": (
        lambda: eqx.nn.BatchNorm(3, "batch", mode="batch"),
        "keeps state",
    ),
    "no call": (lambda: Plain(jnp.ones(1)), "callable eqx.Module, got Plain"),
    "another": (lambda: lambda key: jnp.tanh, "must construct a callable eqx.Module"),
    "no function": (lambda: 3, "or a constructor `key -> eqx.Module`, got 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_module_is_named(name):
    make, message = REFUSED[name]
    made = make()
    module = (lambda key: made) if isinstance(made, tuple) else made
    with pytest.raises(ValueError, match=message):
        jm.models.from_equinox(module)


def test_modules_without_the_adapter_are_sent_to_it(key):
    task = regression_task(key)
    make = functools.partial(eqx.nn.MLP, 1, 1, 4, 1)
    raw = jm.Model(lambda key, x: make(key=key), lambda net, x: jax.vmap(net)(x))
    message = r"'\.activation': 'custom_jvp'.*models\.from_equinox"
    with pytest.raises(ValueError, match=message):
        _maml(raw).init(key, task)
    for function in (_maml(raw).meta_grad, _maml(raw).evaluate):
        with pytest.raises(ValueError, match=message):
            function(key, make(key=key), task)
    for model in (make(key=key), eqx.nn.MLP):
        with pytest.raises(ValueError, match="an Equinox module with `from_equinox"):
            _maml(model)
