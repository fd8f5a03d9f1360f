"""A small causal transformer."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Transformer(nn.Module):
    """Predicts the next token of a sequence.

    Inputs [N, L] integers, outputs logits [N, L, vocabulary]; position l attends only
    to tokens up to l. Layer normalisation precedes attention and the dense layers.

    Attributes:
      vocabulary: number of tokens.
      max_length: maximum sequence length; positions are learned up to it.
      width: width of the embeddings.
      num_heads: attention heads; must divide `width`.
      num_layers: number of blocks.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tokens = jnp.zeros((2, 5), int)
      >>> model = Transformer(vocabulary=7)
      >>> params = model.init(jax.random.key(0), tokens)
      >>> model.apply(params, tokens).shape
      (2, 5, 7)
    """

    vocabulary: int = 16
    max_length: int = 32
    width: int = 32
    num_heads: int = 2
    num_layers: int = 1

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens [N, L] to logits [N, L, vocabulary]."""
        if tokens.ndim != 2 or tokens.shape[1] > self.max_length:
            raise ValueError(
                f"Transformer takes tokens [N, L], L <= {self.max_length}, got shape "
                f"{tokens.shape}. Increase `max_length`."
            )
        dtype = jnp.result_type(float)  # JAX's default, not flax's float32.
        length = tokens.shape[1]
        embed = nn.Embed(self.vocabulary, self.width, param_dtype=dtype)
        positions = self.param(
            "positions",
            nn.initializers.normal(0.02),
            (self.max_length, self.width),
            dtype,
        )
        x = embed(tokens) + positions[None, :length]
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.num_layers):
            attend = nn.MultiHeadDotProductAttention(self.num_heads, param_dtype=dtype)
            x = x + attend(nn.LayerNorm(param_dtype=dtype)(x), mask=mask)
            hidden = nn.Dense(4 * self.width, param_dtype=dtype)
            out = nn.Dense(self.width, param_dtype=dtype)
            x = x + out(nn.gelu(hidden(nn.LayerNorm(param_dtype=dtype)(x))))
        x = nn.LayerNorm(param_dtype=dtype)(x)
        return nn.Dense(self.vocabulary, param_dtype=dtype)(x)
