"""Models, all with `init(key, inputs)` and `apply(params, inputs)`."""

from jaxmeta.models._conv4 import Conv4 as Conv4
from jaxmeta.models._mlp import MLP as MLP
