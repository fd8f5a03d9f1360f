"""Families of supervised problems that draw a data set for every run."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxmeta import _checks, _model, _pytrees, base, losses, models
from jaxmeta.problems import _scaling
from jaxmeta.tasks import _glyphs


def supervised(
    draw: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    model: base.ModelLike,
    loss: base.LossFn = losses.cross_entropy,
    *,
    batch_size: int | tuple[int, int] = 32,
    start_spread: float = 0.0,
) -> base.OptimizationProblem:
    """Trains `model` on a data set that each run draws for itself.

    Args:
      draw: `(key) -> (inputs [N, ...], targets [N, ...])`, the data of a run.
      model: `(inputs [B, ...]) -> outputs [B, ...]`.
      loss: `(outputs, targets) -> scalar`, the loss of a batch.
      batch_size: B, examples per step, drawn with replacement; or the least and the
        most, of which each run draws its own, uniformly in the logarithm. A step of the
        most examples, some of them repeated, takes as long for all. Static.
      start_spread: initial parameters are scaled by a common factor whose logarithm is
        normal with this deviation.

    Returns:
      An `OptimizationProblem` with a `full_loss`, over all N examples. Its instances
      are `draw`'s inputs and targets and, if it is drawn, the batch size.

    Raises:
      ValueError: if `batch_size` is not positive or a pair not ordered, or
        `start_spread` negative.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> def draw(key):
      ...     x = jax.random.normal(key, (50, 3))
      ...     return x, jnp.sum(x, 1, keepdims=True)
      >>> model, loss = jm.models.MLP([1]), jm.losses.squared_error
      >>> problem = supervised(draw, model, loss, batch_size=8)
      >>> key = jax.random.key(0)
      >>> instance = problem.sample(key)
      >>> params = problem.init(key, instance)
      >>> problem.full_loss(params, instance).shape
      ()
    """
    least, most = (batch_size,) * 2 if isinstance(batch_size, int) else batch_size
    _checks.check_int("batch_size", least)
    if most < least:
        raise ValueError(f"`batch_size` must be (least, most), got {batch_size}.")
    if start_spread < 0:
        raise ValueError(f"`start_spread` must not be negative, got {start_spread}.")
    net = _model.normalize(model)

    def sample(draw, key):
        if least == most:
            return draw(key)
        key, size_key = jax.random.split(key)
        log_size = jax.random.uniform(
            size_key, minval=math.log(least), maxval=math.log(most + 1)
        )
        return *draw(key), jnp.minimum(jnp.exp(log_size).astype(int), most)

    def init(key, instance):
        model_key, spread_key = jax.random.split(key)
        params = net.init(model_key, instance[0][:1])
        factor = jnp.exp(start_spread * jax.random.normal(spread_key))
        return jax.tree.map(lambda p: (factor * p).astype(p.dtype), params)

    def full_loss(params, instance):
        inputs, targets = instance[:2]
        return loss(net.apply(params, inputs), targets)

    def batch_loss(params, instance, key):
        inputs, targets, *size = instance
        chosen = jax.random.randint(key, (most,), 0, inputs.shape[0])
        if size:  # The first of them, again and again: about their mean.
            chosen = chosen[jnp.arange(most) % size[0]]
        return full_loss(params, (inputs[chosen], targets[chosen]))

    return base.OptimizationProblem(
        Partial(sample, _pytrees.as_partial(draw)), init, batch_loss, full_loss
    )


def small_networks() -> dict[str, base.OptimizationProblem]:
    """Seventeen unlike families of 100 to 3,000 parameters, for meta-training.

    Perceptrons of several depths and activations, autoencoders, convolutions, a
    recurrent and an attention network, linear classifiers with and without noise, and a
    factorisation; on drawings of invented characters (`tasks.glyphs`) and synthetic
    data, so that nothing has to be downloaded. Inputs are standardised, but of two:
    pixels up to a thousand, and features of a table in units of their own. Half of the
    runs of most families have every tensor scaled at random: what an optimizer learns
    must not hang on one parametrisation.

    Returns:
      name -> `OptimizationProblem`, each with a `full_loss`.

    Example:
      >>> sorted(small_networks())[:3]
      ['attention', 'autoencoder', 'blobs']
    """
    relu, sigmoid, tanh, gelu = jax.nn.relu, jax.nn.sigmoid, jnp.tanh, jax.nn.gelu
    entropy, mse = losses.cross_entropy, losses.squared_error
    mlp = lambda sizes, activation=relu: models.MLP(sizes, activation=activation)
    linear = lambda outputs: models.MLP([outputs])
    net = _model.normalize(mlp([14, 5, 14, 49], tanh))
    autoencoder = base.Model(
        init=net.init, apply=lambda params, x: sigmoid(net.apply(params, x))
    )
    small, large = _drawings(_bank(7)), _drawings(_bank(12))
    families = {
        "perceptron": supervised(
            _projected(large, 24),
            mlp([20, 16, 10]),
            entropy,
            batch_size=24,
            start_spread=0.4,
        ),
        "sigmoid": supervised(small, mlp([10, 10], sigmoid), entropy, start_spread=0.4),
        "teacher": supervised(_teacher, mlp([20, 20, 2], gelu), mse, batch_size=16),
        "autoencoder": supervised(
            _reconstruction(small), autoencoder, mse, batch_size=16
        ),
        "relu_autoencoder": supervised(
            _reconstruction(small), mlp([20, 6, 20, 49]), mse, batch_size=16
        ),
        "relu_regression": supervised(
            _teacher, mlp([16, 16, 16, 16, 2]), mse, batch_size=16
        ),
        "wide": supervised(
            _projected(large, 24), mlp([40, 40, 10], jax.nn.elu), entropy, batch_size=24
        ),
        "convolutional": supervised(
            _patches(large), _convolutional(), entropy, batch_size=12
        ),
        "recurrent": supervised(_sequences, _recurrent(14), entropy, batch_size=24),
        "attention": supervised(_sequences, _attention(10), entropy, batch_size=16),
        "deep": supervised(_waves, mlp([16, 16, 16, 3], tanh), entropy, batch_size=24),
        "noisy_linear": supervised(
            _linear_classes(20, 5, 0.8, 1.5), linear(5), entropy, batch_size=64
        ),
        "linear": supervised(
            _linear_classes(24, 4, 0.5, 0.0), linear(4), entropy, batch_size=48
        ),
        "blobs": supervised(_blobs, mlp([16, 16, 2]), entropy, batch_size=24),
        "factorisation": supervised(_matrix, _factors(3), mse, batch_size=32),
        "unscaled": supervised(
            _unscaled(small), mlp([20, 16, 10]), entropy, batch_size=24
        ),
        "table": supervised(_table, mlp([20, 16, 1]), mse, batch_size=16),
    }
    unscaled = ("noisy_linear", "linear")
    return {
        name: family
        if name in unscaled
        else _scaling.random_scaling(family, 1.0, per="tensor", share=0.5)
        for name, family in families.items()
    }


def larger_networks() -> dict[str, base.OptimizationProblem]:
    """Five families of 4,000 to 10,000 parameters, to validate what was meta-trained.

    Autoencoders of drawings with ReLU and swish, ReLU classifiers of twenty characters,
    of standardised pixels and of those up to a thousand, and a regression with six ReLU
    layers: larger than those of `small_networks`, on images of another resolution and
    another function. On the first a rule whose rates are too high kills units.

    Returns:
      name -> `OptimizationProblem`, each with a `full_loss`.

    Example:
      >>> sorted(larger_networks())[:2]
      ['deep_regression', 'relu_classifier']
    """
    relu, swish, mse = jax.nn.relu, jax.nn.swish, losses.squared_error
    mlp = lambda sizes, activation: models.MLP(sizes, activation=activation)
    bank = _bank(9, characters=60)
    drawings, images = _drawings(bank, classes=20), _pixels(_drawings(bank))
    return {
        "relu_reconstruction": supervised(images, mlp([48, 10, 48, 81], relu), mse),
        "swish_reconstruction": supervised(images, mlp([32, 8, 32, 81], swish), mse),
        "relu_classifier": supervised(drawings, mlp([64, 48, 20], relu), batch_size=64),
        "deep_regression": supervised(_ripples, mlp([28] * 6 + [1], relu), mse),
        "unscaled_classifier": supervised(
            _unscaled(drawings), mlp([64, 48, 20], relu), batch_size=64
        ),
    }


def _pixels(draw):
    """Standardised drawings, which an autoencoder is to return."""

    def pixels(draw, key):
        x, _ = draw(key)
        return x, x

    return Partial(pixels, draw)


def _ripples(key):
    """A sum of plane waves of four inputs."""
    x_key, direction_key, phase_key, size_key = jax.random.split(key, 4)
    x = jax.random.uniform(x_key, (600, 4), minval=-1, maxval=1)
    phase = 3 * jax.random.normal(phase_key, (1, 6))
    waves = jnp.sin(2 * x @ jax.random.normal(direction_key, (4, 6)) + phase)
    return x, waves @ jax.random.normal(size_key, (6, 1)) / 1.7


def _drawings(bank, count=32, classes=10):
    """Drawings of invented characters [classes * count, D], and which."""

    def draw(bank, key):
        character_key, drawing_key = jax.random.split(key)
        characters, drawings, dim = bank.shape
        chosen = jax.random.choice(character_key, characters, (classes,), replace=False)
        first = jax.random.randint(drawing_key, (), 0, drawings)
        images = jnp.roll(bank[chosen], first, 1)[:, :count]
        return images.reshape(-1, dim), jnp.repeat(jnp.arange(classes), count)

    return Partial(draw, bank)


def _bank(size, characters=100, drawings=64):
    """Standardised drawings of characters, [characters, drawings, size^2]."""
    sample = _glyphs.glyphs(ways=characters, shots=drawings, queries=1, size=2 * size)
    images = jax.jit(sample)(jax.random.key(0)).support.inputs
    images = images.reshape(characters, drawings, size, 2, size, 2)
    images = jnp.mean(images, (3, 5)).reshape(characters, drawings, -1)
    return (images - jnp.mean(images)) / jnp.std(images)


def _projected(draw, dim):
    """The drawings' projections on `dim` random directions."""

    def projected(draw, key):
        key, projection_key = jax.random.split(key)
        x, labels = draw(key)
        size = x.shape[-1]
        return x @ jax.random.normal(projection_key, (size, dim)) / size**0.5, labels

    return Partial(projected, draw)


