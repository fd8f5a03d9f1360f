"""ResNet12 against NumPy, DropBlock against its statistics in closed form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm
from jaxmeta import _model
from jaxmeta.models import _resnet12
from tests.models.test_models import _numpy, _numpy_norm, _random_params

# These programs run once: compiling them is all the time they take.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SMALL = {"filters": (2, 3, 2, 3)}


# The network.


def _numpy_resnet12(params, x, stats=None):
    """Returns the embedding and each normalisation's (mean, variance), in order."""
    x, params, found = _numpy(x), _numpy(params), []

    def convolve(block, name, x):
        kernel = block[f"kernel{name}"]
        side = len(kernel) // 2
        padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, kernel.shape[:2], (1, 2)
        )
        x = np.einsum("nrschw,hwco->nrso", windows, kernel)
        if f"bias{name}" in block:
            return x + block[f"bias{name}"]
        norms = ["_shortcut", "_0", "_1", "_2"]
        norm = block[f"BatchNorm_{norms.index(name)}"]
        x, mine = _numpy_norm(x, norm, stats[len(found)] if stats else None)
        found.append(mine)
        return x

    leaky = lambda x: np.where(x > 0, x, x / 10)
    for n in range(4):
        block = params[f"ResidualBlock_{n}"]
        shortcut = convolve(block, "_shortcut", x)
        x = leaky(convolve(block, "_0", x))
        x = leaky(convolve(block, "_1", x))
        x = leaky(convolve(block, "_2", x) + shortcut)
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * rows, : 2 * columns]
        x = x.reshape(len(x), rows, 2, columns, 2, -1).max((2, 4))
    return x.mean((1, 2)), found


@pytest.mark.parametrize(("norm", "head"), [("batch", None), (None, 4)])
def test_resnet12_is_its_blocks(norm, head, key, x64):
    images = jax.random.uniform(key, (3, 34, 32, 2))  # The last map has two positions.
    model = jm.models.ResNet12(**SMALL, norm=norm, head=head)
    params = _random_params(model, images)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    expected, _ = _numpy_resnet12(params["params"], images)
    if head:
        layer = _numpy(params["params"]["head"])
        expected = expected @ layer["kernel"] + layer["bias"]
    got = jit(model.apply)(params, images)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_resnet12_predicts_by_the_support_sets_statistics(key, x64):
    images = jax.random.uniform(key, (7, 16, 16, 1))
    support, query = images[:4], images[4:]
    model = jm.models.ResNet12(**SMALL, head=None, statistics="support")
    params = _random_params(model, support)
    adapted = jit(model.with_support_statistics)(params, support)
    _, stats = _numpy_resnet12(params["params"], support)
    expected, _ = _numpy_resnet12(params["params"], query, stats)
    alone = jit(model.apply)(adapted, query[1:2])
    np.testing.assert_allclose(alone, expected[1:2], rtol=1e-9, atol=1e-12)
    transductive = jm.models.ResNet12(**SMALL, head=None)
    assert transductive.with_support_statistics(params, support) is params


@pytest.mark.parametrize(("channels", "head"), [(3, None), (3, 64), (1, 5)])
def test_resnet12_has_the_papers_size(channels, head, key):
    model = jm.models.ResNet12(head=head)
    images = jax.ShapeDtypeStruct((2, 84, 84, channels), jnp.float32)
    outputs, params = jax.eval_shape(model.init_with_output, key, images)
    assert outputs.shape == (2, head or 640)
    expected, before = 0, channels
    for width in (64, 160, 320, 640):
        expected += 9 * before * width + 2 * 9 * width**2  # 3x3
        expected += before * width  # 1x1
        expected += 4 * 2 * width  # normalisation
        before = width
    expected += 641 * head if head else 0
    assert sum(x.size for x in jax.tree.leaves(params)) == expected
    if (channels, head) == (3, None):
        assert expected == 12_424_320


