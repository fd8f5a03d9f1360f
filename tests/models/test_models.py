"""Models, the convolution's lowering, normalisation and adapters, each by an oracle."""

import functools

import chex
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import jaxmeta as jm
from jaxmeta.models import _conv, _norm
from tests._learners import regression_task

# These programs run once: compiling them is all the time they take.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _normal(like, seed=0):
    """Normal noise for every leaf: no zero bias, no scale of one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), like)


def _random_params(model, inputs):
    return _normal(jax.eval_shape(model.init, jax.random.key(0), inputs))


def _numpy(tree):
    return jax.tree.map(np.asarray, tree)


# The convolution's lowering.

STRIDES = [(1, 1), (2, 2), (2, 1)]
PADDINGS = {"same": "SAME", "valid": "VALID", "explicit": ((1, 2), (0, 1))}
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2}


def _lax_conv(inputs, kernel, *, strides, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=numbers
    )


@functools.cache
def _up_to_second_order(conv, strides, padding):
    """Outputs, gradients and `jvp` of the gradients of a nonlinear function."""

    def loss(inputs, kernel):
        outputs = conv(inputs, kernel, strides=strides, padding=padding)
        return jnp.sum(jnp.tanh(outputs)), outputs

    def run(primals, tangents):
        grads = jax.grad(loss, (0, 1), has_aux=True)
        (gradients, outputs), (products, _) = jax.jvp(grads, primals, tangents)
        return {"outputs": outputs, "gradients": gradients, "products": products}

    return run


@functools.cache
def _reference(strides, padding):
    return jit(_up_to_second_order(_lax_conv, strides, padding))


def _conv_arguments(dtype, *tasks):
    """An input and a kernel, neither square, and a tangent for each."""
    shapes = [(2, 6, 5, 2), (3, 2, 2, 3)]
    pair = tuple(jax.ShapeDtypeStruct((*tasks, *s), dtype) for s in shapes)
    return _normal((pair, pair))


def _assert_same(got, expected, tolerance):
    """Each leaf within `tolerance` of the largest entry of what is expected."""
    chex.assert_trees_all_equal_shapes(got, expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_im2col_is_the_convolution_to_second_order(strides, padding, dtype, x64):
    padding = PADDINGS[padding]
    arguments = _conv_arguments(dtype)
    got = jit(_up_to_second_order(_conv.im2col_conv, strides, padding))(*arguments)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    exact = jax.tree.map(lambda x: x.astype(jnp.float64), arguments)
    expected = _reference(strides, padding)(*exact)
    _assert_same(got, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=str)
def test_each_task_may_have_its_own_kernel(strides, x64):
    """`conv` under `vmap` over kernels, with inputs shared and not, to 2nd order."""
    arguments = _conv_arguments(jnp.float64, 3)
    run = _up_to_second_order(_conv.conv, strides, "SAME")
    got = jit(jax.vmap(run))(*arguments)
    (inputs, kernels), _ = arguments
    apply = functools.partial(_conv.conv, strides=strides, padding="SAME")
    shared = jit(jax.vmap(apply, (None, 0)))(inputs[0], kernels)
    for t in range(3):
        mine = jax.tree.map(lambda x: x[t], arguments)
        expected = _reference(strides, "SAME")(*mine)
        _assert_same(jax.tree.map(lambda x: x[t], got), expected, 1e-12)
        alone = _lax_conv(inputs[0], kernels[t], strides=strides, padding="SAME")
        _assert_same(shared[t], alone, 1e-12)


@pytest.mark.parametrize(
    ("platform", "convolves"), [("cpu", False), ("tpu", True), ("cuda", True)]
)
def test_the_platform_chooses_the_lowering(platform, convolves):
    """Of the second derivatives under `vmap`, too."""
    arguments = _conv_arguments(jnp.float32, 3)
    run = jax.vmap(_up_to_second_order(_conv.conv, (1, 1), "SAME"))
    lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=(platform,))
    assert ("stablehlo.convolution" in lowered.as_text()) == convolves


@pytest.mark.parametrize(
    ("platform", "convolves"), [("cpu", False), ("tpu", True), ("cuda", True)]
)
def test_batch_last_conv_is_the_convolution_on_each_platform(platform, convolves, x64):
    """Value and both derivatives, an even kernel side among them."""
    x, kernel, out = _normal(
        [
            jax.ShapeDtypeStruct(shape, jnp.float64)
            for shape in ((4, 6, 5, 2), (3, 2, 2, 7), (4, 6, 5, 7))
        ]
    )

    def both(conv):
        def run(x, kernel):
            value, pull = jax.vjp(conv, x, kernel)
            return value, pull(out)

        return jax.jit(run)

    expected = both(lambda x, k: _lax_conv(x, k, strides=(1, 1), padding="SAME"))

    def turned(x, kernel):
        y = _conv.batch_last_conv(x.transpose(3, 1, 2, 0), kernel)
        return y.transpose(3, 1, 2, 0)

    lowered = both(turned).trace(x, kernel).lower(lowering_platforms=(platform,))
    assert ("stablehlo.convolution" in lowered.as_text()) == convolves
    _assert_same(both(turned)(x, kernel), expected(x, kernel), 1e-12)


def test_max_pool_is_the_windows_maximum(key):
    """To second order, where no two entries of a window are alike; odd sizes too."""
    x = jax.random.normal(key, (2, 7, 6, 3))

    def pool(x):
        ones = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, ones, ones, "VALID")

    tangent = jax.random.normal(jax.random.key(1), x.shape)
    cube = lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 3))
    twice = lambda f: jax.grad(lambda x: jnp.vdot(cube(f)(x), tangent))
    for derivative in (lambda f: f, cube, twice):
        got, expected = derivative(_conv.max_pool)(x), derivative(pool)(x)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# Batch normalisation.


def _numpy_norm(x, params, stats=None, epsilon=1e-5):
    """Normalises by `stats`, or its own: returns the outputs and (mean, variance)."""
    x, params = _numpy(x), _numpy(params)
    axes = tuple(range(x.ndim - 1))
    mean, variance = stats or (x.mean(axes), x.var(axes))
    normal = (x - mean) / np.sqrt(variance + epsilon)
    return normal * params["scale"] + params["bias"], (mean, variance)


@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 4, 3)], ids=str)
def test_batch_norm_is_its_formula(shape, key, x64):
    x = 3 + 2 * jax.random.normal(key, shape)
    module = _norm.BatchNorm()
    params = _random_params(module, x)
    assert {y.dtype for y in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    expected, (mean, variance) = _numpy_norm(x, params["params"])
    np.testing.assert_allclose(module.apply(params, x), expected, rtol=1e-10)
    _, stored = module.apply(params, x, mutable="batch_stats")
    np.testing.assert_allclose(stored["batch_stats"]["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(stored["batch_stats"]["variance"], variance, rtol=1e-12)


def test_batch_norm_survives_a_mean_far_from_zero(key):
    """E[x^2] - E[x]^2 would lose every digit of this variance in float32."""
    x = 1e4 + jax.random.normal(key, (50, 3))
    module = _norm.BatchNorm()
    params = module.init(key, x)
    expected, _ = _numpy_norm(np.asarray(x, np.float64), params["params"])
    np.testing.assert_allclose(module.apply(params, x), expected, atol=2e-3)


@pytest.mark.parametrize("model", [jm.models.MLP, jm.models.Conv4])
@pytest.mark.parametrize("field", ["norm", "statistics"])
def test_unknown_normalisation_is_named(model, field, key):
    model = model([2, 1] if model is jm.models.MLP else 2, **{field: "layer"})
    with pytest.raises(ValueError, match=f"`{field}` must be one of 'batch'"):
        jax.eval_shape(model.init, key, jnp.ones((2, 16, 16, 1)))
        model.with_support_statistics({}, None)


# MLP.


def _numpy_mlp(params, x, stats=None):
    """An MLP with one hidden layer: returns outputs and the (mean, variance)."""
    x, params = _numpy(x), _numpy(params)
    hidden, norm, out = (params[n] for n in ("Dense_0", "BatchNorm_0", "Dense_1"))
    x, stats = _numpy_norm(x @ hidden["kernel"], norm, stats)
    return np.maximum(x, 0) @ out["kernel"] + out["bias"], stats


def test_mlp_is_dense_layers_with_relu_between(key, x64):
    x = jax.random.normal(key, (5, 2, 3))
    model = jm.models.MLP([4, 3, 2])
    params = _random_params(model, x)
    expected = np.asarray(x).reshape(5, 6)
    for n in range(3):
        expected = np.maximum(expected, 0) if n else expected
        layer = _numpy(params["params"][f"Dense_{n}"])
        expected = expected @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-12)


def test_mlp_starts_uniform_in_one_over_root_fan_in(key):
    params = jm.models.MLP([2000, 1]).init(key, jnp.ones((1, 49)))["params"]
    for leaf in map(np.asarray, params["Dense_0"].values()):
        assert 0.99 / 7 < leaf.max() <= 1 / 7
        assert -1 / 7 <= leaf.min() < -0.99 / 7
        standard_error = 1 / 7 / np.sqrt(3 * leaf.size)
        assert abs(leaf.mean()) < 4 * standard_error


def test_mlp_without_layers_is_named(key):
    with pytest.raises(ValueError, match="`features` must name at least the output"):
        jm.models.MLP([]).init(key, jnp.ones((1, 1)))


# Conv4.


@pytest.mark.parametrize(
    ("size", "strided", "head", "shape"),
    [
        (28, True, 5, (3, 5)),
        (28, False, 5, (3, 5)),
        (28, True, None, (3, 8)),  # 14, 7, 4, 2 pixels, averaged
        (28, False, None, (3, 8)),  # 14, 7, 3, 1 pixels
        (84, True, None, (3, 8)),
        (84, False, None, (3, 200)),  # 42, 21, 10, 5 pixels, flattened
    ],
)
def test_conv4_has_the_papers_shapes(size, strided, head, shape, key):
    images = jax.ShapeDtypeStruct((3, size, size, 3), jnp.float32)
    model = jm.models.Conv4(8, head=head, strided=strided)
    outputs, params = jax.eval_shape(model.init_with_output, key, images)
    assert outputs.shape == shape
    count = sum(x.size for x in jax.tree.leaves(params))
    features = 8 if strided or size == 28 else 200
    kernels = 3 * 3 * (3 * 8 + 3 * 8 * 8)
    assert count == kernels + 4 * 2 * 8 + (5 * features + 5 if head else 0)


@pytest.mark.parametrize("norm", ["batch", None])
def test_conv4_parameters_follow_the_default_float_type(norm, key, x64):
    model = jm.models.Conv4(2, norm=norm)
    params = jax.eval_shape(model.init, key, jnp.ones((1, 16, 16, 1)))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float64")}


def _numpy_conv4(params, x, strided, stats=(None,) * 4):
    """Four blocks, all in NumPy: returns the embedding and each (mean, variance)."""
    x, params, found = _numpy(x), _numpy(params), []
    for n in range(4):
        block = params[f"Block_{n}"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("nrschw,hwco->nrso", windows, block["kernel"])
        x = x[:, ::2, ::2] if strided else x
        if "bias" in block:
            x = x + block["bias"]
        else:
            x, found_here = _numpy_norm(x, block["BatchNorm_0"], stats[n])
            found.append(found_here)
        x = np.maximum(x, 0)
        if not strided:
            rows, columns = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * rows, : 2 * columns]
            x = x.reshape(len(x), rows, 2, columns, 2, -1).max((2, 4))
    return (x.mean((1, 2)) if strided else x.reshape(len(x), -1)), found


@pytest.fixture(params=[True, False], ids=["strided", "pooled"])
def conv4_images(request, key, x64):
    """`make(**options)`, whether strided, and support and query images."""
    strided = request.param
    make = functools.partial(jm.models.Conv4, 2, head=None, strided=strided)
    images = jax.random.uniform(key, (7, 18, 16, 1))  # An odd number of rows: 9, 4, 2.
    return make, strided, images[:4], images[4:]


@pytest.mark.parametrize(("norm", "head"), [("batch", 3), (None, None)])
def test_conv4_is_its_blocks(norm, head, conv4_images):
    make, strided, images, _ = conv4_images
    model = make(norm=norm, head=head)
    params = _random_params(model, images)
    expected, _ = _numpy_conv4(params["params"], images, strided)
    if head:
        layer = _numpy(params["params"]["head"])
        expected = expected @ layer["kernel"] + layer["bias"]
    got = jit(model.apply)(params, images)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_conv4_predicts_by_the_support_sets_statistics(conv4_images):
    make, strided, support, query = conv4_images
    model = make(statistics="support")
    params = _random_params(model, support)
    adapted = jit(model.with_support_statistics)(params, support)
    _, stats = _numpy_conv4(params["params"], support, strided)
    expected, _ = _numpy_conv4(params["params"], query, strided, stats)
    apply = jit(model.apply)
    np.testing.assert_allclose(apply(adapted, query), expected, rtol=1e-9, atol=1e-12)
    alone = apply(adapted, query[1:2])
    np.testing.assert_allclose(alone, expected[1:2], rtol=1e-9, atol=1e-12)


def test_conv4_is_transductive_by_default(conv4_images):
    make, strided, support, query = conv4_images
    model = make()
    params = _random_params(model, support)
    assert model.with_support_statistics(params, support) is params
    expected, _ = _numpy_conv4(params["params"], query, strided)
    got = jit(model.apply)(params, query)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    two = jit(model.apply)(params, query[:2])
    assert np.abs(got[:2] - two).max() > 0.01


def test_conv4_names_images_too_small_to_pool(key):
    with pytest.raises(ValueError, match=r"under 16x16, got shape \(3, 15, 28, 1\)"):
        jm.models.Conv4(8).init(key, jnp.ones((3, 15, 28, 1)))
    for size, strided in [(16, False), (8, True)]:
        model = jm.models.Conv4(8, strided=strided)
        jax.eval_shape(model.init, key, jnp.ones((3, size, size, 1)))


def test_conv4_refuses_what_is_no_batch_of_images(key):
    with pytest.raises(ValueError, match=r"takes images.*got shape \(16, 16, 1\)"):
        jm.models.Conv4(2).init(key, jnp.ones((16, 16, 1)))
    for field, value in [("filters", 0), ("head", 0), ("head", 2.0)]:
        model = jm.models.Conv4(**{"filters": 2, field: value})
        with pytest.raises(ValueError, match=f"`{field}` must be an int >= 1"):
            jax.eval_shape(model.init, key, jnp.ones((1, 16, 16, 1)))


# Every kind of model, as a learner sees it.


def _linear(params, inputs):
    return inputs @ params["w"] + params["b"].reshape(1, -1)


def _kernel_and_bias(weights):
    return {"params": {"kernel": weights["w"], "bias": weights["b"]}}


WEIGHTS = {"w": jnp.array([[0.5]]), "b": jnp.array([-1.0])}
LINEAR = {  # name: (model, its parameters with given weights)
    "Model": (jm.Model(lambda key, x: WEIGHTS, _linear), lambda w: w),
    "linen": (nn.Dense(1), _kernel_and_bias),
    "from_linen": (jm.models.from_linen(nn.Dense(1)), _kernel_and_bias),
    "nnx class": (
        jm.models.from_nnx(functools.partial(nnx.Linear, 1, 1)),
        _kernel_and_bias,
    ),
    "nnx module": (
        jm.models.from_nnx(nnx.Linear(1, 1, rngs=nnx.Rngs(0))),
        _kernel_and_bias,
    ),
    "haiku": (
        hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x))),
        lambda w: {"linear": w},
    ),
}


def _maml(model):
    return jm.maml(
        model, jm.losses.squared_error, inner_tx=optax.sgd(0.05), inner_steps=2
    )


@pytest.mark.parametrize("framework", LINEAR)
def test_a_linear_model_learns_alike_in_every_framework(framework, key, x64):
    """Against the meta-gradient in closed form: losses are quadratic in (w, b)."""
    model, wrap = LINEAR[framework]
    learner, task = _maml(model), regression_task(key)
    weights = jax.tree.map(lambda x: x.astype(jnp.float64), WEIGHTS)
    meta_params = wrap(weights)
    drawn = learner.init(key, task)
    chex.assert_trees_all_equal_shapes(drawn, meta_params)

    def design(examples):  # [N, 2], so that outputs are design @ (w, b)
        x, y = np.asarray(examples.inputs), np.asarray(examples.targets)[:, 0]
        return np.concatenate([x, np.ones_like(x)], 1), y

    (a, y), (c, z) = design(task.support), design(task.query)
    path = [np.array([0.5, -1.0])]
    for _ in range(2):
        path.append(path[-1] - 0.05 * 2 / len(y) * a.T @ (a @ path[-1] - y))
    shrink = np.eye(2) - 0.05 * 2 / len(y) * a.T @ a
    grad = shrink @ shrink @ (2 / len(z) * c.T @ (c @ path[-1] - z))
    expected = wrap({"w": grad[:1].reshape(1, 1), "b": grad[1:]})

    grads, _ = jit(learner.meta_grad)(key, meta_params, task)
    chex.assert_trees_all_close(grads, expected, rtol=1e-9)
    losses = jit(learner.evaluate)(key, meta_params, task).loss
    by_hand = [np.mean((c @ w - z) ** 2) for w in path]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-9)


def test_what_is_no_model_is_named():
    with pytest.raises(ValueError, match=r"`init` and `apply`, got object without"):
        _maml(object())
    with pytest.raises(ValueError, match=r"without `init`.*models\.from_nnx"):
        _maml(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def test_a_bare_module_with_running_statistics_is_sent_to_the_adapter(key):
    module = nn.Sequential([nn.Dense(1), nn.BatchNorm(use_running_average=False)])
    task = regression_task(key)
    with pytest.raises(ValueError, match=r"\['batch_stats'\].*from_linen"):
        _maml(module).init(key, task)
    with pytest.raises(ValueError, match=r"\['batch_stats'\].*from_linen"):
        meta_params = module.init(key, task.support.inputs)
        _maml(module).meta_grad(key, meta_params, task)


# Adapters: a network with BatchNorm and dropout is `MLP([4, 1], norm="batch")` but for
# its dropout, in each framework and with parameters of the same names.


class LinenNet(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(1)(x)


class NnxNet(nnx.Module):
    def __init__(self, rate=0.0, *, rngs):
        self.Dense_0 = nnx.Linear(1, 4, use_bias=False, rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(4, rngs=rngs)
        self.Dropout_0 = nnx.Dropout(rate, rngs=rngs)
        self.Dense_1 = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.BatchNorm_0(self.Dense_0(x)))
        return self.Dense_1(self.Dropout_0(x))


class NnxNetToldByItsArgument(NnxNet):
    def __call__(self, x, *, train):
        x = self.BatchNorm_0(self.Dense_0(x), use_running_average=not train)
        x = self.Dropout_0(nnx.relu(x), deterministic=not train)
        return self.Dense_1(x)


def _from_nnx(net, rate, **options):
    return jm.models.from_nnx(functools.partial(net, rate), **options)


ADAPTED = {
    "linen": lambda rate=0.0, **o: jm.models.from_linen(LinenNet(rate), **o),
    "nnx": lambda rate=0.0, **o: _from_nnx(NnxNet, rate, **o),
    "nnx, argument": lambda rate=0.0, **o: _from_nnx(
        NnxNetToldByItsArgument, rate, **o
    ),
}
STATISTICS = ("batch", "support")


def _mlp_problem(key):
    """A task, and random parameters of `MLP([4, 1], norm="batch")`."""
    task = regression_task(key)
    model = jm.models.MLP([4, 1], norm="batch")
    return task, _random_params(model, task.support.inputs)


@functools.cache
def _jitted(function, model, rate=0.0, statistics="batch"):
    """A learner's function, compiled once for all tests; call it under x64."""
    if model == "MLP":
        made = jm.models.MLP((4, 1), norm="batch", statistics=statistics)
    else:
        made = ADAPTED[model](rate, statistics=statistics)
    return jit(getattr(_maml(made), function))