def _reconstruction(draw):
    """Drawings in [0, 1], which an autoencoder is to return."""

    def reconstruction(draw, key):
        x, _ = draw(key)
        x = _in_unit(x)
        return x, x

    return Partial(reconstruction, draw)


def _unscaled(draw):
    """Drawings from 0 to a common maximum, 1 to 1,000."""

    def unscaled(draw, key):
        key, maximum_key = jax.random.split(key)
        x, labels = draw(key)
        maximum = 10 ** jax.random.uniform(maximum_key, maxval=3)
        return maximum * _in_unit(x), labels

    return Partial(unscaled, draw)


def _in_unit(x):
    """Drawings from 0 to 1."""
    return (x - jnp.min(x)) / (jnp.max(x) - jnp.min(x))


def _table(key):
    """The teacher's first output; its inputs have units and offsets of their own."""
    key, unit_key, offset_key = jax.random.split(key, 3)
    x, y = _teacher(key)
    shape = (1, x.shape[1])
    units = jnp.exp(2 * jax.random.normal(unit_key, shape))
    offsets = 2 * jax.random.normal(offset_key, shape)
    return units * (x + offsets), y[:, :1]


def _patches(draw):
    """Nine patches of 4 x 4 pixels of each drawing, [N, 9, 16]."""

    def patches(draw, key):
        x, labels = draw(key)
        x = x.reshape(-1, 3, 4, 3, 4).swapaxes(2, 3)
        return x.reshape(-1, 9, 16), labels

    return Partial(patches, draw)


