"""The sixteen-layer network of the Visual Geometry Group."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.models import _conv4, _layers, _norm

_LAYERS = (2, 2, 3, 3, 3)  # Configuration D: convolutions before each pooling.


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five blocks, each ending in 2x2 max-pooling.

    Inputs [N, H, W, channels]. Outputs [N, head], or the embedding [N, filters[-1]] for
    `head=None`: the last map averaged over positions. As usual for small images, one
    linear layer takes the place of the paper's three, and the convolutions are
    batch-normalised.

    Attributes:
      filters: filters of each block's convolutions.
      head: classes of the linear head; None for embeddings.
      norm: "batch" or None.
      statistics: source of the batch statistics for predictions: "batch", the inputs
        predicted together (transductive), or "support", the support set.

    References:
      Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
      Recognition", ICLR 2015, Table 1, D. https://arxiv.org/abs/1409.1556

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images, model = jnp.ones((2, 32, 32, 3)), VGG16(head=10)
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 10)
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      14724042
    """

    filters: Sequence[int] = (64, 128, 256, 512, 512)
    head: int | None = 5
    norm: str | None = "batch"
    statistics: str = "batch"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps images [N, H, W, channels] to [N, head] or [N, filters[-1]]."""
        if inputs.ndim != 4:
            raise ValueError(
                f"VGG16 takes images [N, H, W, channels], got shape {inputs.shape}."
            )
        if min(inputs.shape[1:3]) < 32:
            raise ValueError(
                "Five poolings leave nothing of images under 32x32, got shape "
                f"{inputs.shape}. Use larger images, or `Conv4`."
            )
        if len(self.filters) != 5:
            raise ValueError(f"`filters` must be five widths, got {self.filters}.")
        x = inputs
        for filters, layers in zip(self.filters, _LAYERS, strict=True):
            _checks.check_int("filters", filters)
            for _ in range(layers - 1):
                x = _Layer(filters, self.norm)(x)
            x = _conv4.Block(filters, strided=False, norm=self.norm)(x)
        x = jnp.mean(x, (1, 2))
        return _layers.head(x, self.head)

    def with_support_statistics(self, params, inputs):
        """Returns `params` with the statistics that predictions will use."""
        return _norm.with_support_statistics(self, params, inputs)


class _Layer(nn.Module):
    """3x3 convolution, normalisation, ReLU."""

    filters: int
    norm: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels] to [N, H, W, filters]."""
        return nn.relu(_layers.normalized_conv(self, x, self.filters, norm=self.norm))
