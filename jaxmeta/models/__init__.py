"""Models, all with `init(key, inputs)` and `apply(params, inputs)`."""

from jaxmeta.models._conv4 import Conv4 as Conv4
from jaxmeta.models._conv_net import ConvNet as ConvNet
from jaxmeta.models._film_conv4 import FilmConv4 as FilmConv4
from jaxmeta.models._koch import KochNet as KochNet
from jaxmeta.models._linen import from_linen as from_linen
from jaxmeta.models._mlp import MLP as MLP
from jaxmeta.models._nnx import from_nnx as from_nnx
from jaxmeta.models._relation_net import (
    RelationEmbedding as RelationEmbedding,
    RelationModule as RelationModule,
)
from jaxmeta.models._resnet12 import ResNet12 as ResNet12
from jaxmeta.models._transformer import Transformer as Transformer
