"""Problems to optimize: data, synthetic ones, and what is made of others."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

INPUTS = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1) * 10
LABELS = np.array([0, 1, 2, 2, 1, 0])


def _classification(**options):
    options = {"batch_size": 4} | options
    return jm.problems.classification(INPUTS, LABELS, jm.models.MLP([3]), **options)


def test_classification_is_the_mean_loss_of_a_batch(key):
    problem = _classification()
    params = problem.init(key, None)
    chosen = np.asarray(jax.random.randint(key, (4,), 0, 6))
    logits = jm.models.MLP([3]).apply(params, jnp.asarray(INPUTS[chosen] / 255))
    expected = jm.losses.cross_entropy(logits, jnp.asarray(LABELS[chosen]))
    np.testing.assert_allclose(problem.loss(params, None, key), expected, rtol=1e-6)


def test_classification_draws_all_examples(key):
    """The mean loss over many batches is that over the data."""
    problem = _classification(batch_size=50)
    params = problem.init(key, None)
    logits = jm.models.MLP([3]).apply(params, jnp.asarray(INPUTS / 255))
    expected = jm.losses.cross_entropy(logits, jnp.asarray(LABELS))
    keys = jax.random.split(key, 2000)
    draws = jax.vmap(problem.loss, (None, None, 0))(params, None, keys)
    assert abs(draws.mean() - expected) < 4 * draws.std() / np.sqrt(2000)


def test_classification_starts_as_it_is_told(key):
    own = _classification().init(key, None)
    assert jnp.abs(own["params"]["Dense_0"]["kernel"]).max() > 0.1
    normal = jax.vmap(_classification(init_scale=0.01).init, (0, None))
    params = normal(jax.random.split(key, 500), None)
    for leaf in jax.tree.leaves(params):
        np.testing.assert_allclose(leaf.std(), 0.01, rtol=0.1)


def test_data_of_a_problem_are_leaves_of_the_step(key):
    """Closed over, they would be constants of the program."""
    estimator = jm.estimators.truncated_bptt(
        jm.optimizers.lstm(3), _classification(), unroll=2, horizon=4, num_problems=2
    )
    init, step = jm.training.make_train_step(estimator, optax.adam(1e-3))
    assert any(x.shape == INPUTS.shape for x in jax.tree.leaves(step))
    state, info = jax.jit(lambda step, state: step(state))(step, init(key))
    assert jnp.isfinite(info.loss).all()
    program = jax.jit(lambda step, s: step(s)).lower(step, state).as_text()
    assert not re.search(r"constant .*tensor<6x2x2x1xui8>", program)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (INPUTS[:0], LABELS[:0], "the same, positive number"),
        (INPUTS, LABELS[:3], r"got shapes \(6, 2, 2, 1\) and \(3,\)"),
    ],
)
def test_data_that_do_not_fit_are_named(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        jm.problems.classification(inputs, labels, jm.models.MLP([3]))


def test_random_scaling_is_the_same_problem_in_other_units(key):
    plain = jm.problems.quadratics(dim=3)
    scaled = jm.problems.random_scaling(plain, reach=2.0)
    instance = scaled.sample(key)
    inner, scales = instance
    params = scaled.init(key, instance)
    np.testing.assert_allclose(params * scales, plain.init(key, inner), rtol=1e-6)
    np.testing.assert_allclose(
        scaled.loss(params, instance, key),
        plain.loss(params * scales, inner, key),
        rtol=1e-6,
    )
    _, many = jax.vmap(scaled.sample)(jax.random.split(key, 5000))
    logs = np.log(many)
    assert -2 <= logs.min() < -1.9
    assert 1.9 < logs.max() <= 2
    np.testing.assert_allclose(logs.std(), 4 / np.sqrt(12), rtol=0.05)
    assert len(np.unique(many[0])) == 3  # Each coordinate has its own.


@pytest.mark.parametrize(("per", "count"), [("tensor", 2), ("problem", 1)])
def test_random_scaling_of_tensors_or_of_the_whole(per, count, key):
    """One factor for each, on a share of the runs."""
    plain = jm.problems.softmax_regression(dim=3, classes=2)
    scaled = jm.problems.random_scaling(plain, 2.0, per=per, share=0.25)
    _, scales = jax.vmap(scaled.sample)(jax.random.split(key, 400))
    both = np.stack([scales["bias"], scales["kernel"]], 1)
    assert both.shape == (400, 2)
    is_scaled = (both != 1).any(1)
    assert 0.15 < is_scaled.mean() < 0.35
    assert all(len(np.unique(row)) == count for row in both[is_scaled])
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\], got 2"):
        jm.problems.random_scaling(plain, share=2)
    with pytest.raises(ValueError, match="`per` must be one of"):
        jm.problems.random_scaling(plain, per="leaf")


def test_random_scaling_of_the_loss(key):
    plain = _classification()
    scaled = jm.problems.random_scaling(plain, 3.0, per="loss", share=0.5)
    _, factors = jax.vmap(scaled.sample)(jax.random.split(key, 400))
    assert 0.4 < np.mean(factors != 1) < 0.6
    assert np.log(factors).min() < -2.5
    assert np.log(factors).max() > 2.5
    inner, factor = plain.sample(key), jnp.array(7.0)
    params = scaled.init(key, (inner, factor))
    chex.assert_trees_all_equal(params, plain.init(key, inner))
    for name, rest in (("loss", (key,)), ("full_loss", ())):
        found, expected = (
            getattr(problem, name)(params, instance, *rest)
            for problem, instance in ((scaled, (inner, factor)), (plain, inner))
        )
        np.testing.assert_allclose(found, 7 * expected, rtol=1e-6)


def test_runs_may_draw_their_batch_size(key):
    """The noise of a batch's loss is that of so many examples."""
    draw = lambda key: (jax.random.normal(key, (500, 1)), jnp.zeros((500, 1)))
    model = jm.Model(lambda key, x: jnp.ones(()), lambda scale, x: scale * x)
    loss = lambda outputs, targets: jnp.mean(outputs)
    problem = jm.problems.supervised(draw, model, loss, batch_size=(2, 16))
    keys = jax.random.split(key, 3000)
    inputs, targets, sizes = jax.vmap(problem.sample)(keys)
    assert sorted(set(sizes.tolist())) == [*range(2, 17)]
    # Uniform in the logarithm: as many of 2 and 3 as of 8 to 15.
    few, many = (np.mean((a <= sizes) & (sizes < b)) for a, b in ((2, 4), (8, 16)))
    np.testing.assert_allclose(few, many, rtol=0.15)
    for size in (2, 4, 16):
        instance = inputs[0], targets[0], jnp.array(size)
        params = problem.init(key, instance)
        losses = jax.vmap(problem.loss, (None, None, 0))(params, instance, keys)
        np.testing.assert_allclose(losses.std() * size**0.5, 1, rtol=0.1)
    with pytest.raises(ValueError, match=r"`batch_size` must be \(least, most\)"):
        jm.problems.supervised(draw, model, loss, batch_size=(9, 3))


