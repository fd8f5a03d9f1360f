"""KochNet against NumPy, and the sizes and first weights of its paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from tests.models.test_models import _numpy, _random_params

# These programs run once: compiling them is all the time they take.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SMALL = {"filters": (2, 3, 2), "kernel_sizes": (3, 2, 2), "features": 4}


def test_koch_net_has_the_papers_sizes(key):
    """Figure 4: 96, 48, 42, 21, 18, 9 and 6 pixels, then 4096 units."""
    images = jax.ShapeDtypeStruct((2, 105, 105, 1), jnp.float32)
    init = jm.models.KochNet().init_with_output
    outputs, params = jax.eval_shape(init, key, images)
    assert outputs.shape == (2, 4096)
    shapes = jax.tree.map(jnp.shape, params["params"])
    assert shapes == {
        "Conv_0": {"kernel": (10, 10, 1, 64), "bias": (64,)},
        "Conv_1": {"kernel": (7, 7, 64, 128), "bias": (128,)},
        "Conv_2": {"kernel": (4, 4, 128, 128), "bias": (128,)},
        "Conv_3": {"kernel": (4, 4, 128, 256), "bias": (256,)},
        "Dense_0": {"kernel": (256 * 6 * 6, 4096), "bias": (4096,)},
    }


def test_koch_net_is_its_layers(key, x64):
    images = jax.random.uniform(key, (3, 14, 13, 2))  # 12, 6, 5, 2, 1 rows.
    model = jm.models.KochNet(**SMALL)
    params = _random_params(model, images)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    x = np.asarray(images)
    layers = _numpy(params["params"])
    for n in range(3):
        kernel, bias = layers[f"Conv_{n}"]["kernel"], layers[f"Conv_{n}"]["bias"]
        if n:
            rows, columns = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * rows, : 2 * columns]
            x = x.reshape(len(x), rows, 2, columns, 2, -1).max((2, 4))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
        x = np.maximum(np.einsum("nrschw,hwco->nrso", windows, kernel) + bias, 0)
    assert x.shape == (3, 1, 1, 2)
    x = x.reshape(3, -1) @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
    expected = 1 / (1 + np.exp(-x))
    got = jit(model.apply)(params, images)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_weights_start_as_in_the_paper(key):
    model = jm.models.KochNet((60, 60), kernel_sizes=(4, 3), features=80)
    params = jit(model.init)(key, jnp.ones((1, 13, 13, 3)))["params"]
    for name, layer in _numpy(params).items():
        deviation = 0.2 if name == "Dense_0" else 0.01
        for values, mean, scale in (
            (layer["kernel"], 0, deviation),
            (layer["bias"], 0.5, 0.01),
        ):
            normal = (values - mean) / scale
            assert abs(normal.mean()) < 4 / np.sqrt(normal.size)
            assert abs(normal.var() - 1) < 4 * np.sqrt(2 / normal.size)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (105, 105, 1), r"takes images.*got shape \(105, 105, 1\)"),
        ({}, (1, 28, 28, 1), r"images of at least 65x65, got shape \(1, 28, 28, 1\)"),
        (SMALL, (1, 11, 12, 1), "at least 12x12"),
        ({"filters": (2,)}, (1, 105, 105, 1), "must have the same length"),
        (
            {"filters": (), "kernel_sizes": ()},
            (1, 9, 9, 1),
            "must have the same length",
        ),
        (SMALL | {"filters": (2, 0, 2)}, (1, 14, 14, 1), "`filters` must be an int"),
        (SMALL | {"features": 0}, (1, 14, 14, 1), "`features` must be an int >= 1"),
    ],
)
def test_koch_net_names_what_is_wrong(options, shape, message, key):
    model = jm.models.KochNet(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, key, jnp.ones(shape))


@pytest.mark.parametrize(
    ("sizes", "smallest"), [((10, 7, 4, 4), 65), ((5, 3, 2, 2), 28), ((3, 2, 2), 12)]
)
def test_the_smallest_image_leaves_one_pixel(sizes, smallest, key):
    model = jm.models.KochNet((2,) * len(sizes), kernel_sizes=sizes, features=3)
    images = jnp.ones((1, smallest, smallest, 1))
    params = jax.eval_shape(model.init, key, images)
    assert params["params"]["Dense_0"]["kernel"].shape == (2, 3)
