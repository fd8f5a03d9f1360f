"""Models with `init(key, inputs)` and `apply(params, inputs)`."""

from jaxmeta.models._conv4 import Conv4
from jaxmeta.models._conv_net import ConvNet
from jaxmeta.models._equinox import from_equinox
from jaxmeta.models._film_conv4 import FilmConv4
from jaxmeta.models._koch import KochNet
from jaxmeta.models._linen import from_linen
from jaxmeta.models._mlp import MLP
from jaxmeta.models._nnx import from_nnx
from jaxmeta.models._precision import with_compute_dtype
from jaxmeta.models._relation_net import (
    RelationEmbedding,
    RelationModule,
)
from jaxmeta.models._resnet12 import ResNet12
from jaxmeta.models._transformer import Transformer
from jaxmeta.models._vgg16 import VGG16
from jaxmeta.models._vgg16_features import vgg16_features

__all__ = [
    "MLP",
    "VGG16",
    "Conv4",
    "ConvNet",
    "FilmConv4",
    "KochNet",
    "RelationEmbedding",
    "RelationModule",
    "ResNet12",
    "Transformer",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "vgg16_features",
    "with_compute_dtype",
]
