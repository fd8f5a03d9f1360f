"""The twelve-layer residual network of few-shot learning, and its DropBlock."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmeta import _checks
from jaxmeta.models import _conv, _layers, _norm

# "Kaiming normal" with fan-out, as in the reference implementation.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions, each halving the image.

    Inputs [N, H, W, channels]. Outputs [N, head], or the embedding [N, filters[-1]] for
    `head=None`: the last map averaged over positions. Each block ends with dropout: of
    single activations in the first two blocks, of squares (`drop_block`) in the others.
    It is active only in training passes: `apply` drops with `train=True` and a `key`,
    which learners pass; inside another flax.linen module, if there is a random stream
    "dropblock".

    Attributes:
      filters: filters of each block's convolutions.
      head: classes of the linear head; None for embeddings.
      drop_rate: share of the activations to drop.
      block_size: side of the dropped squares; 5 is MetaOptNet's for 84x84 images, 2 for
        32x32 images.
      norm: "batch" or None.
      statistics: source of the batch statistics for predictions: "batch", the inputs
        predicted together (transductive), or "support", the support set.

    References:
      Lee et al., "Meta-Learning with Differentiable Convex Optimization", CVPR 2019,
      section 4.1, https://arxiv.org/abs/1904.03758, after the network of Oreshkin et
      al., "TADAM", NeurIPS 2018, https://arxiv.org/abs/1805.10123. MetaOptNet flattens
      the last map before its support vector machine, and reaches `drop_rate` in the
      last two blocks over the first 40,000 batches; here it is constant.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> images, model = jnp.ones((2, 84, 84, 3)), ResNet12(head=None)
      >>> params = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, params, images).shape
      (2, 640)
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      12424320
    """

    filters: Sequence[int] = (64, 160, 320, 640)
    head: int | None = 5
    drop_rate: float = 0.1
    block_size: int = 5
    norm: str | None = "batch"
    statistics: str = "batch"

    @nn.nowrap
    def apply(self, variables, inputs, *, key=None, train=False, **options):
        """Applies the network like `flax.linen.Module.apply`, with dropout by `key`."""
        if train and key is not None:
            options["rngs"] = {"dropblock": key}
        return super().apply(variables, inputs, **options)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps images [N, H, W, channels] to [N, head] or [N, filters[-1]]."""
        if inputs.ndim != 4:
            raise ValueError(
                f"ResNet12 takes images [N, H, W, channels], got shape {inputs.shape}."
            )
        if min(inputs.shape[1:3]) < 16:
            raise ValueError(
                "Four poolings leave nothing of images under 16x16, got shape "
                f"{inputs.shape}. Use larger images."
            )
        if len(self.filters) != 4:
            raise ValueError(f"`filters` must be four widths, got {self.filters}.")
        _check_drop("drop_rate", self.drop_rate, "block_size", self.block_size)
        x = inputs
        for i, filters in enumerate(self.filters):
            _checks.check_int("filters", filters)
            x = ResidualBlock(filters, self.norm)(x)
            if self.has_rng("dropblock"):
                size = self.block_size if i >= 2 else 1
                key = self.make_rng("dropblock")
                x = drop_block(key, x, rate=self.drop_rate, size=size)
        x = jnp.mean(x, (1, 2))
        return _layers.head(x, self.head)

    def with_support_statistics(self, params, inputs):
        """Returns `params` with the statistics that predictions will use."""
        return _norm.with_support_statistics(self, params, inputs)


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions and a 1x1 shortcut, 2x2 max-pooling, leaky ReLU."""

    filters: int
    norm: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, channels] to [N, H // 2, W // 2, filters]."""
        shortcut = self._convolve("_shortcut", x, 1)
        for i in range(3):
            x = self._convolve(f"_{i}", x if i == 0 else _activate(x), 3)
        # The activation is monotonic, so it commutes with pooling and costs a quarter.
        return _activate(_conv.max_pool(x + shortcut))

    def _convolve(self, suffix, x, size):
        return _layers.normalized_conv(
            self,
            x,
            self.filters,
            norm=self.norm,
            size=size,
            suffix=suffix,
            kernel_init=_KERNEL_INIT,
        )


def _activate(x):
    return nn.leaky_relu(x, 0.1)


def drop_block(
    key: jax.Array, inputs: jax.Array, *, rate: float, size: int
) -> jax.Array:
    r"""Zeroes squares of each map, and rescales the rest to keep the mean.

    A square starts at each of the :math:`(H - b + 1)(W - b + 1)` positions where it
    fits with probability

    .. math::
      \gamma = \frac{r}{b^2} \frac{H W}{(H - b + 1)(W - b + 1)},

    so that about a share r of the units is dropped, slightly less because squares
    overlap. Every example and channel has its own squares. The remaining units are
    scaled by the total number of units over theirs.

    Args:
      key: a PRNG key.
      inputs: [N, H, W, channels].
      rate: r, in [0, 1). Static.
      size: b, the side of a square; 1 drops single units. Blocks are clipped to the
        height and width of the map. Static.

    Returns:
      [N, H, W, channels].

    Raises:
      ValueError: if `rate` is not in [0, 1) or `size` not a positive int.

    References:
      Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks",
      NeurIPS 2018, Algorithm 1. https://arxiv.org/abs/1810.12890

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = drop_block(jax.random.key(3), jnp.ones((1, 4, 5, 1)), rate=0.3, size=2)
      >>> print(x[0, :, :, 0].round(2))
      [[0.   0.   1.67 1.67 1.67]
       [0.   0.   0.   0.   1.67]
       [1.67 1.67 0.   0.   1.67]
       [1.67 1.67 1.67 1.67 1.67]]
    """
    _check_drop("rate", rate, "size", size)
    if rate == 0:  # XLA would spend long on folding what are constants then.
        return inputs
    examples, height, width, channels = inputs.shape
    rows, columns = min(size, height), min(size, width)
    starts = (height - rows + 1, width - columns + 1)
    # gamma, for blocks of `rows` x `columns`.
    share = rate / (rows * columns) * (height * width) / (starts[0] * starts[1])
    starting = jax.random.bernoulli(key, share, (examples, *starts, channels))
    # A unit is dropped if a square starts in the `rows` x `columns` window that ends at
    # it: a max over the starts, padded back to [N, H, W, channels].
    padding = ((0, 0), (rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0))
    window = (1, rows, columns, 1)
    dropped = lax.reduce_window(starting, False, lax.max, window, (1, 1, 1, 1), padding)
    # All units of a small input may be dropped: then divide by 1.
    scale = inputs.size / jnp.maximum(jnp.sum(~dropped), 1)
    return jnp.where(dropped, 0, inputs * scale.astype(inputs.dtype))


def _check_drop(rate_name, rate, size_name, size):
    """Raises unless both values are in range; the names are for the messages."""
    if not 0 <= rate < 1:
        raise ValueError(f"`{rate_name}` must be in [0, 1), got {rate!r}.")
    _checks.check_int(size_name, size)
