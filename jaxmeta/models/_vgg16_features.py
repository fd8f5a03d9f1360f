"""Feature maps of a trained VGG-16, for losses that compare images."""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxmeta import _checks, _weight_files
from jaxmeta.models import _conv

# Convolutions before each pooling, and their indices in torchvision's `features`.
_LAYERS = (2, 2, 3, 3, 3)
_NAMES = tuple(
    f"conv{block}_{i + 1}"
    for block, count in enumerate(_LAYERS, 1)
    for i in range(count)
)
_TORCHVISION = dict(
    zip(map(str, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)), _NAMES, strict=True)
)
# What each kind of training subtracted from RGB in [0, 1], and divided it by.
_INPUTS = {
    # Caffe's pixels are 0 ... 255, BGR; kernels are turned to RGB when they are read.
    "caffe": (np.array([123.68, 116.779, 103.939]) / 255, np.full(3, 1 / 255)),
    "torchvision": (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
}


def vgg16_features(
    path: str | os.PathLike[str],
    layers: Sequence[str] = ("conv1_2", "conv2_2", "conv3_3", "conv4_3"),
    *,
    pixels: Literal["caffe", "torchvision"] | None = None,
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Reads weights; returns what maps images to features.

    Only what the deepest of `layers` needs is read and computed.

    Args:
      path: an `.npz` or `.safetensors` file with kernels and biases, in any float
        dtype: named `conv1_1/kernel`, Keras's `block1_conv1/kernel`, or torchvision's
        `features.0.weight`, whose kernels are [O, I, 3, 3]; all others' are
        [3, 3, I, O].
      layers: names `conv1_1` ... `conv5_3`. Static.
      pixels: what the weights were trained on: "caffe", also Keras's, BGR without its
        mean, or "torchvision". None: as the names tell. Static.

    Returns:
      A function of images [N, H, W, 3], RGB in [0, 1], that returns a dict of maps
      [N, h, w, C] after ReLU, by layer. It is a `jax.tree_util.Partial`: its weights
      are leaves.

    Raises:
      ValueError: if `path` is no such file, lacks a layer or holds values that are not
        finite, or a name is unknown.

    References:
      Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
      Recognition", ICLR 2015, Table 1, D. https://arxiv.org/abs/1409.1556

    Example:
      >>> vgg16_features("no-such-file.npz")
      Traceback (most recent call last):
      ...
      ValueError: `path` holds no weights: there is no no-such-file.npz.
    """
    if not layers or set(layers) - set(_NAMES):
        raise ValueError(
            f"`layers` must be some of {', '.join(_NAMES)}, got {list(layers)}."
        )
    if pixels is not None:
        _checks.check_choice("pixels", pixels, tuple(_INPUTS))
    path = pathlib.Path(path)
    tensors = _weight_files.read_arrays(path)
    named, is_torchvision = _by_layer(tensors)
    kind = pixels or ("torchvision" if is_torchvision else "caffe")
    last = max(map(_NAMES.index, layers))
    weights, channels = {}, 3
    for name in _NAMES[: last + 1]:
        kernel, bias = (named.get((name, part)) for part in ("kernel", "bias"))
        if kernel is None or bias is None:
            raise ValueError(
                f"`path` must have the kernel and bias of {name}, got {path} with "
                f"{sorted(tensors)[:4]} ...: name them `{name}/kernel`, `{name}/bias`."
            )
        if is_torchvision:
            kernel = kernel.transpose(2, 3, 1, 0)
        if kernel.shape != (3, 3, channels, *bias.shape):
            raise ValueError(
                f"`path` must have a kernel [3, 3, {channels}, {bias.size}] of {name}, "
                f"got {kernel.shape} in {path}."
            )
        weights[name] = jnp.asarray(kernel, float), jnp.asarray(bias, float)
        channels = bias.size
    _weight_files.check_finite(path, weights)
    if kind == "caffe":
        kernel, bias = weights["conv1_1"]
        weights["conv1_1"] = kernel[:, :, ::-1], bias
    mean, scale = (jnp.asarray(x, float).reshape(1, 1, 1, 3) for x in _INPUTS[kind])
    apply = functools.partial(_features, frozenset(layers))
    return Partial(apply, (weights, mean, scale))


def _features(layers, parameters, images):
    weights, mean, scale = parameters
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"`images` must be [N, H, W, 3], got shape {images.shape}.")
    x = (images - mean) / scale
    maps = {}
    for name, (kernel, bias) in weights.items():
        if name.endswith("_1") and name != "conv1_1":
            x = _conv.max_pool(x)
        x = _conv.conv(x, kernel, strides=(1, 1), padding="SAME")
        x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
        if name in layers:
            maps[name] = x
    return maps


def _by_layer(tensors):
    """(layer, "kernel" or "bias") -> array; and whether the names are torchvision's."""
    found, is_torchvision = {}, False
    for name, x in tensors.items():
        part = "bias" if re.search(r"(bias|_b)(:0|_\d(:0)?)?$", name) else "kernel"
        if match := re.search(r"features\.(\d+)\.", name):
            is_torchvision = True
            layer = _TORCHVISION.get(match[1])
        elif match := re.search(r"(?:block)?(\d)_conv(\d)|conv(\d)_(\d)", name):
            layer = "conv{}_{}".format(*filter(None, match.groups()))
        else:
            continue
        found[layer, part] = x
    return found, is_torchvision
