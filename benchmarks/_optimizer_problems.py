"""The problems of `benchmarks.optimizers`; all but `later` precede any training.

Of other data, architectures and sizes than those of `problems.small_networks`. A data
folder has `mnist/mnist.npz`, `omniglot/omniglot_28x28.npz`, `icons/iconify_32x32.npz`,
`cifar10/cifar10_jpeg_pack.npz` and `text/fortunes.txt`.
"""

import functools
import io
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmeta as jm

FEW = 1000  # examples of which test losses are taken, or at most


class Data(NamedTuple):
    """Examples to train on, and others."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
    """A problem of the benchmark."""

    data: Data
    model: Any
    loss: Callable[..., jax.Array] = jm.losses.cross_entropy
    batch_size: int = 64
    is_large: bool = False  # Runs are made one by one: they fill the cores.


# Problems.


def cases(folder: pathlib.Path) -> dict[str, Callable[[], Case]]:
    """Name -> problem, in the order of the table."""
    mlp, act = jm.models.MLP, jax.nn
    squared = jm.losses.squared_error
    mnist = lambda size: _images(*_mnist(folder), size)
    icons = lambda size: _images(*_icons(folder), size)
    as_targets = lambda data: Data(*((x, x) for x, _ in data))
    return {
        "MNIST, 3 layers of 64, swish": lambda: Case(
            _flat(mnist(14)), mlp([64, 64, 64, 10], activation=act.swish)
        ),
        "MNIST, softmax regression": lambda: Case(_flat(mnist(14)), mlp([10])),
        "MNIST, convolutions and batch norm": lambda: Case(
            mnist(28), jm.models.Conv4(8, head=10, strided=True), batch_size=32
        ),
        "icons, 2 layers of 48, ReLU": lambda: Case(
            _flat(icons(16)), mlp([48, 48, 20], activation=act.relu)
        ),
        "icons, autoencoder": lambda: Case(
            as_targets(_flat(icons(16))),
            mlp([64, 12, 64, 256], activation=act.relu),
            squared,
            32,
        ),
        "Omniglot, 4 layers of 40, tanh": lambda: Case(
            _flat(_images(*_omniglot(folder), 14)), mlp([40] * 4 + [50])
        ),
        "CIFAR-10 (JPEG), convolutions": lambda: Case(
            _images(*_cifar10(folder), 32), jm.models.ConvNet(10), batch_size=32
        ),
        "characters, transformer": lambda: Case(
            _text(folder, 32),
            jm.models.Transformer(vocabulary=64),
            batch_size=16,
        ),
        "characters, gated recurrence": lambda: Case(
            _text(folder, 24), _recurrent(48), batch_size=16
        ),
        "regression, ill-conditioned": lambda: Case(_linear(), mlp([1]), squared, 32),
        "regression, 2 layers of 32, tanh": lambda: Case(
            _friedman(), mlp([32, 32, 1], activation=jnp.tanh), squared, 32
        ),
        "matrix of rank 8": lambda: Case(_matrix(), _factors(), squared, 256),
        "addition modulo 31": lambda: Case(_modular(31), _adder(31), batch_size=128),
        "image as a function of place": lambda: Case(
            _picture(), _fourier(64), squared, 128
        ),
    } | later(folder)


def later(folder: pathlib.Path) -> dict[str, Callable[[], Case]]:
    """Those in the tables, not in the means.

    Where an earlier rule had failed, large networks, and deep ones.
    """
    mlp, resnet = jm.models.MLP, jm.models.ResNet12
    transformer = functools.partial(jm.models.Transformer, 64)
    conv4 = functools.partial(jm.models.Conv4, head=10, strided=True)
    large = functools.partial(Case, is_large=True)
    cifar10 = lambda size: _images(*_cifar10(folder), size)
    return {
        "MNIST, raw pixels, 2 layers of 64, ReLU": lambda: Case(
            _raw(*_mnist(folder)), mlp([64, 64, 10], activation=jax.nn.relu)
        ),
        "CIFAR-10 (JPEG), Conv4 of 64": lambda: large(
            cifar10(32), conv4(64), batch_size=32
        ),
        "characters, transformer of 128": lambda: large(
            _text(folder, 32), transformer(width=128, num_heads=4), batch_size=16
        ),
        "CIFAR-10 (JPEG) at 16 x 16, Conv4 of 128, not normalised": lambda: large(
            cifar10(16), conv4(128, norm=None), batch_size=32
        ),
        "CIFAR-10 (JPEG) at 16 x 16, residual network of 12": lambda: large(
            cifar10(16), resnet((16, 32, 64, 64), head=10), batch_size=32
        ),
        "characters, transformer of 4 layers of 64": lambda: large(
            _text(folder, 32),
            transformer(width=64, num_heads=4, num_layers=4),
            batch_size=16,
        ),
        "icons, residual network of 12": lambda: large(
            _images(*_icons(folder), 16), resnet((8, 16, 32, 32), head=20)
        ),
        "Omniglot, 12 layers of 40, tanh": lambda: large(
            _flat(_images(*_omniglot(folder), 14)), mlp([40] * 12 + [50])
        ),
        "characters, transformer of 6 layers of 32": lambda: large(
            _text(folder, 32),
            transformer(width=32, num_heads=2, num_layers=6),
            batch_size=16,
        ),
    }


def _split(inputs, targets, num_test=FEW):
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, targets = inputs[order], targets[order]
    num_test = min(num_test, len(inputs) // 5)
    return Data(
        (inputs[num_test:], targets[num_test:]), (inputs[:num_test], targets[:num_test])
    )


def _images(images, labels, size):
    """Images [N, size, size, C], standardised."""
    images, labels = _some(images, labels)
    shape = len(images), size, size, images.shape[-1]
    images = jax.image.resize(jnp.asarray(images, jnp.float32), shape, "linear")
    images = np.asarray((images - images.mean()) / images.std())
    return _split(images, labels.astype(np.int32))


def _raw(images, labels):
    """Pixels of 0 to 255 as they are, [N, D]."""
    images, labels = _some(images, labels)
    inputs = images.reshape(len(images), -1).astype(np.float32)
    return _split(inputs, labels.astype(np.int32))


def _some(images, labels, most=12_000):
    order = np.random.default_rng(1).permutation(len(images))[:most]
    return images[order], labels[order]


def _flat(data):
    return Data(*((x.reshape(len(x), -1), y) for x, y in data))


def _mnist(folder):
    with np.load(folder / "mnist" / "mnist.npz") as z:
        return z["x_train"][..., None], z["y_train"]


def _icons(folder, classes=20):
    with np.load(folder / "icons" / "iconify_32x32.npz") as z:
        images, labels = z["images"], z["labels"]
    chosen = labels < classes
    return images[chosen][..., None], labels[chosen]


def _omniglot(folder, classes=50):
    with np.load(folder / "omniglot" / "omniglot_28x28.npz") as z:
        images = z["background"][:classes]
    labels = np.repeat(np.arange(classes), images.shape[1])
    return images.reshape(-1, 28, 28, 1), labels


def _cifar10(folder, count=6000):
    from PIL import Image

    with np.load(folder / "cifar10" / "cifar10_jpeg_pack.npz") as z:
        data, ends, labels = z["train_jpeg"], z["train_offsets"], z["train_labels"]
    chosen = np.random.default_rng(0).choice(len(labels), count, replace=False)
    decode = lambda i: np.asarray(
        Image.open(io.BytesIO(data[ends[i] : ends[i + 1]].tobytes()))
    )
    return np.stack([decode(i) for i in chosen]), labels[chosen]


def _text(folder, length, vocabulary=64):
    """Windows of characters [N, L] and those that follow; the rarest are one."""
    text = np.frombuffer((folder / "text" / "fortunes.txt").read_bytes(), np.uint8)
    common = np.argsort(-np.bincount(text, minlength=256))[: vocabulary - 1]
    code = np.full(256, vocabulary - 1, np.int32)
    code[common] = np.arange(vocabulary - 1)
    text = code[text[: len(text) // (length + 1) * (length + 1)]]
    windows = text.reshape(-1, length + 1)[:12_000]
    return _split(windows[:, :-1], windows[:, 1:])


def _linear(dim=40):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2000, dim)) * np.geomspace(1, 0.01, dim)
    y = x @ draw.normal(size=(dim, 1)) / np.geomspace(1, 0.1, dim).mean()
    return _split(x.astype("f"), (y + 0.05 * draw.normal(size=y.shape)).astype("f"))


def _friedman():
    """Friedman's first function of ten uniform inputs, standardised."""
    draw = np.random.default_rng(0)
    x = draw.random((3000, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4] + draw.normal(size=len(x))
    y = (y - y.mean()) / y.std()
    return _split((x - 0.5).astype("f") * 3, y[:, None].astype("f"))


def _matrix(rows=100, columns=80, rank=8):
    draw = np.random.default_rng(0)
    entries = draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, columns))
    entries = entries / rank**0.5
    pairs = np.stack(
        np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1
    )
    return _split(pairs.reshape(-1, 2), entries.reshape(-1, 1).astype("f"))


