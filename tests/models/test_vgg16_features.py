"""Feature maps of a trained VGG-16, against convolutions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxmeta import models

# Of a file whose blocks have 2 and 3 filters, up to the third layer.
SIZES = {"conv1_1": (3, 2), "conv1_2": (2, 2), "conv2_1": (2, 3)}
KERAS = {
    "conv1_1": "block1_conv1",
    "conv1_2": "block1_conv2",
    "conv2_1": "block2_conv1",
}
TORCHVISION = {"conv1_1": "0", "conv1_2": "2", "conv2_1": "5"}


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {name: (draw(3, 3, *pair), draw(pair[1])) for name, pair in SIZES.items()}


@pytest.fixture
def images():
    return np.random.default_rng(1).random((2, 6, 7, 3), np.float32)


def _by_hand(weights, x):
    """Loops over positions, in float64; `x` is as the network sees it."""
    maps = {}
    for name, (kernel, bias) in weights.items():
        if name == "conv2_1":  # 2 x 2 maxima; an odd column is dropped.
            n, h, w, c = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2]
            x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = np.zeros((*x.shape[:3], bias.size))
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                window = padded[:, i : i + 3, j : j + 3]
                y[:, i, j] = np.einsum("nijc,ijco->no", window, kernel) + bias
        maps[name] = x = np.maximum(y, 0)
    return maps


def _write(path, weights, layout):
    """Writes weights in one of the layouts, with something else beside them."""
    named = {"predictions/kernel": np.zeros(3, np.float32)}
    for name, (kernel, bias) in weights.items():
        if layout == "torchvision":
            own = f"features.{TORCHVISION[name]}"
            named[f"{own}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            named[f"{own}.bias"] = bias
        elif layout == "keras":
            named[f"{KERAS[name]}_W_1:0"] = kernel
            named[f"{KERAS[name]}_b_1:0"] = bias
        else:
            named[f"{name}/kernel"] = kernel.astype(np.float16)
            named[f"{name}/bias"] = bias.astype(np.float16)
    if path.suffix == ".npz":
        np.savez(path, **named)
    else:
        safetensors.numpy.save_file(named, path)
    return path


@pytest.mark.parametrize("layout", ["torchvision", "keras", "own, float16"])
def test_maps_are_those_of_convolutions_by_hand(layout, weights, images, tmp_path):
    name = {"keras": "a.npz"}.get(layout, "a.safetensors")
    path = _write(tmp_path / name, weights, layout)
    features = models.vgg16_features(path, ["conv1_1", "conv2_1"])
    if layout == "torchvision":
        seen = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    else:
        seen = (255 * images - [123.68, 116.779, 103.939])[..., ::-1]
    expected = _by_hand(weights, seen.astype(np.float64))
    found = jax.jit(lambda features, x: features(x))(features, images)
    assert set(found) == {"conv1_1", "conv2_1"}
    for layer, x in found.items():
        assert x.shape == expected[layer].shape
        scale = np.abs(expected[layer]).max()
        tolerance = 5e-3 if "float16" in layout else 1e-5
        np.testing.assert_allclose(x / scale, expected[layer] / scale, atol=tolerance)


def test_pixels_may_be_told(weights, images, tmp_path):
    path = _write(tmp_path / "a.npz", weights, "torchvision")
    features = models.vgg16_features(path, ["conv1_1"], pixels="caffe")
    seen = (255 * images - [123.68, 116.779, 103.939])[..., ::-1]
    expected = _by_hand(weights, seen)["conv1_1"]
    scale = expected.max()
    found = features(images)["conv1_1"]
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def test_weights_are_leaves_and_can_be_differentiated(weights, images, tmp_path):
    path = _write(tmp_path / "a.npz", weights, "keras")
    features = models.vgg16_features(path, ["conv2_1"])
    shapes = sorted(x.shape for x in jax.tree.leaves(features) if x.ndim == 4)
    assert shapes[-1] == (3, 3, 3, 2)
    loss = lambda x: jnp.sum(features(x)["conv2_1"])
    grads = jax.grad(loss)(jnp.asarray(images))
    assert jnp.isfinite(grads).all() and jnp.any(grads != 0)


def test_bad_files_and_layers_are_named(weights, tmp_path):
    path = _write(tmp_path / "a.npz", weights, "keras")
    with pytest.raises(ValueError, match="the kernel and bias of conv2_2, got"):
        models.vgg16_features(path, ["conv3_1"])
    with pytest.raises(ValueError, match="`layers` must be some of conv1_1"):
        models.vgg16_features(path, ["relu1"])
    with pytest.raises(ValueError, match="`layers` must be some of conv1_1"):
        models.vgg16_features(path, [])
    with pytest.raises(ValueError, match="`pixels` must be"):
        models.vgg16_features(path, ["conv1_1"], pixels="bgr")
    with pytest.raises(ValueError, match="there is no"):
        models.vgg16_features(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        models.vgg16_features(tmp_path / "c.npz")
    kernel, bias = weights["conv1_2"]
    wrong = weights | {"conv1_2": (kernel[:, :, :1], bias)}
    path = _write(tmp_path / "d.npz", wrong, "keras")
    with pytest.raises(ValueError, match=r"kernel \[3, 3, 2, 2\] of conv1_2, got"):
        models.vgg16_features(path, ["conv2_1"])
    features = models.vgg16_features(tmp_path / "a.npz", ["conv1_1"])
    with pytest.raises(ValueError, match=r"`images` must be \[N, H, W, 3\]"):
        features(jnp.ones((4, 4, 3)))
