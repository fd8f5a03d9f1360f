"""The four-block convolutional network with a context-modulated layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import _checks
from jaxmeta.models import _conv4, _norm


class FilmConv4(nn.Module):
    """`Conv4` with a third block whose ReLU inputs a context scales and shifts (FiLM).

    Takes the pair `(inputs [N, H, W, channels], context [P])`, which `jaxmeta.cavia`
    passes with `context="model"`. A linear layer maps the context to a scale and shift
    per channel; for a zero context the scales are near 1, the shifts near 0.

    Attributes:
      filters: filters per convolution.
      head: classes of the linear head.
      strided: halve the image by stride-2 convolutions instead of pooling.
      norm: "batch" or None.
      statistics: source of the batch statistics for predictions, as in `Conv4`.

    References:
      Zintgraf et al., "Fast Context Adaptation via Meta-Learning", ICML 2019, Appendix
      C. Perez et al., "FiLM", AAAI 2018. https://arxiv.org/abs/1709.07871

    Example:
      >>> import jax, jax.numpy as jnp
      >>> inputs = jnp.ones((5, 28, 28, 1)), jnp.zeros(100)
      >>> model = FilmConv4(32, head=5)
      >>> params = model.init(jax.random.key(0), inputs)
      >>> model.apply(params, inputs).shape
      (5, 5)
    """

    filters: int = 32
    head: int = 5
    strided: bool = False
    norm: str | None = "batch"
    statistics: str = "batch"

    @nn.compact
    def __call__(self, inputs_and_context: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Maps ([N, H, W, channels], [P]) to [N, head]."""
        if not isinstance(inputs_and_context, tuple) or len(inputs_and_context) != 2:
            raise ValueError(
                "FilmConv4 takes the pair (images, context), got "
                f"{jax.tree.map(jnp.shape, inputs_and_context)}. Use it in "
                '`jaxmeta.cavia` with `context="model"`.'
            )
        x, context = inputs_and_context
        _conv4.check_images("FilmConv4", x, self.strided)
        for name in ("filters", "head"):
            _checks.check_int(name, getattr(self, name))
        dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
        film = nn.Dense(2 * self.filters, param_dtype=dtype, name="film")
        # [2 F] -> scale and shift [1, 1, 1, F], broadcast over [N, H, W, F].
        scale, shift = jnp.split(film(context).reshape(1, 1, 1, -1), 2, -1)
        modulate = lambda x: x * (1 + scale) + shift
        for i in range(4):
            block = _conv4.Block(self.filters, self.strided, self.norm)
            x = block(x, modulate) if i == 2 else block(x)
        x = jnp.mean(x, (1, 2)) if self.strided else x.reshape(x.shape[0], -1)
        return nn.Dense(self.head, param_dtype=dtype, name="head")(x)

    def with_support_statistics(self, params, inputs):
        """Returns `params` with the statistics that predictions will use."""
        return _norm.with_support_statistics(self, params, inputs)