def test_full_losses_are_the_mean_over_batches(key):
    """Of data sets that runs draw, of given ones, and of scaled ones."""

    def draw(key):
        x = jax.random.normal(key, (40, 3))
        return x, jnp.sum(x, 1, keepdims=True)

    model, loss = jm.models.MLP([1]), jm.losses.squared_error
    drawn = jm.problems.supervised(draw, model, loss, batch_size=20)
    for problem in (drawn, jm.problems.random_scaling(drawn), _classification()):
        instance = problem.sample(key)
        params = problem.init(key, instance)
        keys = jax.random.split(key, 2000)
        draws = jax.vmap(problem.loss, (None, None, 0))(params, instance, keys)
        expected = problem.full_loss(params, instance)
        assert abs(draws.mean() - expected) < 4 * draws.std() / np.sqrt(2000)


def test_starts_may_spread(key):
    draw = lambda key: (jnp.ones((4, 3)), jnp.ones((4, 1)))
    model = jm.models.MLP([1])
    loss = jm.losses.squared_error
    problem = jm.problems.supervised(draw, model, loss, start_spread=0.5)
    instance = problem.sample(key)
    keys = jax.random.split(key, 2000)
    sizes = jax.vmap(lambda key: optax.tree.norm(problem.init(key, instance)))(keys)
    plain = jm.problems.supervised(draw, model, loss)
    own = jax.vmap(lambda key: optax.tree.norm(plain.init(key, instance)))(keys)
    found = np.log(sizes).var() - np.log(own).var()
    np.testing.assert_allclose(found, 0.25, rtol=0.2)
    with pytest.raises(ValueError, match="`start_spread` must not be negative"):
        jm.problems.supervised(draw, model, loss, start_spread=-1)


