"""Training a classifier as a family of optimization problems."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxmeta import _checks, _model, base, losses


def classification(
    inputs: Any,
    labels: Any,
    model: base.ModelLike,
    *,
    batch_size: int = 128,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy,
    init_scale: float | None = None,
) -> base.OptimizationProblem:
    """Trains `model` on minibatches of one data set; runs differ in initialisation.

    Args:
      inputs: [N, ...], stored once on the device: uint8 pixels, flat ones too (scaled
        to [0, 1]), floats, or other integers, such as token ids (unchanged).
      labels: [N] integers, or [N, W].
      model: `(inputs [B, ...]) -> logits [B, W]`.
      batch_size: B, examples per step, drawn with replacement. Static.
      loss: `(logits, labels) -> scalar`, the loss of a batch.
      init_scale: standard deviation of normal initial parameters, as in the paper (0.01
        in its code); None is the model's own initialisation.

    Returns:
      An `OptimizationProblem`; its `loss`, and its `full_loss` over all N examples, are
      `jax.tree_util.Partial` whose leaves are the data.

    Raises:
      ValueError: if there are no examples, inputs and labels differ in number, or the
        model has no output for a label.

    Warns:
      UserWarning: if floating-point inputs exceed 100 in size, as raw pixels do.

    References:
      Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
      NeurIPS 2016, Section 3.2. https://arxiv.org/abs/1606.04474

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> inputs, labels = jnp.ones((6, 4)), jnp.array([0, 1, 2, 0, 1, 2])
      >>> problem = classification(inputs, labels, jm.models.MLP([3]), batch_size=2)
      >>> params = problem.init(jax.random.key(0), None)
      >>> problem.loss(params, None, jax.random.key(1)).shape
      ()
    """
    _checks.check_int("batch_size", batch_size)
    inputs, labels = jnp.asarray(np.asarray(inputs)), jnp.asarray(np.asarray(labels))
    if not inputs.shape or not inputs.size or inputs.shape[0] != labels.shape[0]:
        raise ValueError(
            "`inputs` and `labels` must have the same, positive number of examples, "
            f"got shapes {inputs.shape} and {labels.shape}."
        )
    is_float = jnp.issubdtype(inputs.dtype, jnp.floating)
    if is_float and (largest := float(jnp.max(jnp.abs(inputs)))) > 100:
        warnings.warn(
            f"`inputs` reach {largest:g}. Networks hardly train on such numbers: scale "
            "them to about [-1, 1] or unit variance, or give pixels as uint8.",
            stacklevel=2,
        )
    net = _model.normalize(model)
    # One example of zeros in the dtype the model will see, to initialise it.
    first = jnp.zeros((1, *inputs.shape[1:]), to_float(inputs[:0]).dtype)
    if loss is losses.cross_entropy and labels.ndim == 1:
        _check_labels(net, first, labels)

    def sample(key):
        del key  # The data are the same in every run.

    def init(key, instance):
        del instance
        model_key, noise_key = jax.random.split(key)
        params = net.init(model_key, first)
        if init_scale is None:
            return params
        scale = init_scale
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(noise_key, len(leaves))
        draw = lambda k, x: scale * jax.random.normal(k, x.shape, x.dtype)
        return treedef.unflatten(map(draw, keys, leaves))

    def batch_loss(data, params, instance, key):
        chosen = jax.random.randint(key, (batch_size,), 0, data[0].shape[0])
        batch = tuple(jnp.take(x, chosen, 0) for x in data)
        return full_loss(batch, params, instance)

    def full_loss(data, params, instance):
        del instance
        inputs, labels = data
        return loss(net.apply(params, to_float(inputs)), labels)

    data = inputs, labels
    losses_of = (Partial(fn, data) for fn in (batch_loss, full_loss))
    return base.OptimizationProblem(sample, init, *losses_of)


def _check_labels(net, first, labels):
    """Raises for labels that no output has: their cross-entropy would be NaN."""
    pair = jnp.concatenate([first, first])  # Of one, batch normalisation is constant.
    outputs = jax.eval_shape(
        lambda key: net.apply(net.init(key, first), pair), jax.random.key(0)
    )
    count = outputs.shape[-1]
    lowest, highest = int(jnp.min(labels)), int(jnp.max(labels))
    if lowest < 0 or highest >= count:
        raise ValueError(
            f"`labels` must be 0 ... {count - 1} for a model with {count} outputs, got "
            f"{lowest} ... {highest}: give the model as many outputs as there are "
            "classes, and count these from 0."
        )


def to_float(inputs):
    """Pixels of bytes as numbers in [0, 1]; others as they are."""
    if inputs.dtype == jnp.uint8:
        return inputs.astype(jnp.result_type(float)) / 255
    return inputs