@pytest.mark.parametrize("framework", ADAPTED)
def test_an_adapted_module_learns_as_the_same_mlp_does(framework, key, x64):
    task, params = _mlp_problem(key)
    drawn = jax.eval_shape(_maml(ADAPTED[framework]()).init, key, task)
    assert jax.tree.structure(drawn) == jax.tree.structure(params)
    for function, statistics in [
        ("meta_grad", "batch"),
        ("evaluate", "batch"),
        ("evaluate", "support"),
    ]:
        expected, got = (
            _jitted(function, model, statistics=statistics)(key, params, task)
            for model in ("MLP", framework)
        )
        chex.assert_trees_all_close(got, expected, rtol=1e-8)


@pytest.mark.parametrize("framework", ADAPTED)
def test_task_parameters_hold_the_support_sets_own_statistics(framework, key, x64):
    task, params = _mlp_problem(key)
    learner = _maml(ADAPTED[framework](0.5, statistics="support"))
    task_params, _ = jit(learner.adapt)(key, params, task.support)
    adapted = task_params.params
    chex.assert_trees_all_equal_dtypes(adapted["params"], params["params"])
    trained, queries = adapted["params"], task.query.inputs
    _, (mean, variance) = _numpy_mlp(trained, task.support.inputs)
    stored = adapted["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stored["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(stored["var"], variance, rtol=1e-9)
    assert stored["mean"].dtype == stored["var"].dtype == jnp.float64
    expected, _ = _numpy_mlp(trained, queries, (mean, variance))
    got = learner.predict(task_params, task.query.inputs)
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    one = learner.predict(task_params, task.query.inputs[:1])
    np.testing.assert_allclose(one, expected[:1], rtol=1e-9)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("framework", ADAPTED)
def test_running_statistics_are_never_meta_parameters(framework, statistics, key):
    task = regression_task(key)
    learner = _maml(ADAPTED[framework](statistics=statistics))
    meta_params = jax.eval_shape(learner.init, key, task)
    assert list(meta_params) == ["params"]
    grads, _ = jax.eval_shape(learner.meta_grad, key, meta_params, task)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, meta_params)
    task_params, _ = jax.eval_shape(learner.adapt, key, meta_params, task.support)
    adapted = getattr(task_params, "params", task_params)
    assert ("batch_stats" in adapted) == (statistics == "support")


