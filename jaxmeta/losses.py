"""Losses and metrics of one batch of outputs, averaged over examples.

Each takes `(outputs [N, ...], targets [N, ...])`. Class targets may be one-hot
[N, W] or integer labels [N]. An all-zero row in one-hot targets is padding: it is
excluded from the mean, so padding does not change the loss.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxmeta import base


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean of `(outputs - targets) ** 2` over examples and dimensions.

    All-zero targets are ordinary targets here, not padding.

    Args:
      outputs: [N, ...].
      targets: [N, ...], the same shape.

    Raises:
      ValueError: if the shapes differ (they would broadcast silently).

    Example:
      >>> import jax.numpy as jnp
      >>> print(squared_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])))
      2.5
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"`targets` must have the shape of `outputs`, {outputs.shape}, got "
            f"{targets.shape}."
        )
    return jnp.mean(jnp.square(outputs - targets))


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean softmax cross-entropy of logits, in nats.

    Args:
      outputs: logits [N, W].
      targets: one-hot or class probabilities [N, W], with all-zero rows as padding; or
        integer labels [N] in 0 ... W - 1; the loss of any other label is NaN.

    Returns:
      [], the mean over the examples; 0 if all rows are padding.

    Raises:
      ValueError: if the shapes do not match or labels are floats.

    Example:
      >>> import jax.numpy as jnp
      >>> print(round(float(cross_entropy(jnp.zeros((3, 4)), jnp.array([0, 1, 2]))), 4))
      1.3863
    """
    targets = _probabilities(outputs, targets)
    return mean_over_examples(optax.softmax_cross_entropy(outputs, targets), targets)


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the share of examples whose largest logit is the target's class.

    NaN if any logit is NaN.

    Args:
      outputs: logits [N, W].
      targets: one-hot [N, W], with all-zero rows as padding; or integer labels [N].

    Returns:
      []; 0 if all rows are padding.

    Example:
      >>> import jax.numpy as jnp
      >>> outputs = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
      >>> print(accuracy(outputs[:2], jnp.array([0, 1])))
      0.5
      >>> print(accuracy(outputs, jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])))
      0.5
    """
    _check_classes(outputs, targets)
    is_one_hot = targets.ndim == outputs.ndim
    labels = jnp.argmax(targets, -1) if is_one_hot else targets
    dtype = jnp.promote_types(outputs.dtype, jnp.float32)
    hits = (jnp.argmax(outputs, -1) == labels).astype(dtype)
    hits = jnp.where(jnp.any(jnp.isnan(outputs), -1), jnp.nan, hits)
    return mean_over_examples(hits, targets) if is_one_hot else jnp.mean(hits)


def is_example(targets: jax.Array) -> jax.Array:
    """Returns which rows [N] of one-hot targets [N, W] are examples, not padding.

    Example:
      >>> import jax.numpy as jnp
      >>> is_example(jnp.array([[0.0, 1.0], [0.0, 0.0]])).tolist()
      [True, False]
    """
    return jnp.any(targets != 0, -1)  # True for NaN, which must not count as padding.


def mean_over_examples(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean of `values` over the rows that are examples, not padding.

    For custom losses: padded rows contribute neither value nor gradient.

    Args:
      values: [N], one per row.
      targets: one-hot [N, W]; all-zero rows are padding.

    Returns:
      []; 0 if all rows are padding.

    Example:
      >>> import jax.numpy as jnp
      >>> targets = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
      >>> print(mean_over_examples(jnp.array([1.0, 3.0, 100.0]), targets))
      2.0
    """
    is_real = is_example(targets)
    values = jnp.where(is_real, values, 0)
    # If all rows are padding, average all the zeros instead of 0 / 0.
    return jnp.mean(values, where=is_real | ~jnp.any(is_real))


def default_metrics(loss: base.LossFn) -> Mapping[str, base.MetricFn]:
    """Returns the metrics to report besides `loss`: accuracy for cross-entropy."""
    return {"accuracy": accuracy} if loss is cross_entropy else {}


def _probabilities(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    _check_classes(outputs, targets)
    if targets.ndim == outputs.ndim:
        return targets
    num_classes = outputs.shape[-1]
    one_hot = jax.nn.one_hot(targets, num_classes, dtype=outputs.dtype)
    is_class = (targets >= 0) & (targets < num_classes)
    return jnp.where(is_class[..., None], one_hot, jnp.nan)


def _check_classes(outputs: jax.Array, targets: jax.Array) -> None:
    if outputs.ndim < 2:
        raise ValueError(f"`outputs` must be logits [N, W], got {outputs.shape}.")
    if targets.shape == outputs.shape:
        return
    if targets.shape == (*outputs.shape[:-1], 1):
        raise ValueError(
            f"`targets` must be one-hot {outputs.shape} or integer labels "
            f"{outputs.shape[:-1]}, got one column {targets.shape}: pass "
            "`targets[:, 0]`."
        )
    if targets.shape[:-1] == outputs.shape[:-1] and targets.ndim == outputs.ndim:
        raise ValueError(
            f"The model has {outputs.shape[-1]} outputs, but `targets` have "
            f"{targets.shape[-1]} classes: give the model as many outputs."
        )
    if targets.shape != outputs.shape[:-1]:
        raise ValueError(
            f"`targets` must be one-hot {outputs.shape} or integer labels "
            f"{outputs.shape[:-1]} for logits {outputs.shape}, got {targets.shape}."
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"`targets` of shape {targets.shape} are labels and must be integers, got "
            f"{targets.dtype}: use `targets.astype(int)`."
        )
