"""Convolution in pieces of the batch, against `lax.conv_general_dilated`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxmeta as jm
from jaxmeta.models import _conv, _layers, _norm, _pieces

CASES = {  # inputs, kernel, zeros around
    "inputs laid out": ((6, 6, 7, 2), (3, 3, 2, 3), ((1, 1), (1, 1))),
    "outputs laid out": ((6, 6, 7, 3), (3, 3, 3, 2), ((1, 1), (1, 1))),
    "uneven": ((6, 5, 4, 3), (2, 3, 3, 3), ((0, 1), (2, 0))),
    "one tap": ((6, 4, 4, 3), (1, 1, 3, 2), ((0, 0), (0, 0))),
    "more zeros than taps": ((6, 4, 5, 2), (2, 2, 2, 2), ((3, 2), (0, 4))),
}
# Positions: of all images, of a few images, and of fewer than one image.
PIECES = {"whole": 512, "some images": 60, "each image": 5}


def _lax_conv(x, kernel, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=numbers
    )


def _draw(*shapes, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def _assert_close(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def _to_third_order(conv, padding, tangents):
    """Value, gradient, reverse over reverse, again, and forward over reverse."""
    loss = lambda *at: jnp.sum(jnp.sin(conv(*at, padding)))
    gradient = jax.grad(loss, (0, 1))

    def slope(gradient):
        return lambda *at: sum(map(jnp.vdot, gradient(*at), tangents))

    twice = jax.grad(slope(gradient), (0, 1))
    thrice = jax.grad(slope(twice), (0, 1))
    forward = lambda *at: jax.jvp(gradient, at, tangents)[1]
    return jax.jit(
        lambda *at: [f(*at) for f in (loss, gradient, twice, thrice, forward)]
    )


@pytest.mark.parametrize(
    ("case", "pieces"),
    [(case, "some images") for case in CASES]
    + [("inputs laid out", "whole"), ("outputs laid out", "each image")],
)
def test_derivatives_are_the_convolutions_to_third_order(
    case, pieces, x64, monkeypatch
):
    *shapes, padding = CASES[case]
    monkeypatch.setattr(_pieces, "POSITIONS", PIECES[pieces])
    at, tangents = _draw(*shapes), _draw(*shapes, seed=1)
    got = _to_third_order(_pieces.conv, padding, tangents)(*at)
    expected = _to_third_order(_lax_conv, padding, tangents)(*at)
    _assert_close(got, expected, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2), ("float16", 3e-3)]
)
@pytest.mark.parametrize("case", ["inputs laid out", "outputs laid out"])
def test_dtypes_are_kept(case, dtype, tolerance, monkeypatch):
    *shapes, padding = CASES[case]
    monkeypatch.setattr(_pieces, "POSITIONS", 60)
    at = _draw(*shapes, dtype=dtype)
    exact = tuple(x.astype(jnp.float32) for x in at)
    value_and_grad = lambda conv: jax.value_and_grad(
        lambda *at: jnp.mean(jnp.square(conv(*at, padding))), (0, 1)
    )
    got = jax.jit(value_and_grad(_pieces.conv))(*at)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
    _assert_close(got, value_and_grad(_lax_conv)(*exact), tolerance)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=str)
@pytest.mark.parametrize("case", ["inputs laid out", "outputs laid out"])
def test_vmap_inside_and_outside_of_grad(case, axes, x64, monkeypatch):
    """Kernels of each task or shared, and images."""
    *shapes, padding = CASES[case]
    monkeypatch.setattr(_pieces, "POSITIONS", 60)
    at = [
        x if axis == 0 else x[0]
        for x, axis in zip(_draw(*((4, *s) for s in shapes)), axes, strict=True)
    ]

    def derivatives(conv):
        loss = lambda *at: jnp.sum(jnp.sin(conv(*at, padding)))
        total = lambda *at: jnp.sum(jax.vmap(loss, axes)(*at))
        inside, outside = (
            jax.vmap(jax.grad(loss, (0, 1)), axes),
            jax.grad(total, (0, 1)),
        )
        return jax.jit(lambda *at: (inside(*at), outside(*at)))(*at)

    _assert_close(derivatives(_pieces.conv), derivatives(_lax_conv), 1e-12)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_images_may_be_on_several_devices(kind, x64):
    """By JAX's checked `shard_map`, and by explicit axes."""
    x, kernel = _draw((4, 6, 6, 3), (3, 3, 3, 2))
    options = {"strides": (1, 1), "padding": "SAME"}

    def loss(conv):
        return lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel)))

    grad = jax.grad(loss(functools.partial(_conv.conv, **options)), (0, 1))
    same = ((1, 1), (1, 1))
    expected = jax.grad(loss(functools.partial(_lax_conv, padding=same)), (0, 1))
    mesh = jax.make_mesh((2,), ("images",), (kind,), devices=jax.devices()[:2])
    specs = (PartitionSpec("images"), PartitionSpec())
    if kind == AxisType.Explicit:
        with jax.set_mesh(mesh):
            got = jax.jit(grad)(*jax.device_put((x, kernel), specs))
    else:
        on_devices = jax.shard_map(grad, mesh=mesh, in_specs=specs, out_specs=specs)
        got = jax.jit(on_devices)(x, kernel)
    _assert_close(jax.device_get(got), expected(x, kernel), 1e-12)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((360, 14, 14), 3), ((300, 28, 28), 1), ((20, 2, 2), 20), ((97, 7, 7), 97)],
)
def test_pieces_are_equal_and_near_their_size(size, expected):
    assert _pieces._images_in_piece(*size) == expected
    assert size[0] % expected == 0


