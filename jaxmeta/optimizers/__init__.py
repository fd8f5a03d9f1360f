"""Optimizers as optax transformations: for inner loops, and learned ones."""

from jaxmeta.optimizers._adam import adam as adam
from jaxmeta.optimizers._lstm import (
    LstmState as LstmState,
    LstmTheta as LstmTheta,
    lstm as lstm,
)
from jaxmeta.optimizers._preprocess import (
    log_gradient as log_gradient,
    scaled_gradient as scaled_gradient,
)