@pytest.mark.parametrize("framework", ADAPTED)
def test_predictions_of_the_batch_depend_on_the_other_queries(framework, key, x64):
    task, params = _mlp_problem(key)
    model, inputs = ADAPTED[framework](0.5), task.query.inputs
    assert model.with_support_statistics(params, task.support.inputs) is params
    for count in (2, 6):
        expected, _ = _numpy_mlp(params["params"], inputs[:count])
        got = model.apply(params, inputs[:count])
        np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_dropout_follows_the_key_and_is_off_in_predictions(framework, key, x64):
    task, params = _mlp_problem(key)
    meta_grad = _jitted("meta_grad", framework, 0.5)
    a, b = jax.random.split(key)
    grads, again, other = (meta_grad(k, params, task)[0] for k in (a, a, b))
    chex.assert_trees_all_equal(grads, again)
    assert optax.tree.norm(optax.tree.sub(grads, other)) > 0.01
    evaluate = _jitted("evaluate", framework, 0.5)
    expected, _ = _numpy_mlp(params["params"], task.query.inputs)
    before = np.mean((expected - np.asarray(task.query.targets)) ** 2)
    losses = [evaluate(k, params, task).loss for k in (a, b)]
    np.testing.assert_allclose([x[0] for x in losses], [before] * 2, rtol=1e-9)
    assert losses[0][1] != losses[1][1]  # It is on while adapting.


