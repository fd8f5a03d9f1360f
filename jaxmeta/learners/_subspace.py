"""Adaptive subspaces (DSN).

References:
  Simon, Koniusz, Nock, Harandi, "Adaptive Subspaces for Few-Shot Learning", CVPR 2020,
  equations 3 to 7. https://doi.org/10.1109/CVPR42600.2020.00419
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _describe, base, losses
from jaxmeta.learners import _embeddings, _metric


class SubspaceParams(NamedTuple):
    """Learned parameters of `subspace` besides the embedding."""

    log_scale: jax.Array  # []


class Subspaces(NamedTuple):
    """An affine subspace for each class."""

    means: jax.Array  # [W, D]
    bases: jax.Array  # [W, N, D]; rows are orthonormal or zero


def subspace(
    model: base.ModelLike,
    *,
    scale: float = 1.0,
    discriminative: float = 0.03,
    flip: bool = False,
    loss: base.LossFn = losses.cross_entropy,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding in which each class lies near its own subspace.

    The subspace of class :math:`c` is the span of its support embeddings less their
    mean :math:`\mu_c`, with projector :math:`P_c`. A query's logits are

    .. math::
      z_c(x) = -\alpha \|(I - P_c)(f(x) - \mu_c)\|^2,

    and meta-training adds :math:`\lambda \sum_{i \ne j} \|P_i^\top P_j\|_F^2`, which
    pushes the subspaces apart.

    Args:
      model: the embedding, anything with `init(key, inputs)` and
        `apply(params, inputs)`; its output is flattened to [N, D].
      scale: initial alpha; meta-learned as a logarithm, so it stays positive.
      discriminative: lambda.
      flip: add the mirror image of every support image [N, H, W, channels], as the
        paper does for one shot: a single example spans nothing, which reduces the
        learner to `prototypical`. Static.
      loss: `(logits [Q, W], targets [Q, W]) -> scalar`, a mean over Q.
      metrics: name -> `(logits, targets) -> scalar`. None: accuracy for
        `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner`. Its meta-parameters are `MetricParams(params, head_params)`, the
      latter `SubspaceParams`. Ways and shots may differ from task to task; a class
      without support examples is never predicted, and rows of zeros in targets are
      padding.

    Raises:
      ValueError: if `scale` is not positive or `discriminative` is negative; while
        tracing, if `flip` is used without images, targets are not one-hot, support and
        query differ in classes, a set is ragged or empty, or parameters are not floats.

    Differs from the paper: the subspace is the whole span, of K - 1 dimensions for K
    shots, as in the paper's experiments; it cannot be truncated. It is computed by a
    Cholesky decomposition, because singular vectors have no derivative where singular
    values coincide; directions in which a class spreads by less than the rounding error
    are damped. The released code for ResNet-12 decomposes the embeddings without
    subtracting their mean, and divides distances by D; that for Conv4 does not square
    them.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import subspace
      >>> learner = subspace(jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x))
      >>> support = jm.Examples(
      ...     inputs=jnp.array([[0.0, 1.0], [2.0, 1.0], [5.0, 0.0]]),
      ...     targets=jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
      ... )
      >>> key, task = jax.random.key(0), jm.Task(support, support)
      >>> task_params, _ = learner.adapt(key, learner.init(key, task), support)
      >>> logits = learner.predict(task_params, jnp.array([[9.0, 3.0]]))
      >>> print(logits.round(2))  # 2 from the line y = 1, (4, 3) from the point (5, 0)
      [[ -4. -25.]]
    """
    description = _describe.describe(subspace, locals())
    _checks.check_positive("scale", scale)
    _checks.check_not_negative("discriminative", discriminative)
    if metrics is None:
        metrics = losses.default_metrics(loss)

    def init(key, support):
        del key, support
        return SubspaceParams(jnp.asarray(jnp.log(scale), jnp.result_type(float)))

    def fit(head_params, support, **options):
        del head_params, options
        means = _embeddings.class_means(support)
        damping = _damping(support)
        bases = jax.vmap(_basis, (None, 0, 1, None))(
            support.inputs, means, support.targets, damping
        )
        return Subspaces(means, bases), None

    def logits(head_params, subspaces, embeddings, **options):
        del options
        distances = jax.vmap(_squared_distances, (0, 0, None), 1)(
            subspaces.means, subspaces.bases, embeddings
        )
        return -jnp.exp(head_params.log_scale) * distances

    def overlap(head_params, subspaces, support, query):
        """The regularizer over pairs of classes: |P_i^T P_j|_F = |B_i B_j^T|_F."""
        del head_params, support, query
        ways, num_examples, size = subspaces.bases.shape
        # Squared inner products of all basis vectors, [W N, W N], summed over each pair
        # of classes, [W, W]; the diagonal i = j is excluded.
        bases = subspaces.bases.reshape(-1, size)
        products = jnp.square(jnp.matmul(bases, bases.T, precision="highest"))
        blocks = products.reshape(ways, num_examples, ways, num_examples).sum((1, 3))
        return discriminative * jnp.sum(
            blocks * (1 - jnp.eye(ways, dtype=blocks.dtype))
        )

    return _metric.metric_learner(
        model,
        _metric.Head(fit, logits, init, overlap if discriminative else None),
        loss=loss,
        metrics=metrics,
        augment=_with_mirror_images if flip else None,
        description=description,
    )