def test_kernels_start_normal_with_variance_two_over_the_fan_out(key):
    model = jm.models.ResNet12((30, 30, 30, 30), head=None)
    params = jit(model.init)(key, jnp.ones((1, 16, 16, 3)))["params"]
    for block in _numpy(params).values():
        for name, fan_out in (("kernel_shortcut", 30), ("kernel_1", 9 * 30)):
            values = block[name] * np.sqrt(fan_out / 2)
            assert abs(values.mean()) < 4 / np.sqrt(values.size)
            assert abs(values.var() - 1) < 4 * np.sqrt(2 / values.size)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (16, 16, 1), r"takes images.*got shape \(16, 16, 1\)"),
        ({}, (1, 15, 28, 1), r"under 16x16, got shape \(1, 15, 28, 1\)"),
        ({"filters": (2, 2)}, (1, 16, 16, 1), r"`filters` must be four.*\(2, 2\)"),
        ({"filters": (2, 2, 0, 2)}, (1, 16, 16, 1), "`filters` must be an int >= 1"),
        ({"head": 0}, (1, 16, 16, 1), "`head` must be an int >= 1, got 0"),
        ({"norm": "layer"}, (1, 16, 16, 1), "`norm` must be one of 'batch'"),
        ({"drop_rate": 1.0}, (1, 16, 16, 1), r"`drop_rate` must be in \[0, 1\), got 1"),
        ({"block_size": 0}, (1, 16, 16, 1), "`block_size` must be an int >= 1, got 0"),
    ],
)
def test_resnet12_names_what_is_wrong(options, shape, message, key):
    model = jm.models.ResNet12(**(SMALL | options))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, key, jnp.ones(shape))


# Which passes drop.


def test_units_are_dropped_only_in_passes_on_which_gradients_are_taken(key):
    images = jax.random.uniform(key, (3, 16, 16, 1))
    model = jm.models.ResNet12(**SMALL, drop_rate=0.5)
    params = _random_params(model, images)
    plain, *others = (
        str(jax.make_jaxpr(functools.partial(model.apply, **options))(params, images))
        for options in ({}, {"key": key}, {"train": True}, {"key": key, "train": True})
    )
    assert others[:2] == [plain] * 2
    assert others[2] != plain
    apply = jit(lambda key: model.apply(params, images, key=key, train=True))
    dropped = apply(key)
    np.testing.assert_array_equal(apply(key), dropped)
    assert np.abs(apply(jax.random.key(1)) - dropped).max() > 0.01


def test_single_units_are_dropped_first_and_squares_later(key, monkeypatch):
    calls, keys = [], []

    def record(key, inputs, *, rate, size):
        keys.append(jax.random.key_data(key))
        calls.append((inputs.shape, rate, size))
        return inputs

    monkeypatch.setattr(_resnet12, "drop_block", record)
    model = jm.models.ResNet12(**SMALL, drop_rate=0.25, block_size=3)
    images = jnp.ones((2, 84, 84, 3))
    params = _random_params(model, images)
    assert not calls

    @jit
    def draw(key, params):
        model.apply(params, images, key=key, train=True)
        return keys

    assert len({tuple(k.tolist()) for k in _numpy(draw(key, params))}) == 4
    assert calls == [
        ((2, 42, 42, 2), 0.25, 1),
        ((2, 21, 21, 3), 0.25, 1),
        ((2, 10, 10, 2), 0.25, 3),
        ((2, 5, 5, 3), 0.25, 3),
    ]


def test_learners_drop_while_they_learn_and_predict_without(key):
    task = jax.eval_shape(jm.tasks.glyphs(ways=2, queries=1, size=16), key)

    def draws(drop_rate):
        """How often random bits are drawn to take a meta-gradient and to predict."""
        model = jm.models.ResNet12(**SMALL, head=2, drop_rate=drop_rate)
        options = {"inner_tx": optax.sgd(0.01), "inner_steps": 1, "first_order": True}
        learner = jm.maml(model, jm.losses.cross_entropy, **options)
        meta_params = jax.eval_shape(learner.init, key, task)
        jaxprs = [
            jax.make_jaxpr(learner.meta_grad)(key, meta_params, task),
            jax.make_jaxpr(learner.predict)(meta_params, task.query.inputs),
        ]
        return [str(jaxpr).count("random_bits") for jaxpr in jaxprs]

    learning, predicting = draws(0.5)
    assert learning >= 8  # Four in the inner pass, four on the query set.
    assert predicting == 0


def test_a_step_of_training_is_finite_and_follows_the_key(key):
    task = jit(jm.tasks.glyphs(ways=2, shots=3, queries=1, size=16))(key)
    net = _model.normalize(jm.models.ResNet12((3, 4, 4, 4), head=2, drop_rate=0.2))
    params = jit(net.init)(key, task.support.inputs)

    def loss(params, key):
        outputs = net.apply(params, task.support.inputs, key=key, train=True)
        return jm.losses.cross_entropy(outputs, task.support.targets)

    # With no optimisation at all, XLA computes the entries of a pooling window twice,
    # not quite alike, and the derivative of their maximum becomes NaN.
    level = {"xla_backend_optimization_level": 1}
    step = jax.jit(jax.value_and_grad(loss), compiler_options=level)
    value, grads = step(params, key)
    chex.assert_tree_all_finite((value, grads))
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads))
    assert step(params, jax.random.key(1))[0] != value


# DropBlock.

