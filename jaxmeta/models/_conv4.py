"""The four-block convolutional network of few-shot learning."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.models import _conv, _layers, _norm


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch normalisation and ReLU.

    Inputs [N, H, W, channels]. Outputs [N, head], or the embedding [N, D] for
    `head=None`: D is `filters` times the remaining positions (one with `strided`, which
    averages the last map over positions as in MAML's Omniglot network).

    Attributes:
      filters: filters per convolution.
      head: classes of the linear head; None for embeddings.
      strided: True halves the image by stride-2 convolutions (MAML on Omniglot), False
        by 2x2 max-pooling after each block (MAML on miniImageNet, ProtoNet).
      norm: "batch" or None.
      statistics: source of the batch statistics for predictions: "batch", the inputs
        predicted together (transductive), or "support", the support set.

    References:
      Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016 (pooled);
      Finn et al., "Model-Agnostic Meta-Learning", ICML 2017, section 5.2 (strided).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images = jnp.ones((5, 28, 28, 1))
      >>> model = Conv4(64, head=5)
      >>> params = model.init(jax.random.key(0), images)
      >>> model.apply(params, images).shape
      (5, 5)
    """

    filters: int = 64
    head: int | None = 5
    strided: bool = False
    norm: str | None = "batch"
    statistics: str = "batch"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps images [N, H, W, channels] to [N, head] or [N, D]."""
        check_images("Conv4", inputs, self.strided)
        _checks.check_int("filters", self.filters)
        x = inputs
        for _ in range(4):
            x = Block(self.filters, self.strided, self.norm)(x)
        x = jnp.mean(x, (1, 2)) if self.strided else x.reshape(x.shape[0], -1)
        return _layers.head(x, self.head)

    def with_support_statistics(self, params, inputs):
        """Returns `params` with the statistics that predictions will use."""
        return _norm.with_support_statistics(self, params, inputs)


def check_images(name: str, inputs: jax.Array, strided: bool) -> None:
    """Raises unless `inputs` are images that four blocks can halve."""
    if isinstance(inputs, tuple):
        raise ValueError(
            f"{name} takes only images, got {len(inputs)} inputs. With cavia's "
            '`context="model"` use `FilmConv4`.'
        )
    if inputs.ndim != 4:
        raise ValueError(
            f"{name} takes images [N, H, W, channels], got shape {inputs.shape}."
        )
    if not strided and min(inputs.shape[1:3]) < 16:
        raise ValueError(
            "Four poolings leave nothing of images under 16x16, got shape "
            f"{inputs.shape}. Use `strided=True` or larger images."
        )


class Block(nn.Module):
    """3x3 convolution, normalisation, ReLU; halves the image."""

    filters: int
    strided: bool
    norm: str | None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        modulate: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Maps [N, H, W, channels] to [N, H / 2, W / 2, filters].

        `modulate` transforms the input of the ReLU.
        """
        if self.norm == "batch" and not self.strided and modulate is None:
            return nn.relu(_layers.normalized_pooled_conv(self, x, self.filters))
        stride = 2 if self.strided else 1
        x = _layers.normalized_conv(
            self, x, self.filters, norm=self.norm, stride=stride
        )
        x = nn.relu(x if modulate is None else modulate(x))
        return x if self.strided else _conv.max_pool(x)