def _teacher(key):
    """What a network of 12 units says of normal inputs."""
    x_key, in_key, out_key, noise_key = jax.random.split(key, 4)
    x = jax.random.normal(x_key, (384, 8))
    hidden = jnp.tanh(x @ jax.random.normal(in_key, (8, 12)) / 1.5)
    y = hidden @ jax.random.normal(out_key, (12, 2)) / 3
    return x, y + 0.02 * jax.random.normal(noise_key, y.shape)


def _sequences(key):
    """Sequences of six tokens [N, 6, 6], one-hot; two pairs of them vote on a class."""
    token_key, vote_key = jax.random.split(key)
    x = jax.random.randint(token_key, (384, 6), 0, 6)
    votes = jax.random.normal(vote_key, (6, 6, 3))
    labels = jnp.argmax(votes[x[:, 1], x[:, 4]] + votes[x[:, 2], x[:, 0]], -1)
    return jax.nn.one_hot(x, 6), labels


def _waves(key):
    """Classes of points in space, bounded by sums of waves."""
    x_key, direction_key, phase_key, class_key = jax.random.split(key, 4)
    x = 1.5 * jax.random.normal(x_key, (384, 3))
    phase = 3 * jax.random.normal(phase_key, (1, 12))
    waves = jnp.sin(1.2 * x @ jax.random.normal(direction_key, (3, 12)) + phase)
    return x, jnp.argmax(waves @ jax.random.normal(class_key, (12, 3)), -1)


def _linear_classes(dim, classes, spread, noise):
    """Linear classes of inputs whose features differ in scale; Gumbel noise on half."""

    def draw(key):
        x_key, scale_key, class_key, noise_key, coin_key = jax.random.split(key, 5)
        x = jax.random.normal(x_key, (384, dim))
        x = x * jnp.exp(spread * jax.random.normal(scale_key, (1, dim)))
        logits = x @ jax.random.normal(class_key, (dim, classes))
        share = jnp.maximum(noise, jax.random.bernoulli(coin_key))
        logits = logits + share * jax.random.gumbel(noise_key, logits.shape)
        return x, jnp.argmax(logits, -1)

    return draw


