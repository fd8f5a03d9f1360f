"""Synthetic problems: every instance draws its own data distribution.

They test whether an optimizer generalises beyond the problems it was trained on.
"""

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _model, base, losses


def softmax_regression(
    dim: int = 20,
    classes: int = 5,
    *,
    margin: float = 1.0,
    batch_size: int = 64,
) -> base.OptimizationProblem:
    """Linear classification of Gaussian clusters; convex.

    Args:
      dim: D, features.
      classes: W.
      margin: standard deviation of the cluster centres; the clusters' own is 1.
      batch_size: examples per step, always fresh. Static.

    Raises:
      ValueError: if a size is not a positive int, or `margin` not positive.

    Example:
      >>> import jax, jaxmeta as jm
      >>> problem = softmax_regression(dim=3, classes=2)
      >>> key = jax.random.key(0)
      >>> params = problem.init(key, problem.sample(key))
      >>> jax.tree.map(lambda p: p.shape, params)
      {'bias': (2,), 'kernel': (3, 2)}
    """
    for name, value in {
        "dim": dim,
        "classes": classes,
        "batch_size": batch_size,
    }.items():
        _checks.check_int(name, value)
    _checks.check_positive("margin", margin)

    def sample(key):
        return margin * jax.random.normal(key, (classes, dim))  # centres

    def init(key, instance):
        del instance
        kernel = 0.01 * jax.random.normal(key, (dim, classes))
        return {"kernel": kernel, "bias": jnp.zeros(classes)}

    def loss(params, centres, key):
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.randint(label_key, (batch_size,), 0, classes)
        inputs = centres[labels] + jax.random.normal(noise_key, (batch_size, dim))
        logits = inputs @ params["kernel"] + params["bias"][None]
        return losses.cross_entropy(logits, labels)

    return base.OptimizationProblem(sample, init, loss)


def language_model(
    model: base.ModelLike,
    *,
    vocabulary: int = 16,
    length: int = 32,
    sharpness: float = 3.0,
    batch_size: int = 16,
) -> base.OptimizationProblem:
    """Next-token prediction; each token depends on the two before it.

    Args:
      model: `(tokens [N, L]) -> logits [N, L, V]`, e.g. `jaxmeta.models.Transformer()`.
      vocabulary: V, number of tokens. Static.
      length: L. Static.
      sharpness: standard deviation of the transition logits.
      batch_size: N, sequences per step, always fresh. Static.

    Raises:
      ValueError: if a size is not a positive int, or `sharpness` not positive.

    Example:
      >>> import jax, jaxmeta as jm
      >>> problem = language_model(jm.models.Transformer(), batch_size=2)
      >>> key = jax.random.key(0)
      >>> instance = problem.sample(key)
      >>> problem.loss(problem.init(key, instance), instance, key).shape
      ()
    """
    for name, value in {
        "vocabulary": vocabulary,
        "length": length,
        "batch_size": batch_size,
    }.items():
        _checks.check_int(name, value)
    _checks.check_positive("sharpness", sharpness)

    def sample(key):
        shape = (vocabulary, vocabulary, vocabulary)
        return sharpness * jax.random.normal(key, shape)  # logits of the next token

    net = _model.normalize(model)

    def init(key, instance):
        del instance
        return net.init(key, jnp.zeros((1, length), jnp.int32))

    def draw(key, follows):
        """One sequence [L + 1]."""
        start_key, key = jax.random.split(key)
        pair = jax.random.randint(start_key, (2,), 0, vocabulary)

        def step(pair, key):
            token = jax.random.categorical(key, follows[pair[0], pair[1]])
            return jnp.stack([pair[1], token]), token

        _, tokens = jax.lax.scan(step, pair, jax.random.split(key, length - 1))
        return jnp.concatenate([pair, tokens])

    def loss(params, follows, key):
        keys = jax.random.split(key, batch_size)
        tokens = jax.vmap(draw, (0, None))(keys, follows)
        logits = net.apply(params, tokens[:, :-1])
        return losses.cross_entropy(logits, tokens[:, 1:])

    return base.OptimizationProblem(sample, init, loss)