@pytest.mark.slow
def test_small_networks_learn(key):
    """Adam halves the excess of nearly every family's loss: all can be learned."""
    small, larger = jm.problems.small_networks(), jm.problems.larger_networks()
    families = small | larger
    assert len(families) == len(small) + len(larger) == 22
    tx = optax.adam(0.02)

    def ratio(name, problem):
        instance = problem.sample(key)
        params = problem.init(key, instance)
        size = sum(x.size for x in jax.tree.leaves(params))
        at_least, at_most = (100, 3100) if name in small else (4000, 10_000)
        assert at_least <= size <= at_most

        def body(k, carry):
            params, state = carry
            grads = jax.grad(problem.loss)(params, instance, jax.random.fold_in(key, k))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        last, _ = jax.lax.fori_loop(0, 150, body, (params, tx.init(params)))
        full = lambda params: problem.full_loss(params, instance)
        return full(last) / full(params)

    found = {name: float(ratio(name, problem)) for name, problem in families.items()}
    assert all(np.isfinite(value) and value < 1 for value in found.values()), found
    assert np.median([*found.values()]) < 0.6, found


def test_random_scaling_of_data_keeps_them_leaves(key):
    problem = jm.problems.random_scaling(_classification())
    instance = problem.sample(key)
    assert jnp.isfinite(problem.loss(problem.init(key, instance), instance, key))
    assert any(x.shape == INPUTS.shape for x in jax.tree.leaves(problem.loss))


def test_classes_are_taken_and_renumbered():
    data = jm.tasks.LabelledImages(INPUTS, LABELS)
    taken = data.take_classes((2, 0))
    assert taken.labels.tolist() == [1, 0, 0, 1]
    np.testing.assert_array_equal(taken.images, INPUTS[[0, 2, 3, 5]])
    with pytest.raises(ValueError, match=r"`classes` must be some of \[0, 1, 2\]"):
        data.take_classes((7,))


def test_softmax_regression_has_the_bayes_loss(key):
    """Equal clouds: the best linear logits are c x - |c|^2 / 2."""
    problem = jm.problems.softmax_regression(dim=3, classes=4, batch_size=50_000)
    centres = problem.sample(key)
    best = {"kernel": centres.T, "bias": -0.5 * jnp.sum(centres**2, 1)}
    least = problem.loss(best, centres, key)
    assert least < problem.loss(problem.init(key, centres), centres, key) - 0.3
    slope = jax.grad(problem.loss)(best, centres, key)
    assert optax.tree.norm(slope) < 0.02
    np.testing.assert_allclose(
        problem.loss(jax.tree.map(jnp.zeros_like, best), centres, key), np.log(4), 1e-4
    )


