"""Optimizers for inner loops, as optax transformations."""

from jaxmeta.optimizers._adam import adam as adam