DROPOUTS = {
    "linen": lambda: jm.models.from_linen(nn.Sequential([nn.Dropout(0.75)])),
    "linen, hard-coded on": lambda: jm.models.from_linen(
        nn.Sequential([nn.Dropout(0.75, deterministic=False)])
    ),
    "nnx": lambda: jm.models.from_nnx(functools.partial(nnx.Dropout, 0.75)),
    "nnx, hard-coded off": lambda: jm.models.from_nnx(
        nnx.Dropout(0.75, deterministic=True, rngs=nnx.Rngs(0))
    ),
}


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_dropout_keeps_a_quarter_and_scales_it(dropout, key):
    model, x = DROPOUTS[dropout](), jnp.ones((100, 100))
    params = model.init(key, x)
    chex.assert_trees_all_equal(model.apply(params, x, key=key), x)
    a, b = jax.random.split(key)
    first, again, other = (model.apply(params, x, key=k, train=True) for k in (a, a, b))
    chex.assert_trees_all_equal(first, again)
    kept, kept_too = np.asarray(first) > 0, np.asarray(other) > 0
    np.testing.assert_array_equal(first[kept], 4)
    # Shares are binomial over 10^4 entries, and independent for two keys.
    for share, mask in [(1 / 4, kept), (1 / 4, kept_too), (1 / 16, kept & kept_too)]:
        assert abs(mask.mean() - share) < 4 * np.sqrt(share * (1 - share) / 1e4)