def test_language_needs_two_tokens(key):
    """Knowing what follows a pair gives the loss of the true table."""
    vocabulary = 5

    def table(params, tokens):
        before = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        return params[before, tokens]

    shape = (vocabulary,) * 3
    model = jm.Model(lambda key, tokens: jnp.zeros(shape), table)
    problem = jm.problems.language_model(
        model, vocabulary=vocabulary, length=200, batch_size=100
    )
    follows = problem.sample(key)
    chances = jax.nn.softmax(follows, -1)
    got = problem.loss(follows, follows, key)
    # Entropy over the pairs' stationary distribution.
    pairs = jnp.full(vocabulary**2, 1 / vocabulary**2)
    to_pairs = jnp.einsum("abc,bd->abdc", chances, jnp.eye(vocabulary))
    to_pairs = to_pairs.reshape(vocabulary**2, vocabulary**2)
    for _ in range(200):
        pairs = pairs @ to_pairs
    entropy = -jnp.sum(chances * jnp.log(chances), -1).ravel() @ pairs
    np.testing.assert_allclose(got, entropy, rtol=0.05)
    assert problem.loss(jnp.zeros(shape), follows, key) > got + 0.3


def test_transformer_sees_no_future(key):
    model = jm.models.Transformer(vocabulary=7, num_layers=2)
    tokens = jax.random.randint(key, (2, 6), 0, 7)
    params = model.init(key, tokens)
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % 7)
    before, after = model.apply(params, tokens), model.apply(params, changed)
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert (jnp.abs(before[:, 4:] - after[:, 4:]).max((0, 2)) > 1e-4).all()
    with pytest.raises(ValueError, match=r"L <= 32.*Increase `max_length`"):
        model.init(key, jnp.zeros((1, 33), int))


def test_conv_net_learns_to_tell_colours_apart(key):
    colours = jnp.eye(3)[jnp.arange(30) % 3]
    images = jnp.broadcast_to(colours[:, None, None], (30, 8, 8, 3))
    images += 0.3 * jax.random.normal(key, images.shape)
    model = jm.models.ConvNet(3, filters=(4, 4), hidden=(8,), kernel_size=3)
    problem = jm.problems.classification(
        images, np.arange(30) % 3, model, batch_size=20
    )
    family = jm.optimizers.learned_rate(optax.adam)
    curves = jm.training.evaluate_optimizer(
        family, 0.02, problem, num_steps=40, num_problems=2, key=key
    )
    assert curves.final.mean < 0.3 < curves.at_step.mean[0]


@pytest.mark.parametrize("norm", ["batch", None])
def test_conv_net_agrees_with_flax(norm, key):
    """One convolution by flax's own layers."""
    import flax.linen as nn

    model = jm.models.ConvNet(3, filters=(4,), hidden=(), norm=norm)
    images = jax.random.normal(key, (5, 8, 8, 3))
    params = model.init(key, images)
    own = params["params"]
    conv = nn.Conv(4, (5, 5), use_bias=False)
    x = conv.apply({"params": {"kernel": own["kernel_0"]}}, images)
    if norm:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = (x - mean.reshape(1, 1, 1, -1)) / jnp.sqrt(variance + 1e-5).reshape(
            1, 1, 1, -1
        )
    x = nn.max_pool(nn.relu(x), (2, 2), (2, 2)).reshape(5, -1)
    expected = x @ own["Dense_0"]["kernel"] + own["Dense_0"]["bias"][None]
    np.testing.assert_allclose(model.apply(params, images), expected, atol=1e-4)


def test_raw_pixels_as_floats_are_warned_of():
    model, labels = jm.models.MLP([2]), np.zeros(3, int)
    with pytest.warns(UserWarning, match=r"`inputs` reach 255\. .*uint8"):
        jm.problems.classification(np.full((3, 4), 255.0), labels, model)
    jm.problems.classification(np.full((3, 4), 255, np.uint8), labels, model)


@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 2, 1], [-1, 0, 1]])
def test_labels_without_an_output_are_named(labels):
    inputs, model = jnp.ones((3, 4)), jm.models.MLP([2])
    with pytest.raises(ValueError, match=r"`labels` must be 0 \.\.\. 1 .* 2 outputs"):
        jm.problems.classification(inputs, jnp.array(labels), model)
    one_hot = jax.nn.one_hot(jnp.array(labels), 2)
    jm.problems.classification(inputs, one_hot, model)