def _blobs(key):
    """Two clusters, most of which a plane separates."""
    label_key, centre_key, noise_key, distance_key = jax.random.split(key, 4)
    labels = jax.random.bernoulli(label_key, 0.5, (200,)).astype(jnp.int32)
    centre = jax.random.normal(centre_key, (1, 12))
    distance = jax.random.uniform(distance_key, (), minval=0.3, maxval=0.8)
    x = jax.random.normal(noise_key, (200, 12))
    return x + distance * (2 * labels[:, None] - 1) * centre, labels


def _matrix(key):
    """Pairs of rows and columns [N, 2] of a 24 x 16 matrix of rank 3, and entries."""
    left_key, right_key, noise_key = jax.random.split(key, 3)
    left = jax.random.normal(left_key, (24, 3))
    right = jax.random.normal(right_key, (3, 16))
    entries = (left @ right).reshape(-1, 1) / 1.7
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(24), jnp.arange(16), indexing="ij"), -1)
    noise = 0.05 * jax.random.normal(noise_key, entries.shape)
    return pairs.reshape(-1, 2), entries + noise


def _dense(key, num_inputs, num_outputs, gain=1.0):
    scale = gain / num_inputs**0.5
    return {
        "kernel": scale * jax.random.normal(key, (num_inputs, num_outputs)),
        "bias": jnp.zeros(num_outputs),
    }


def _apply(layer, x):
    bias = layer["bias"]
    return x @ layer["kernel"] + bias.reshape(*[1] * (x.ndim - 1), -1)


def _convolutional(features=8):
    """One layer for all nine patches, and two dense ones."""

    def init(key, inputs):
        del inputs
        keys = jax.random.split(key, 3)
        return {
            "patch": _dense(keys[0], 16, features, 1.4),
            "hidden": _dense(keys[1], 9 * features, 16, 1.4),
            "head": _dense(keys[2], 16, 10),
        }

    def apply(params, x):
        x = jax.nn.relu(_apply(params["patch"], x)).reshape(x.shape[0], -1)
        return _apply(params["head"], jax.nn.relu(_apply(params["hidden"], x)))

    return base.Model(init, apply)


def _recurrent(units):
    """A minimal gated unit over sequences [N, L, V]."""

    def init(key, inputs):
        gate_key, head_key = jax.random.split(key)
        return {
            "gate": _dense(gate_key, inputs.shape[-1] + units, 2 * units),
            "head": _dense(head_key, units, 3),
        }

    def apply(params, x):
        def step(hidden, token):
            out = _apply(params["gate"], jnp.concatenate([token, hidden], -1))
            gate, candidate = jnp.split(out, 2, -1)
            gate = jax.nn.sigmoid(gate)
            return gate * hidden + (1 - gate) * jnp.tanh(candidate), None

        hidden = jnp.zeros((x.shape[0], units))
        hidden, _ = jax.lax.scan(step, hidden, x.swapaxes(0, 1))
        return _apply(params["head"], hidden)

    return base.Model(init, apply)


def _attention(dim):
    """One head of attention, layer normalisation and two dense layers."""

    def init(key, inputs):
        _, length, vocabulary = inputs.shape
        keys = jax.random.split(key, 6)
        return {
            "embedding": jax.random.normal(keys[0], (vocabulary, dim)) / 2,
            "position": jax.random.normal(keys[1], (length, dim)) / 2,
            "qkv": _dense(keys[2], dim, 3 * dim),
            "output": _dense(keys[3], dim, dim),
            "hidden": _dense(keys[4], dim, 2 * dim, 1.4),
            "head": _dense(keys[5], 2 * dim, 3),
        }

    def apply(params, x):
        x = x @ params["embedding"] + params["position"][None]
        q, k, v = jnp.split(_apply(params["qkv"], x), 3, -1)
        weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / dim**0.5)
        x = x + _apply(params["output"], weights @ v)
        x = jax.nn.standardize(x, epsilon=1e-5)
        x = jax.nn.gelu(_apply(params["hidden"], jnp.mean(x, 1)))
        return _apply(params["head"], x)

    return base.Model(init, apply)


def _factors(rank):
    """Products of a row's and a column's vector."""

    def init(key, inputs):
        del inputs
        row_key, column_key = jax.random.split(key)
        return {
            "rows": jax.random.normal(row_key, (24, rank)) / 2,
            "columns": jax.random.normal(column_key, (16, rank)) / 2,
        }

    def apply(params, pairs):
        rows, columns = params["rows"][pairs[:, 0]], params["columns"][pairs[:, 1]]
        return jnp.sum(rows * columns, -1, keepdims=True)

    return base.Model(init, apply)