drop_block = jit(_resnet12.drop_block, static_argnames=("rate", "size"))


@pytest.mark.parametrize(
    ("shape", "rate", "size"),
    [((7, 5), 0.2, 3), ((6, 6), 0.4, 2), ((5, 5), 0.3, 5), ((3, 4), 0.25, 1)],
)
def test_the_share_of_kept_units_is_that_of_the_squares(shape, rate, size, key):
    """At every place: none of the squares that cover it may start."""
    maps = 40 * 250
    kept = np.asarray(
        drop_block(key, jnp.ones((40, *shape, 250)), rate=rate, size=size)
    )
    starts = [length - size + 1 for length in shape]
    share = rate / size**2 * np.prod(shape) / np.prod(starts)
    covers = np.zeros(shape)
    for i, j in np.ndindex(*starts):
        covers[i : i + size, j : j + size] += 1
    expected = (1 - share) ** covers
    error = np.sqrt(expected * (1 - expected) / maps)
    assert (np.abs((kept > 0).mean((0, 3)) - expected) < 4.5 * error).all()


def test_what_is_dropped_is_squares(key):
    kept = np.asarray(drop_block(key, jnp.ones((20, 8, 7, 30)), rate=0.3, size=3)) > 0
    windows = np.lib.stride_tricks.sliding_window_view(kept, (3, 3), (1, 2))
    squares = ~windows.any((-2, -1))  # [20, 6, 5, 30]
    covered = np.zeros_like(kept)
    for i, j in np.ndindex(3, 3):
        covered[:, i : i + 6, j : j + 5] |= squares
    np.testing.assert_array_equal(covered, ~kept)
    assert 0.6 < kept.mean() < 0.85
    # Every example and every channel has its own.
    maps = kept.transpose(0, 3, 1, 2).reshape(600, -1)
    assert len(np.unique(maps, axis=0)) > 300


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_remains_is_scaled_to_keep_the_mean(dtype, key):
    x = jax.random.uniform(key, (10, 9, 8, 20), minval=1, maxval=2).astype(dtype)
    out = drop_block(key, x, rate=0.3, size=2)
    assert out.dtype == x.dtype
    x, out = np.asarray(x, np.float64), np.asarray(out, np.float64)
    left = out != 0
    np.testing.assert_allclose(
        out[left],
        x[left] * left.size / left.sum(),
        rtol=1e-6 if dtype == "float32" else 1e-2,
    )
    ones = np.asarray(drop_block(key, jnp.ones(x.shape), rate=0.3, size=2))
    np.testing.assert_allclose(ones.mean(), 1, rtol=1e-5)


def test_a_map_smaller_than_the_square_is_dropped_whole(key):
    kept = np.asarray(drop_block(key, jnp.ones((50, 3, 2, 40)), rate=0.3, size=5)) > 0
    assert (kept == kept[:, :1, :1]).all()
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    rows = np.asarray(drop_block(key, jnp.ones((50, 2, 9, 4)), rate=0.3, size=3)) > 0
    assert (rows[:, 0] == rows[:, 1]).all()
    assert (rows != rows[:, :, :1]).any()


def test_nothing_or_everything_may_be_dropped(key):
    x = jax.random.normal(key, (2, 4, 4, 3))
    np.testing.assert_array_equal(drop_block(key, x, rate=0.0, size=2), x)
    for seed in range(5):
        out = drop_block(jax.random.key(seed), x[:1, :, :, :1], rate=0.9999, size=4)
        np.testing.assert_array_equal(out, 0)


def test_the_derivative_is_the_scaled_mask(key):
    x = jax.random.normal(key, (2, 5, 5, 3))
    options = {"rate": 0.3, "size": 2}
    total = lambda x: jnp.sum(_resnet12.drop_block(key, x, **options))
    out, grads = jit(jax.value_and_grad(total))(x)
    mask = np.asarray(drop_block(key, jnp.ones_like(x), **options))
    np.testing.assert_allclose(grads, mask, rtol=1e-6)
    np.testing.assert_allclose(out, np.sum(mask * np.asarray(x)), rtol=1e-4)


@pytest.mark.parametrize(
    ("rate", "size", "message"),
    [
        (-0.1, 1, r"`rate` must be in \[0, 1\), got -0.1"),
        (1.0, 1, r"`rate` must be in \[0, 1\), got 1.0"),
        (0.1, 0, "`size` must be an int >= 1, got 0"),
    ],
)
def test_drop_block_names_what_is_wrong(rate, size, message, key):
    with pytest.raises(ValueError, match=message):
        _resnet12.drop_block(key, jnp.ones((1, 2, 2, 1)), rate=rate, size=size)
