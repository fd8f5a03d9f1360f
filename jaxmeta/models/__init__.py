"""Models, all with `init(key, inputs)` and `apply(params, inputs)`."""

from jaxmeta.models._conv4 import Conv4 as Conv4
from jaxmeta.models._conv_net import ConvNet as ConvNet
from jaxmeta.models._linen import from_linen as from_linen
from jaxmeta.models._mlp import MLP as MLP
from jaxmeta.models._nnx import from_nnx as from_nnx
from jaxmeta.models._transformer import Transformer as Transformer