def test_two_random_streams_of_an_nnx_module_are_independent(key):
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Dropout(0.5, rngs=rngs)
            self.b = nnx.Dropout(0.5, rng_collection="noise", rngs=rngs)

        def __call__(self, x):
            return jnp.stack([self.a(x), self.b(x)])

    model = jm.models.from_nnx(lambda rngs: Twice(nnx.Rngs(dropout=rngs(), noise=1)))
    kept = np.asarray(
        model.apply({"params": {}}, jnp.ones(10_000), key=key, train=True)
    )
    both = (kept > 0).all(0).mean()
    assert abs(both - 1 / 4) < 4 * np.sqrt(3 / 16 / 1e4)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_adapted_modules_learn_many_tasks_at_once(framework, key, x64):
    _, params = _mlp_problem(key)
    keys = jax.random.split(key, 2)
    tasks = jax.vmap(regression_task)(keys)
    alone = _jitted("meta_grad", framework, 0.5)
    together = jit(jax.vmap(_maml(ADAPTED[framework](0.5)).meta_grad, (0, None, 0)))
    got, _ = together(keys, params, tasks)
    for t in range(2):
        expected, _ = alone(keys[t], params, jax.tree.map(lambda x: x[t], tasks))
        mine = jax.tree.map(lambda x: x[t], got)
        chex.assert_trees_all_close(mine, expected, rtol=1e-9, atol=1e-15)