def _modular(base):
    pairs = np.stack(np.meshgrid(np.arange(base), np.arange(base), indexing="ij"), -1)
    pairs = pairs.reshape(-1, 2)
    return _split(pairs, (pairs.sum(1) % base).astype(np.int32))


def _picture(size=48):
    """A drawing of rings and waves, by coordinates in [-1, 1]."""
    axis = np.linspace(-1, 1, size)
    place = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    radius = np.hypot(*place.T)
    value = np.sin(12 * radius) * np.exp(-radius) + 0.5 * np.sign(
        place[:, 0] * place[:, 1]
    )
    return _split(place.astype("f"), value[:, None].astype("f"))


# Models that jaxmeta does not have.


def _dense(key, num_inputs, num_outputs):
    kernel = jax.random.normal(key, (num_inputs, num_outputs)) / num_inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros(num_outputs)}


def _apply(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def _recurrent(units, vocabulary=64):
    """An LSTM over embedded characters."""

    def init(key, tokens):
        del tokens
        keys = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(keys[0], (vocabulary, units)) / 3,
            "cell": _dense(keys[1], 2 * units, 4 * units),
            "head": _dense(keys[2], units, vocabulary),
        }

    def apply(params, tokens):
        x = params["embedding"][tokens]

        def step(carry, x):
            hidden, cell = carry
            gates = _apply(params["cell"], jnp.concatenate([x, hidden], -1))
            i, f, o, candidate = jnp.split(gates, 4, -1)
            cell = jax.nn.sigmoid(f + 1) * cell
            cell = cell + jax.nn.sigmoid(i) * jnp.tanh(candidate)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((len(tokens), units))
        _, hidden = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return _apply(params["head"], hidden.swapaxes(0, 1))

    return jm.Model(init, apply)


