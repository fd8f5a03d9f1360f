"""The embedding and the relation module of relation networks.

References:
  Sung et al., "Learning to Compare: Relation Network for Few-Shot Learning", CVPR
  2018, section 3.4 and figure 2. https://arxiv.org/abs/1711.06025
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.models import _conv, _layers, _norm


class RelationEmbedding(nn.Module):
    """Four blocks of 3x3 convolution, normalisation and ReLU; the first two pool.

    Inputs [N, H, W, channels]. Outputs are feature maps [N, H // 4, W // 4, filters],
    which `jaxmeta.learners.relation` compares position by position.

    Attributes:
      filters: filters per convolution.
      norm: "batch" or None.
      statistics: source of the batch statistics for predictions: "batch", the inputs
        predicted together (transductive), or "support", the support set.

    Differs from the released code: all convolutions are padded to keep the size; there
    the first two are not.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images = jnp.ones((5, 28, 28, 1))
      >>> model = RelationEmbedding()
      >>> params = model.init(jax.random.key(0), images)
      >>> model.apply(params, images).shape
      (5, 7, 7, 64)
    """

    filters: int = 64
    norm: str | None = "batch"
    statistics: str = "batch"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps images [N, H, W, channels] to maps [N, H // 4, W // 4, filters]."""
        if inputs.ndim != 4 or min(inputs.shape[1:3]) < 4:
            raise ValueError(
                "RelationEmbedding takes images [N, H, W, channels] of at least 4x4, "
                f"got shape {inputs.shape}."
            )
        _checks.check_int("filters", self.filters)
        x = inputs
        for i, pool in enumerate((True, True, False, False)):
            x = nn.relu(
                _layers.normalized_conv(
                    self, x, self.filters, norm=self.norm, suffix=f"_{i}"
                )
            )
            x = _conv.max_pool(x) if pool else x
        return x

    def with_support_statistics(self, params, inputs):
        """Returns `params` with the statistics that predictions will use."""
        return _norm.with_support_statistics(self, params, inputs)


class RelationModule(nn.Module):
    """Scores how well two concatenated feature maps match.

    Inputs are pairs of maps [P, H, W, channels], of any size, or of vectors [P, D]; or
    two sets (a [A, ...], b [B, ...]) for all their pairs, [B * A, ...], those with b_0
    first: the first convolution then processes each example once instead of each pair.
    Maps go through two blocks of 3x3 convolution, normalisation and ReLU, each with 2x2
    pooling while there are two rows and columns; vectors through one dense layer. Two
    more dense layers give [P, 1].

    Attributes:
      filters: filters per convolution; units of the dense layer for vectors.
      hidden: units of the dense layer before the last.
      norm: "batch" or None, for the convolutions.
      statistics: source of the batch statistics for predictions: "batch", the pairs
        predicted together (transductive), or "support", pairs within the support set.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> pairs = jnp.ones((6, 7, 7, 128))
      >>> model = RelationModule()
      >>> params = model.init(jax.random.key(0), pairs)
      >>> model.apply(params, pairs).shape
      (6, 1)
      >>> sets = jnp.ones((2, 7, 7, 64)), jnp.ones((3, 7, 7, 64))
      >>> model.apply(params, sets).shape
      (6, 1)
    """

    takes_sets = True  # Read by `jaxmeta.learners.relation`.

    filters: int = 64
    hidden: int = 8
    norm: str | None = "batch"
    statistics: str = "batch"

    @nn.compact
    def __call__(self, pairs: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
        """Maps pairs [P, ...] to [P, 1]."""
        for name in ("filters", "hidden"):
            _checks.check_int(name, getattr(self, name))
        sets = pairs if isinstance(pairs, tuple) else (pairs,)
        if sets[0].ndim not in (2, 4):
            raise ValueError(
                "RelationModule takes pairs of maps [P, H, W, channels] or of vectors "
                f"[P, D], got shape {sets[0].shape}."
            )
        dtype = jnp.result_type(float)
        if sets[0].ndim == 4:
            for i in range(2):
                x = _layers.normalized_conv(
                    self,
                    sets,
                    self.filters,
                    norm=self.norm,
                    suffix=f"_{i}",
                    channels=sum(x.shape[-1] for x in sets),
                    convolve=_conv_of_pairs,
                )
                x = nn.relu(x)
                x = _conv.max_pool(x) if min(x.shape[1:3]) > 1 else x
                sets = (x,)
            x = sets[0].reshape(sets[0].shape[0], -1)
        else:
            x = sets[0] if len(sets) == 1 else all_pairs(*sets)
            x = nn.relu(nn.Dense(self.filters, param_dtype=dtype)(x))
        x = nn.relu(nn.Dense(self.hidden, param_dtype=dtype)(x))
        return nn.Dense(1, param_dtype=dtype)(x)

    def with_support_statistics(self, params, pairs):
        """Returns `params` with the statistics that predictions will use."""
        first = pairs[0] if isinstance(pairs, tuple) else pairs
        if first.ndim == 2:  # Vectors are not normalised.
            return params
        return _norm.with_support_statistics(self, params, pairs)


def _conv_of_pairs(sets, kernel, **options):
    """Convolves concatenated pairs, or all pairs of two sets."""
    # Linear in the channels: conv([a, b], k) = conv(a, k_a) + conv(b, k_b).
    ends = list(itertools.accumulate(x.shape[-1] for x in sets))[:-1]
    kernels = jnp.split(kernel, ends, axis=2)
    parts = [_conv.conv(x, k, **options) for x, k in zip(sets, kernels, strict=True)]
    if len(parts) == 1:
        return parts[0]
    a, b = parts
    # [1, A, ...] + [B, 1, ...]: the linear parts of all pairs, without concatenating.
    return (a[None] + b[:, None]).reshape(-1, *a.shape[1:])


def all_pairs(a: jax.Array, b: jax.Array) -> jax.Array:
    """Each of `b`, [B, ..., C], with each of `a`, [A, ..., C]: [B * A, ..., 2 C]."""
    shape = (b.shape[0], *a.shape)
    both = [jnp.broadcast_to(x, shape) for x in (a[None], b[:, None])]
    return jnp.concatenate(both, -1).reshape(-1, *shape[2:-1], 2 * shape[-1])