# Adapters: what modules say about the mode.


def _doubles_when(mode, module):
    """A module whose `__call__` takes `mode` and doubles its input if that is true."""
    scope = {}
    exec(f"def __call__(self, x, {mode}): return 2 * x if {mode} else x", scope)
    return type("Doubles", (module,), scope)()


@pytest.mark.parametrize(
    ("mode", "true_when"),
    [
        ("train", True),
        ("training", True),
        ("is_training", True),
        ("deterministic", False),
        ("use_running_average", False),
    ],
)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_modules_are_told_the_mode_by_the_name_they_use(
    framework, mode, true_when, key
):
    adapt, module = {
        "linen": (jm.models.from_linen, nn.Module),
        "nnx": (jm.models.from_nnx, nnx.Module),
    }[framework]
    model, x = adapt(_doubles_when(mode, module)), jnp.ones((2, 1))
    params = model.init(key, x)
    assert params == {"params": {}}
    for train in (True, False):
        expected = 2 if train == true_when else 1
        got = model.apply(params, x, key=key, train=train)
        np.testing.assert_array_equal(got, np.full((2, 1), expected))


class OwnLinenNorm(nn.BatchNorm):
    @nn.compact
    def __call__(self, x, extra):
        return super().__call__(x + extra, use_running_average=True)