def _damping(support):
    """The damping that lifts a singular A A^T above its rounding error.

    The error scales with the embeddings before centring.
    """
    is_example = losses.is_example(support.targets)
    squares = jnp.sum(jnp.square(support.inputs), -1)
    largest = jnp.max(jnp.where(is_example, squares, 0))
    num_examples = jnp.sum(is_example).astype(squares.dtype)
    # About N eps max |x|^2; 10 is margin, and 1e-12 serves embeddings of zeros.
    return 10 * num_examples * jnp.finfo(squares.dtype).eps * largest + 1e-12


def _basis(embeddings, mean, weights, damping):
    """Returns an orthonormal basis of one class, rows [N, D]; surplus rows are zero.

    With A A^T = L L^T, the rows of L^-1 A are orthonormal and span the rows of A.
    """
    dtype, num_examples = embeddings.dtype, embeddings.shape[0]
    # Zero rows for the examples of other classes.
    # `_or_one`: the derivative of sqrt is infinite at the zeros that `where` drops.
    centred = jnp.sqrt(_or_one(weights))[:, None] * (embeddings - mean[None])
    centred = jnp.where((weights > 0)[:, None], centred, 0)  # [N, D]
    # A A^T is always singular: the centred rows sum to zero.
    with jax.default_matmul_precision("highest"):
        gram = centred @ centred.T + damping * jnp.eye(num_examples, dtype=dtype)
        factor = jnp.linalg.cholesky(gram)
        return jax.scipy.linalg.solve_triangular(factor, centred, lower=True)


def _or_one(weights):
    return jnp.where(weights > 0, weights, 1)


def _squared_distances(mean, basis, embeddings):
    """Squared distances [Q] of embeddings [Q, D] to one affine subspace."""
    centred = embeddings - mean[None]
    with jax.default_matmul_precision("highest"):
        outside = centred - (centred @ basis.T) @ basis
    return jnp.sum(jnp.square(outside), -1)


def _with_mirror_images(examples):
    """Appends every image mirrored left to right."""
    for image in jax.tree.leaves(examples.inputs):
        if jnp.ndim(image) != 4:
            raise ValueError(
                "`flip` requires images [N, H, W, channels] as support, got shape "
                f"{jnp.shape(image)}."
            )
    mirrored = base.Examples(
        jax.tree.map(lambda x: x[:, :, ::-1], examples.inputs), examples.targets
    )
    return jax.tree.map(lambda *x: jnp.concatenate(x), examples, mirrored)