def _factors(rows=100, columns=80, rank=8):
    def init(key, pairs):
        del pairs
        keys = jax.random.split(key)
        draw = lambda key, size: jax.random.normal(key, (size, rank)) / 3
        return {"rows": draw(keys[0], rows), "columns": draw(keys[1], columns)}

    def apply(params, pairs):
        product = params["rows"][pairs[:, 0]] * params["columns"][pairs[:, 1]]
        return jnp.sum(product, -1, keepdims=True)

    return jm.Model(init, apply)


def _adder(base, dim=32):
    def init(key, pairs):
        del pairs
        keys = jax.random.split(key, 3)
        return {
            "embedding": jax.random.normal(keys[0], (base, dim)) / 2,
            "hidden": _dense(keys[1], 2 * dim, 96),
            "head": _dense(keys[2], 96, base),
        }

    def apply(params, pairs):
        x = params["embedding"][pairs].reshape(len(pairs), -1)
        return _apply(params["head"], jax.nn.relu(_apply(params["hidden"], x)))

    return jm.Model(init, apply)


def _fourier(units):
    """Sines of random waves, then two layers: an image by its coordinates."""
    waves = jnp.asarray(4 * np.random.default_rng(0).normal(size=(2, 32)), jnp.float32)
    net = jm.models.MLP([units, units, 1], activation=jax.nn.gelu)
    features = lambda x: jnp.concatenate([jnp.sin(x @ waves), jnp.cos(x @ waves)], -1)
    return jm.Model(
        init=lambda key, x: net.init(key, features(x)),
        apply=lambda params, x: net.apply(params, features(x)),
    )