class LinenNorm(nn.Module):
    """Asks for running statistics in one of the ways that flax has."""

    asks: str

    @nn.compact
    def __call__(self, x):
        match self.asks:
            case "not":
                return nn.BatchNorm()(x)
            case "by attribute":
                return nn.BatchNorm(use_running_average=True)(x)
            case "by keyword":
                return nn.BatchNorm()(x, use_running_average=True)
            case "by position":
                return nn.BatchNorm()(x, True)
            case "in a subclass":
                return OwnLinenNorm()(x, 0.0)
            case "under remat":
                return nn.remat(nn.BatchNorm)(use_running_average=True)(x)


class OwnNnxNorm(nnx.BatchNorm):
    def __call__(self, x, extra):
        return super().__call__(x + extra, use_running_average=True)


class NnxNorm(nnx.Module):
    def __init__(self, asks, *, rngs):
        self.asks = asks
        make = OwnNnxNorm if asks == "in a subclass" else nnx.BatchNorm
        ask = asks == "by attribute" or None
        self.norm = make(2, use_running_average=ask, rngs=rngs)

    def __call__(self, x):
        match self.asks:
            case "by keyword":
                return self.norm(x, use_running_average=True)
            case "by position":
                return self.norm(x, True)
            case "in a subclass":
                return self.norm(x, 0.0)
            case _:
                return self.norm(x)


def _linen_norm(asks, **options):
    return jm.models.from_linen(LinenNorm(asks), **options)


def _nnx_norm(asks, **options):
    return _from_nnx(NnxNorm, asks, **options)