def _plain_block(x, kernel, scale, bias, epsilon=1e-5):
    """Convolution, batch normalisation, then the maxima of 2x2 windows."""
    y = _lax_conv(x, kernel, ((1, 1), (1, 1)))
    mean, variance = jnp.mean(y, (0, 1, 2)), jnp.var(y, (0, 1, 2))
    place = lambda v: v.reshape(1, 1, 1, -1)
    y = (y - place(mean)) / jnp.sqrt(place(variance) + epsilon)
    y = y * place(scale) + place(bias)
    window = (1, 2, 2, 1)  # Not `jnp.max`, whose derivative divides by the ties.
    return lax.reduce_window(y, -jnp.inf, lax.max, window, window, "VALID")


@pytest.mark.parametrize("channels", [2, 20])  # Few are convolved anew.
@pytest.mark.parametrize("pieces", ["whole", "some images"])
def test_pooling_before_normalising_is_pooling_after(
    pieces, channels, x64, monkeypatch
):
    """To second order, of features that fall with their scale too; odd sizes."""
    monkeypatch.setattr(_pieces, "POSITIONS", PIECES[pieces])

    class Block(_norm.nn.Module):
        @_norm.nn.compact
        def __call__(self, x):
            return _layers.normalized_pooled_conv(self, x, 3)

    x, kernel = _draw((6, 7, 6, channels), (3, 3, channels, 3))
    scale, bias = jnp.array([1.5, -0.7, 0.4]), jnp.array([0.1, 0.2, -0.3])
    at = (x, kernel, scale, bias)
    tangents = _draw(*(a.shape for a in at), seed=1)

    def block(x, kernel, scale, bias):
        norm = {"scale": scale, "bias": bias}
        return Block().apply({"params": {"kernel": kernel, "BatchNorm_0": norm}}, x)

    def derivatives(block):
        loss = lambda *at: jnp.sum(jnp.sin(block(*at)))
        gradient = jax.grad(loss, (0, 1, 2, 3))
        slope = lambda *at: sum(map(jnp.vdot, gradient(*at), tangents))
        twice = jax.grad(slope, (0, 1, 2, 3))
        return jax.jit(lambda *at: [block(*at), gradient(*at), twice(*at)])(*at)

    _assert_close(derivatives(block), derivatives(_plain_block), 1e-10)


@pytest.mark.parametrize(
    ("platform", "convolves"), [("cpu", False), ("tpu", True), ("cuda", True)]
)
def test_the_platform_chooses_the_pooled_convolutions_lowering(platform, convolves):
    """Of its derivatives too."""
    x, kernel = _draw((6, 8, 8, 2), (3, 3, 2, 3), dtype=jnp.float32)

    def loss(x, kernel):
        sign = jnp.ones(3)
        y, mean, variance = _conv.pooled_conv(x, kernel, sign, padding="SAME")
        return jnp.sum(y**2) + jnp.sum(mean * variance)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    lowered = gradient.trace(x, kernel).lower(lowering_platforms=(platform,))
    assert ("stablehlo.convolution" in lowered.as_text()) == convolves


@pytest.mark.parametrize("norm", ["batch", pytest.param(None, marks=pytest.mark.slow)])
def test_vgg16_is_thirteen_convolutions_and_a_head(norm, key):
    images = jax.random.normal(key, (2, 32, 32, 3))
    model = jm.models.VGG16((2, 3, 4, 5, 6), head=7, norm=norm)
    params = model.init(key, images)
    flat = jax.tree.leaves_with_path(params)
    kernels = [x for path, x in flat if "kernel" in str(path[-1]) and x.ndim == 4]
    assert len(kernels) == 13
    x, layers = images, iter(range(13))
    params = params["params"]
    for block, depth in enumerate((2, 2, 3, 3, 3)):
        for last in [False] * (depth - 1) + [True]:
            number = next(layers) - block
            own = params[f"Block_{block}" if last else f"_Layer_{number}"]
            x = _lax_conv(x, own["kernel"], ((1, 1), (1, 1)))
            if norm is None:
                x = x + own["bias"]
            else:
                mean = x.mean((0, 1, 2), keepdims=True)
                variance = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
                x = (x - mean) / jnp.sqrt(variance + 1e-5)
            x = jnp.maximum(x, 0)
        n, height, width, features = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, features).max((2, 4))
    head = params["head"]
    expected = x.mean((1, 2)) @ head["kernel"] + head["bias"][None]
    got = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 16, 16, 3), "Five poolings leave nothing of images under 32x32"),
        ({}, (32, 32, 3), r"VGG16 takes images \[N, H, W, channels\], got shape"),
        ({"filters": (4, 4)}, (2, 32, 32, 3), "`filters` must be five widths"),
        ({"head": 0}, (2, 32, 32, 3), "`head` must be an int >= 1"),
    ],
    ids=["small", "one image", "filters", "head"],
)
def test_vgg16_names_bad_arguments(options, shape, message, key):
    options = {"filters": (1,) * 5} | options
    with pytest.raises(ValueError, match=message):
        jm.models.VGG16(**options).init(key, jnp.ones(shape))