ASKS = ("not", "by attribute", "by keyword", "by position", "in a subclass")
NORMS = {
    **{f"linen, {a}": functools.partial(_linen_norm, a) for a in ASKS},
    "linen, under remat": functools.partial(_linen_norm, "under remat"),
    **{f"nnx, {a}": functools.partial(_nnx_norm, a) for a in ASKS},
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_layer_cannot_ask_for_running_statistics(norm, key):
    support, query = 2 + jax.random.normal(key, (2, 5, 2))
    unit = {"scale": np.ones(2), "bias": np.zeros(2)}
    own, _ = _numpy_norm(query, unit)
    _, stats = _numpy_norm(support, unit)
    by_support, _ = _numpy_norm(query, unit, stats)
    for statistics, predicted in [("batch", own), ("support", by_support)]:
        model = NORMS[norm](statistics=statistics)
        params = model.with_support_statistics(model.init(key, query), support)
        got = model.apply(params, query, key=key, train=True)
        np.testing.assert_allclose(got, own, rtol=1e-4, atol=1e-5)
        got = model.apply(params, query)
        np.testing.assert_allclose(got, predicted, rtol=1e-4, atol=1e-5)


def test_layers_under_scan_keep_one_set_of_statistics_each(key):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm()(nn.Dense(2)(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.scan(
                Layer,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=3,
            )()(x, None)[0]

    x = jax.random.normal(key, (6, 2))
    by_support = jm.models.from_linen(Net(), statistics="support")
    params = by_support.init(key, x)
    adapted = by_support.with_support_statistics(params, x)
    chex.assert_tree_shape_prefix(adapted["batch_stats"], (3, 2))
    expected = np.asarray(x)
    for n in range(3):
        layer = _numpy(jax.tree.map(lambda y: y[n], params["params"])["ScanLayer_0"])
        expected = expected @ layer["Dense_0"]["kernel"] + layer["Dense_0"]["bias"]
        expected, _ = _numpy_norm(expected, layer["BatchNorm_0"])
    np.testing.assert_allclose(by_support.apply(adapted, x), expected, atol=1e-4)


# Adapters: initialisation, and what they refuse.


def test_an_nnx_class_draws_from_the_key(key):
    model = jm.models.from_nnx(functools.partial(nnx.Linear, 2, 3))
    a, b = jax.random.split(key)
    drawn = model.init(a, None)["params"]["kernel"]
    expected = nnx.Linear(2, 3, rngs=nnx.Rngs(a)).kernel[...]
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn != model.init(b, None)["params"]["kernel"]).all()


def test_an_nnx_module_starts_where_it_is_and_stays_there(key):
    net = NnxNet(0.5, rngs=nnx.Rngs(3))
    before = jax.tree.map(jnp.copy, nnx.state(net))
    model = jm.models.from_nnx(net, statistics="support")
    params = model.init(key, None)
    chex.assert_trees_all_equal(
        params["params"], nnx.to_pure_dict(nnx.state(net, nnx.Param))
    )
    x = jax.random.normal(key, (4, 1))
    model.apply(model.with_support_statistics(params, x), x)
    jit(model.apply, static_argnames="train")(params, x, key=key, train=True)
    chex.assert_trees_all_equal(nnx.state(net), before)
    jax.tree.map(lambda y: y.delete(), params)  # As donation does.
    chex.assert_trees_all_equal(nnx.state(net), before)
    chex.assert_trees_all_equal_shapes(model.init(key, None), params)


def test_arrays_outside_nnx_variables_are_constants(key):
    class Shifted(nnx.Module):
        def __init__(self):
            self.shift = jnp.array([[1.0, 2.0]])

        def __call__(self, x):
            return x + self.shift

    model = jm.models.from_nnx(Shifted())
    params = model.init(key, None)
    assert not jax.tree.leaves(params)
    got = jit(model.apply)(params, jnp.zeros((1, 2)))
    np.testing.assert_array_equal(got, [[1.0, 2.0]])


class Cached(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("cache", "last", lambda: x)
        self.sow("losses", "size", jnp.sum(x))
        return x


class OwnLinenStatistics(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "size", lambda: jnp.mean(x))
        return nn.BatchNorm()(x)


class CachedNnx(nnx.Module):
    def __init__(self):
        self.last = nnx.Cache(jnp.zeros(2))

    def __call__(self, x):
        return x


class OwnStatistics(nnx.Module):
    def __init__(self):
        self.mean = nnx.BatchStat(jnp.zeros(2))

    def __call__(self, x):
        return x - self.mean


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jm.models.from_linen(Cached()), r"\['cache', 'losses'\]; `from_linen"),
        (
            lambda: jm.models.from_linen(OwnLinenStatistics()),
            r"'batch_stats' \['size'\], which do not belong to an `nn.BatchNorm`",
        ),
        (
            lambda: jm.models.from_linen(nn.Dense),
            "`module` must be a flax.linen module",
        ),
        (lambda: jm.models.from_nnx(CachedNnx()), r"\{'last': 'Cache'\}; `from_nnx"),
        (lambda: jm.models.from_nnx(OwnStatistics()), r"\{'mean': 'BatchStat'\}"),
        (lambda: jm.models.from_nnx(3), "must be an nnx.Module or a constructor"),
        (lambda: jm.models.from_nnx(lambda rngs: 3), "must construct an nnx.Module"),
        (
            lambda: jm.models.from_linen(nn.Dense(1), statistics="running"),
            "`statistics` must be one of 'batch', 'support', got 'running'",
        ),
        (
            lambda: jm.models.from_nnx(CachedNnx(), statistics="running"),
            "`statistics` must be one of 'batch', 'support', got 'running'",
        ),
    ],
)
def test_modules_that_cannot_be_adapted_are_named(make, message, key):
    with pytest.raises(ValueError, match=message):
        make().init(key, jnp.ones((3, 2)))


@pytest.mark.parametrize("framework", ADAPTED)
def test_missing_statistics_and_keys_are_named(framework, key):
    model, x = ADAPTED[framework](0.5, statistics="support"), jnp.ones((3, 1))
    params = model.init(key, x)
    with pytest.raises(ValueError, match="hold no statistics of a support set"):
        model.apply(params, x)
    error = ValueError if framework != "linen" else Exception  # flax's own.
    with pytest.raises(error, match=r'`key` must be given|needs PRNG for "dropout"'):
        model.apply(params, x, train=True)
